"""Whether it fits: parts of any program, their sums, the largest context, the most layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

from llavakit.planner.formulas.common import HOST, filled, prompt_tokens, usable_bytes
from llavakit.planner.formulas.engine_memory import llavakit_parts
from llavakit.planner.formulas.other_memory import llama_cpp_parts, torch_parts, vllm_parts
from llavakit.planner.records import DeviceNumbers, ModelSizes, QuantSizes, Setting, with_field

__all__ = [
    "fits_in", "largest_context", "most_device_layers", "parts_of", "place_totals", "usable_places", "verdict_of",
]  # fmt: skip


def parts_of(
    model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers], program_bytes: int
) -> Any:
    """Every part of what an engine needs, on devices and on the host."""
    if setting.engine == "llavakit":
        return llavakit_parts(model, quant, setting, devices, program_bytes)
    if setting.engine == "vllm":
        return vllm_parts(model, setting, devices, program_bytes)
    if setting.engine == "transformers" or setting.engine == "transformers-4bit":
        return torch_parts(model, quant, setting, devices, program_bytes)
    return llama_cpp_parts(model, quant, setting, devices)


def place_totals(parts: Any, num_devices: int) -> Any:
    """Bytes on every device and, last, on the host."""
    totals = []
    for place in range(num_devices + 1):
        total = 0
        for entry in parts:
            is_here = entry["place"] == place or (entry["place"] == HOST and place == num_devices)
            total = total + (entry["bytes"] if is_here else 0)
        totals.append(total)
    return totals


def usable_places(totals: Any, devices: Sequence[DeviceNumbers], host: DeviceNumbers) -> Any:
    """Bytes to be had on every device and, last, on the host.

    Of memory that a device shares with the host, either has what the other leaves. The first such device has the host.
    """
    whole = usable_bytes(host)
    rest = whole
    has_shared = False
    usable = []
    for idx in range(len(devices)):
        size = usable_bytes(devices[idx])
        if devices[idx].is_shared and not has_shared:
            has_shared = True
            size = min(size, max(0, whole - totals[len(devices)]))
            rest = max(0, whole - totals[idx])
        usable.append(size)
    usable.append(rest)
    return usable


def fits_in(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> bool:
    """Whether every device and the host hold their parts."""
    totals = place_totals(parts_of(model, quant, setting, devices, program_bytes), len(devices))
    usable = usable_places(totals, devices, host)
    fits = True
    for idx in range(len(totals)):
        if totals[idx] > usable[idx]:
            fits = False
    return fits


def largest_context(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> int:
    """Largest context that holds the prompt and fits when its answer fills the rest; 0 if none does.

    By halving. Not above the model's own.
    """
    prompt = prompt_tokens(model, setting)
    low = prompt
    high = model.max_context_tokens + 1
    while high - low > 1:
        middle = floor((low + high) / 2)
        if fits_in(model, quant, filled(model, setting, middle), devices, host, program_bytes):
            low = middle
        else:
            high = middle
    return low if low > prompt else 0


def most_device_layers(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> int:
    """Most layers that devices hold, the head counted as one; 0 if it does not fit with any."""
    for left in range(model.num_layers + 2):
        count = model.num_layers + 1 - left
        if fits_in(model, quant, with_field(setting, "num_device_layers", count), devices, host, program_bytes):
            return count
    return 0


def verdict_of(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    host: DeviceNumbers,
    program_bytes: int,
) -> str:
    """Say "fits", "tight" (under 4 % left somewhere), "partly" (some layers must stay on the host) or "no"."""
    if not fits_in(model, quant, setting, devices, host, program_bytes):
        layered = setting.engine == "llama.cpp" or setting.engine == "ollama"
        if len(devices) == 0 or not layered:
            return "no"
        layers = most_device_layers(model, quant, setting, devices, host, program_bytes)
        return "partly" if layers > 0 else "no"
    totals = place_totals(parts_of(model, quant, setting, devices, program_bytes), len(devices))
    usable = usable_places(totals, devices, host)
    for idx in range(len(totals)):
        if totals[idx] > usable[idx] * 0.96:
            return "tight"
    return "fits"
