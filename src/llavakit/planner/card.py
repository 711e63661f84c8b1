"""A model's card: what it is, what every quantization takes, what is published about it, how to run it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from llavakit.core.shapes import expected_tensors
from llavakit.planner.devices import Device, find_device
from llavakit.planner.machine import generic_host
from llavakit.planner.models import HUB_IDS, PlannedModel
from llavakit.planner.plans import make_plan
from llavakit.planner.records import Setting

__all__ = ["Card", "QuantRow", "make_card", "run_commands"]

# Any card that holds everything: the table shows what is needed, whatever there is.
_LARGEST = "B200 SXM"


@dataclass(frozen=True)
class QuantRow:
    """One quantization.

    Attributes
    ----------
    language_bytes, vision_bytes : int
        Of the tensors of the two files; a file's header is a few megabytes more.
    memory_bytes : int
        On the device, the driver's share excluded, with the setting of the card.
    host_bytes : int
    quality : str
        What is published, with its source; empty where nothing is.
    """

    name: str
    bits_per_weight: float
    language_bytes: int
    vision_bytes: int
    memory_bytes: int
    host_bytes: int
    quality: str


@dataclass(frozen=True)
class Card:
    """Everything about a model."""

    model: PlannedModel
    setting: Setting
    parameters: dict[str, int]
    quants: tuple[QuantRow, ...]
    downloads: int | None
    commands: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON's types."""
        text = self.model.config.text_config
        return {
            "model": self.model.name, "facts": self.model.facts, "parameters": self.parameters,
            "context_tokens": text.max_position_embeddings, "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads, "kv_heads": text.num_key_value_heads, "head_size": text.head_dim,
            "hidden_size": text.hidden_size, "intermediate_size": text.intermediate_size,
            "vocabulary": text.vocab_size, "image_tokens": self.model.config.num_image_tokens,
            "setting": asdict(self.setting), "quantizations": [asdict(row) for row in self.quants],
            "downloads": self.downloads, "commands": dict(self.commands), "warnings": list(self.warnings),
        }  # fmt: skip


def make_card(model: PlannedModel, setting: Setting, *, is_online: bool) -> Card:
    """Gather a card.

    Parameters
    ----------
    model : PlannedModel
    setting : Setting
        For the memory column.
    is_online : bool
        Ask the Hub for downloads; it not answering is no error.

    Raises
    ------
    ConfigError
        If the setting cannot be.
    """
    device = find_device(_LARGEST)
    rows = [_row(model, name.name, setting, device) for name in model.quantizations()]
    hub_id = HUB_IDS.get(model.name)
    ollama = model.facts.get("ollama", {})
    return Card(
        model=model, setting=setting, parameters=_count_parameters(model), quants=tuple(rows),
        downloads=_count_downloads(hub_id) if is_online and hub_id else None,
        commands=tuple(run_commands(model, "q4_k_m")), warnings=(ollama["warning"],) if ollama.get("warning") else (),
    )  # fmt: skip


def _count_downloads(hub_id: str) -> int | None:
    from llavakit.weights.hub import count_downloads  # takes half a second to import

    return count_downloads(hub_id)


def _row(model: PlannedModel, name: str, setting: Setting, device: Device) -> QuantRow:
    plan = make_plan(model, name, setting, [device], generic_host(2048.0), has_advice=False)
    context = sum(part.bytes for part in plan.parts if part.name.startswith("driver"))
    quality = [entry for entry in model.facts.get("quality", ()) if entry.get("quant", "").lower() == name]
    return QuantRow(
        name, plan.quant.bits_per_weight, plan.quant.language_bytes, plan.quant.vision_bytes,
        plan.totals[0] - context, plan.totals[-1], quality[0]["statement"] if quality else "",
    )  # fmt: skip


def _count_parameters(model: PlannedModel) -> dict[str, int]:
    counts = {"language model": 0, "vision tower": 0, "projector": 0}
    for name, shape in expected_tensors(model.config).items():
        part = (
            "vision tower" if name.startswith("vision_tower") else
            "projector" if name.startswith("multi_modal_projector") else "language model"
        )  # fmt: skip
        counts[part] += math.prod(shape)
    return {**counts, "all": sum(counts.values())}


def run_commands(model: PlannedModel, quant: str) -> list[tuple[str, str]]:
    """Return commands that run a model, by program."""
    name = model.name
    stem = name.replace("llava:", "llava-1.5-") if name in HUB_IDS else "model"
    found = [
        ("quantize", f"llavakit convert {name} {stem}-{quant}.gguf --type {quant}"),
        ("run", f'llavakit run {stem}-{quant}.gguf "What is in this picture?" --image photo.jpg'),
    ]
    if tag := model.facts.get("ollama", {}).get("tag"):
        found.append(("with Ollama", f"ollama run {tag}"))
    return found
