"""Time of llama.cpp and what is built on it, on devices and on processors: shares fitted to measured rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from llavakit.planner.formulas.common import device_weights, kv_bytes, slower_of
from llavakit.planner.records import DeviceNumbers, ModelSizes, QuantSizes, Setting, SpeedFit

__all__ = [
    "operation_cost", "other_decode_seconds", "other_prompt_seconds", "other_vision_seconds", "prompt_rate",
]  # fmt: skip


def prompt_rate(quant: QuantSizes, device: DeviceNumbers) -> float:
    """Operations per second that a prompt is measured against: 8-bit ones for quantized weights where there are any."""
    if quant.is_half or device.int8_rate == 0:
        return device.half_rate
    return device.int8_rate


def operation_cost(quant: QuantSizes) -> float:
    """Energy of an operation, of 8-bit ones as the unit: 16 bits take twice as much."""
    return 2.0 if quant.is_half else 1.0


def reached_rate(rate: float, efficiency: float, joules: float, device: DeviceNumbers) -> float:
    """Operations per second that are reached: a share of the rate, and no more than the rated power feeds."""
    return 1 / (1 / (rate * efficiency) + joules / device.watts)


def reached_prompt_rate(quant: QuantSizes, device: DeviceNumbers, fit: SpeedFit) -> float:
    """Operations per second of a prompt."""
    efficiency = fit.half_prompt_efficiency if quant.is_half else fit.quant_prompt_efficiency
    return reached_rate(prompt_rate(quant, device), efficiency, fit.prompt_joules * operation_cost(quant), device)


def weight_operations(quant: QuantSizes, fit: SpeedFit) -> float:
    """Plain operations to unpack and multiply one weight."""
    if quant.is_half:
        return fit.half_operations
    return fit.k_operations if quant.is_k else fit.quant_operations


def other_decode_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit,
    depth: int,
) -> float:
    """Time of one further token of every parallel sequence after ``depth`` tokens.

    Bytes over bandwidth or the unpacking of weights over the arithmetic rate, whichever is slower, and a time per
    layer: each device and the host do their layers in turn. Weights are read once, the cache once per sequence.
    """
    shares = device_weights(model, quant, setting, devices)
    total = 0.0
    for idx in range(len(devices) + 1):
        share = shares[idx]
        device = devices[idx] if idx < len(devices) else host
        fit = fits[idx] if idx < len(devices) else host_fit
        if share["weights"] > 0:
            cache = kv_bytes(model, setting, share["layers"], depth) * setting.num_parallel
            efficiency = fit.half_decode_efficiency if quant.is_half else fit.decode_efficiency
            read = (share["weights"] + cache) / (device.bandwidth * efficiency)
            count = model.linear_flops * share["layers"] / model.num_layers + (
                model.head_flops if share["has_head"] else 0
            )
            unpacked = 0.0
            if device.shader_rate > 0:
                unpacked = count / 2 * weight_operations(quant, fit) / device.shader_rate
            total = (
                total
                + slower_of(read, unpacked)
                + fit.decode_layer_s * (share["layers"] + (1 if share["has_head"] else 0))
            )
    return total


def other_prompt_seconds(
    model: ModelSizes,
    quant: QuantSizes,
    setting: Setting,
    devices: Sequence[DeviceNumbers],
    fits: Sequence[SpeedFit],
    host: DeviceNumbers,
    host_fit: SpeedFit,
    num_tokens: int,
) -> float:
    """Time of a prompt of so many tokens: operations over rate, and a time per layer and batch.

    Layers on the host are brought to the first device over the bus, batch by batch, where that is faster.
    """
    shares = device_weights(model, quant, setting, devices)
    batches = floor((num_tokens + setting.micro_batch - 1) / setting.micro_batch)
    pairs = num_tokens * (num_tokens + 1) / 2
    linear = model.linear_flops * num_tokens / model.num_layers
    attended = model.attention_flops * pairs / model.num_layers
    total = 0.0
    for idx in range(len(devices) + 1):
        share = shares[idx]
        device = devices[idx] if idx < len(devices) else host
        fit = fits[idx] if idx < len(devices) else host_fit
        rate = reached_prompt_rate(quant, device, fit)
        work = (linear + attended) * share["layers"] + (model.head_flops if share["has_head"] else 0)
        seconds = work / rate + fit.prompt_layer_s * share["layers"] * batches
        if idx == len(devices) and idx > 0 and share["layers"] > 0 and devices[0].host_rate > 0:
            streamed = (
                work / reached_prompt_rate(quant, devices[0], fits[0])
                + batches * share["weights"] / devices[0].host_rate
            )
            seconds = min(seconds, streamed)
        total = total + seconds
    return total


def other_vision_seconds(model: ModelSizes, setting: Setting, device: DeviceNumbers, fit: SpeedFit) -> float:
    """Time of the tower and the projector for the prompt's pictures, in 16 bits."""
    flops = setting.num_images * (model.vision_flops + model.projector_flops)
    return flops / reached_rate(device.half_rate, fit.half_prompt_efficiency, 2 * fit.prompt_joules, device)
