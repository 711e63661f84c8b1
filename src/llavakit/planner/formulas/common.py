"""What every formula needs: parts, the cache, what a device can use, and how layers are dealt to devices."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, sqrt
from typing import Any

from llavakit.planner.records import DeviceNumbers, ModelSizes, QuantSizes, Setting, with_field

__all__ = [
    "HOST", "MIB", "cached_tokens", "context_bytes", "deal_layers", "device_weights", "filled", "kv_bytes", "part",
    "prompt_tokens", "slower_of", "sum_list", "usable_bytes",
]  # fmt: skip

MIB = 1048576
HOST = -1


def part(name: str, size: int, place: int, basis: str) -> Any:
    """Name bytes."""
    return {"name": name, "bytes": size, "place": place, "basis": basis}


def kv_bytes(model: ModelSizes, setting: Setting, num_layers: int, num_positions: int) -> int:
    """Keys and values of so many positions in so many layers; a type counts its bytes per 32 numbers."""
    return floor(2 * num_layers * model.kv_width * num_positions / 32) * setting.kv_block_bytes


def prompt_tokens(model: ModelSizes, setting: Setting) -> int:
    """Tokens of a prompt: those kept of every picture, and the text."""
    return setting.num_images * min(setting.num_visual_tokens, model.num_image_tokens) + setting.num_text_tokens


def cached_tokens(model: ModelSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> int:
    """Positions of one sequence that take memory of the cache.

    Our engine on a processor and transformers take it as it is used: for the prompt and its answer. All others reserve
    the whole context.
    """
    used = min(setting.num_context_tokens, prompt_tokens(model, setting) + setting.num_new_tokens)
    if setting.engine == "transformers" or setting.engine == "transformers-4bit":
        return used
    if setting.engine == "llavakit" and (len(devices) == 0 or devices[0].kind == "cpu"):
        return used
    return setting.num_context_tokens


def filled(model: ModelSizes, setting: Setting, num_context_tokens: int) -> Setting:
    """Return the setting with another context, and answers that fill what the prompt leaves of it."""
    room = max(1, num_context_tokens - prompt_tokens(model, setting))
    return with_field(with_field(setting, "num_context_tokens", num_context_tokens), "num_new_tokens", room)


def usable_bytes(device: DeviceNumbers) -> int:
    """Return what programs may use of a device.

    Apple gives its GPU two thirds of up to 36 GiB of unified memory and three quarters of more, as logs show, unless
    told otherwise.
    """
    if device.kind == "unified" and device.usable_share == 0:
        share = 2 / 3 if device.memory_bytes <= 36 * 1024 * MIB else 3 / 4
        return floor(device.memory_bytes * share)
    if device.kind == "unified":
        return floor(device.memory_bytes * device.usable_share)
    return max(0, device.memory_bytes - device.reserved_bytes)


def context_bytes(device: DeviceNumbers) -> int:
    """Return what the driver takes for a program before it has done anything.

    On NVIDIA a line through two published figures: 107 MiB with 34 multiprocessors, 555 MiB with 188. Elsewhere 300 MiB
    are assumed for a card and nothing for shared memory.
    """
    if device.num_multiprocessors > 0:
        return floor((8.1 + 2.91 * device.num_multiprocessors) * MIB)
    return 300 * MIB if device.kind == "gpu" else 0


def sum_list(values: Any) -> Any:
    """Sum a list."""
    total = 0
    for value in values:
        total = total + value
    return total


def deal_layers(model: ModelSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> Any:
    """How many layers each device gets; the head counts as one more.

    They are dealt in proportion to what devices can use, as llama.cpp does it; all to the first where none can use
    anything, which then lacks the memory for them.
    """
    total = min(setting.num_device_layers, model.num_layers + 1)
    sizes = []
    for device in devices:
        sizes.append(max(0, usable_bytes(device) - context_bytes(device)))  # noqa: PERF401 - the page's subset
    whole = sum_list(sizes)
    counts = []
    dealt = 0
    summed = 0
    for idx in range(len(devices)):
        summed = summed + sizes[idx]
        until = floor(total * summed / whole + 0.5) if whole > 0 else total
        counts.append(until - dealt)
        dealt = until
    return counts


def device_weights(model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> Any:
    """Layers, bytes of weights, and whether the head is there, of every device and, last, of the host.

    The last layers go to devices, and the head before any of them.
    """
    counts = deal_layers(model, setting, devices)
    start = model.num_layers + 1 - sum_list(counts)
    shares = []
    first = 0
    bounds = [start]
    for count in counts:
        bounds.append(bounds[len(bounds) - 1] + count)
    for idx in range(len(counts) + 1):
        # The host has what comes before the first device.
        first = bounds[idx] if idx < len(counts) else 0
        end = bounds[idx + 1] if idx < len(counts) else start
        weights = 0
        num_layers = 0
        for layer in range(first, min(end, model.num_layers)):
            weights = weights + quant.layer_bytes[layer]
            num_layers = num_layers + 1
        has_head = first <= model.num_layers and model.num_layers < end
        if has_head:
            weights = weights + quant.head_bytes
        shares.append({"layers": num_layers, "weights": weights, "has_head": has_head})
    return shares


def slower_of(first: float, second: float) -> float:
    """Time of two things done at once: that of the slower one, and a little more where both take as long."""
    both = first * first * first * first + second * second * second * second
    return sqrt(sqrt(both))
