"""A model's card: what it is, what every quantization takes, what is published about it, how to run it."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llavakit.core.shapes import expected_tensors
from llavakit.planner.devices import find_device
from llavakit.planner.machine import generic_host
from llavakit.planner.models import HUB_IDS, PlannedModel
from llavakit.planner.plans import Plan, check_setting, make_plan, planned_quant
from llavakit.planner.records import Setting

__all__ = ["Card", "QuantRow", "make_card", "run_commands"]

# Any card that holds everything: the table shows what is needed, whatever there is.
_LARGEST = "B200 SXM"
_SHRINKING = "transformers-4bit"


@dataclass(frozen=True)
class QuantRow:
    """One quantization.

    Attributes
    ----------
    language_bytes, vision_bytes : int
        Of the tensors of the two files; a file's header is a few megabytes more.
    memory_bytes : int
        On the device, with the setting of the card, without what depends on the device: the driver's share and what
        vLLM holds back. On a processor for llavakit's engine, which runs all types there.
    host_bytes : int
        Beside a device.
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
    """Everything about a model.

    Attributes
    ----------
    quant : str
        The mixture that the commands make.
    quants : tuple of QuantRow
        Those that the setting's engine runs.
    is_on_device : bool
        Whether their memory is planned on a device; on a processor otherwise.
    """

    model: PlannedModel
    setting: Setting
    quant: str
    parameters: dict[str, int]
    quants: tuple[QuantRow, ...]
    is_on_device: bool
    downloads: int | None
    commands: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON's types."""
        text = self.model.config.text_config
        return {
            "model": self.model.name, "quant": self.quant, "facts": self.model.facts, "parameters": self.parameters,
            "context_tokens": text.max_position_embeddings, "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads, "kv_heads": text.num_key_value_heads, "head_size": text.head_dim,
            "hidden_size": text.hidden_size, "intermediate_size": text.intermediate_size,
            "vocabulary": text.vocab_size, "image_tokens": self.model.config.num_image_tokens,
            "setting": asdict(self.setting), "is_on_device": self.is_on_device,
            "quantizations": [asdict(row) for row in self.quants],
            "downloads": self.downloads, "commands": dict(self.commands), "warnings": list(self.warnings),
        }  # fmt: skip


def make_card(model: PlannedModel, setting: Setting, *, quant: str = "q4_k_m", is_online: bool) -> Card:
    """Gather a card.

    Parameters
    ----------
    model : PlannedModel
    setting : Setting
        For the memory column.
    quant : str, default "q4_k_m"
        For the commands.
    is_online : bool
        Ask the Hub for downloads; it not answering is no error.

    Raises
    ------
    ConfigError
        If the setting cannot be, or the mixture is unknown.
    """
    devices = [] if setting.engine == "llavakit" else [find_device(_LARGEST)]
    names = [sizes.name for sizes in model.quantizations()]
    planned = {name: planned_quant(setting.engine, name, has_devices=bool(devices)) for name in names}
    chosen = planned[model.quantize(quant).name]
    host = generic_host(2048.0)
    plans = [
        make_plan(model, name, setting, devices, host, has_advice=False) for name in dict.fromkeys(planned.values())
    ]
    rows = [_row(model, plan) for plan in plans]
    hub_id = HUB_IDS.get(model.name)
    warnings = [warning] if (warning := model.facts.get("ollama", {}).get("warning")) else []
    warnings += [f"{warning}." for warning in check_setting(model, setting)]
    if len(rows) < len(names):
        shrunk = ", and shrinks them to 4 while it loads" if setting.engine == _SHRINKING else ""
        warnings.append(f"{setting.engine} reads weights of 16 bits{shrunk}; the other types are not for it.")
    return Card(
        model=model, setting=setting, quant=chosen, parameters=_count_parameters(model), quants=tuple(rows),
        is_on_device=bool(plans[0].devices), downloads=_count_downloads(hub_id) if is_online and hub_id else None,
        commands=tuple(run_commands(model, chosen)), warnings=tuple(warnings),
    )  # fmt: skip


def _count_downloads(hub_id: str) -> int | None:
    from llavakit.weights.hub import count_downloads  # takes half a second to import

    return count_downloads(hub_id)


def _row(model: PlannedModel, plan: Plan) -> QuantRow:
    name = plan.quant.name
    own = sum(part.bytes for part in plan.parts if part.name.startswith("driver") or part.name == "held back")
    published = () if plan.setting.engine == _SHRINKING else model.facts.get("quality", ())
    quality = [entry for entry in published if entry.get("quant", "").lower() == name]
    return QuantRow(
        name, plan.quant.bits_per_weight, plan.quant.language_bytes, plan.quant.vision_bytes,
        plan.needed_bytes - own, plan.totals[-1] if plan.devices else 0, quality[0]["statement"] if quality else "",
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
    name, path = model.name, Path(model.name)
    # A configuration lies beside its weights.
    source = shlex.quote(str(path.parent) if path.suffix == ".json" else name)
    stem = name.replace("llava:", "llava-1.5-") if name in HUB_IDS else "model"
    found = [
        ("quantize", f"llavakit convert {source} {stem}-{quant}.gguf --type {quant}"),
        ("run", f'llavakit run {stem}-{quant}.gguf "What is in this picture?" --image photo.jpg'),
    ]
    if tag := model.facts.get("ollama", {}).get("tag"):
        found.append(("with Ollama", f"ollama run {tag}"))
    return found
