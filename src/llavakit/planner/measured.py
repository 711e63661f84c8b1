"""What the speed model is fitted to: measured rows, and the work that each of them is.

A row is a speed that somebody measured; its work is what a rate divides: bytes and unpacking of a token, operations of
a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from llavakit.planner import formulas
from llavakit.planner.devices import Device, list_devices, read_rows
from llavakit.planner.models import PlannedModel, published_config
from llavakit.planner.records import QuantSizes, Setting
from llavakit.planner.speed import ERAS

__all__ = ["WORKS", "MeasuredRow", "Work", "decode_work", "era_of", "has_joules", "list_rows", "prompt_work"]


@dataclass(frozen=True)
class MeasuredRow:
    """One measured speed: tokens per second of prompts and of answers; None where not measured."""

    device: Device
    model: str
    quant: str
    family: str
    era: str
    prompt_tokens: int
    depth: int
    prompt_speed: float | None
    decode_speed: float | None
    source: str


@lru_cache(maxsize=8)
def _text_model(name: str) -> PlannedModel:
    """Return a language model of the measured rows, as a configuration of ours."""
    if name == "LLaMA-3 8B":
        config = published_config("llava:7b")
        text = replace(config.text_config, vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
    else:
        config = published_config("llava:7b" if "7B" in name else "llava:13b")
        text = replace(config.text_config, vocab_size=32000)
    return PlannedModel(name, replace(config, text_config=text), {})


@lru_cache(maxsize=1)
def list_rows() -> tuple[MeasuredRow, ...]:
    """Return the rows of ``data/speeds.csv`` that are used: one device, one known model."""
    devices = {device.name: device for device in list_devices()}
    rows = []
    for row in read_rows("speeds.csv"):
        if row["is_used"] != "yes" or row["num_devices"] != "1":
            continue
        device = devices[row["device"]]
        if row["backend"] not in (device.backend, "vulkan"):
            continue  # a GPU's machine measured on its processor
        family = "vulkan on nvidia" if row["backend"] == "vulkan" and device.backend == "cuda" else device.family
        rows.append(
            MeasuredRow(
                device,
                row["model"],
                row["quant"],
                family,
                min(max(row["era"][:4], ERAS[0]), ERAS[-1]),
                int(row["prompt_tokens"] or 512),
                int(row["mean_context_tokens"] or 128),
                float(row["prompt_tokens_per_s"]) if row["prompt_tokens_per_s"] else None,
                float(row["decode_tokens_per_s"]) if row["decode_tokens_per_s"] else None,
                row["source"],
            )
        )
    return tuple(rows)


@dataclass(frozen=True)
class Work:
    """A row as the fit sees it.

    Attributes
    ----------
    ideal_s : float
        What efficiency divides.
    unpacking_s : float
        What operations of a weight multiply; 0 where they are no limit.
    per_watt, layers : float
        What joules, and a time per layer, multiply.
    kind : str
        "half", "quant" or "k".
    """

    row: MeasuredRow
    ideal_s: float
    unpacking_s: float
    per_watt: float
    layers: float
    measured_s: float
    kind: str
    family: str
    era: str


def decode_work(row: MeasuredRow) -> Work | None:
    """Return what a row's token reads; None where its speed was not measured."""
    if row.decode_speed is None:
        return None
    model = _text_model(row.model)
    quant = model.quantize(row.quant)
    cache = formulas.kv_bytes(model.sizes, Setting(), model.sizes.num_layers, row.depth)
    total = quant.head_bytes + sum(quant.layer_bytes) + cache
    rate = row.device.numbers.shader_rate
    return Work(
        row,
        total / row.device.numbers.bandwidth,
        (model.sizes.linear_flops + model.sizes.head_flops) / 2 / rate if rate > 0 else 0.0,
        0.0,
        model.sizes.num_layers + 1,
        1 / row.decode_speed,
        kind_of(quant),
        row.family,
        era_of(row.family, row.era),
    )


def prompt_work(row: MeasuredRow) -> Work | None:
    """Return the operations of a row's prompt; None where it was not measured or is too short to tell."""
    if row.prompt_speed is None or row.prompt_tokens < 64:
        return None
    model = _text_model(row.model)
    quant = model.quantize(row.quant)
    tokens = row.prompt_tokens
    sizes = model.sizes
    flops = sizes.linear_flops * tokens + sizes.attention_flops * tokens * (tokens + 1) / 2 + sizes.head_flops
    batches = -(-tokens // 512)
    numbers = row.device.numbers
    per_watt = flops * formulas.operation_cost(quant) / numbers.watts if has_joules(row.family) else 0.0
    return Work(
        row,
        flops / formulas.prompt_rate(quant, numbers),
        0.0,
        per_watt,
        sizes.num_layers * batches,
        tokens / row.prompt_speed,
        kind_of(quant),
        row.family,
        era_of(row.family, row.era),
    )


def kind_of(quant: QuantSizes) -> str:
    return "half" if quant.is_half else "k" if quant.is_k else "quant"


def has_joules(family: str) -> bool:
    """Whether the energy of operations is fitted for a family."""
    return family.startswith("nvidia")


def era_of(family: str, era: str) -> str:
    """Eras are told apart where rows of several are there."""
    maker = family.split()[0]
    return f"{maker}, {era}" if maker in ("nvidia", "apple") else ""


WORKS: dict[str, Callable[[MeasuredRow], Work | None]] = {"decode": decode_work, "prompt": prompt_work}
