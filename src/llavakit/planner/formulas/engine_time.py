"""Time of this package's own engine on a processor, from the processor's bandwidth and its two arithmetic rates.

``products`` of a quantization are its weights by type. A type's products of one row take the slower of reading its
bytes and of unpacking and multiplying its weights; those of a prompt its operations, and one unpacking a pass.
"""

from __future__ import annotations

from llavakit.planner.formulas.common import kv_bytes, slower_of
from llavakit.planner.records import DeviceNumbers, EngineFit, ModelSizes, QuantProduct, QuantSizes, Setting

__all__ = ["engine_decode_seconds", "engine_prompt_seconds", "engine_vision_seconds", "row_seconds"]


def product_rate(product: QuantProduct, host: DeviceNumbers, fit: EngineFit) -> float:
    """Operations per second of many rows: 8-bit ones, or 16-bit ones for weights of 16 bits and more."""
    if product["is_half"]:
        return host.half_rate * fit.half_prompt_efficiency
    return host.int8_rate * fit.quant_prompt_efficiency * fit.pass_rates[product["type"]]


def row_seconds(product: QuantProduct, host: DeviceNumbers, fit: EngineFit, num_rows: int) -> float:
    """Time of one row's products, and what each further row adds."""
    read = product["bytes"] / (host.bandwidth * fit.read_efficiency)
    unpacked = product["weights"] * fit.row_operations[product["type"]] / host.shader_rate
    return slower_of(read, unpacked) + 2 * product["weights"] * (num_rows - 1) / product_rate(product, host, fit)


def cache_seconds(model: ModelSizes, setting: Setting, host: DeviceNumbers, fit: EngineFit, depth: int) -> float:
    """Time of attention of one token of every sequence over ``depth`` positions: reading the cache, or arithmetic."""
    read = kv_bytes(model, setting, model.num_layers, depth) / (host.bandwidth * fit.read_efficiency)
    numbers = 2 * model.num_layers * model.kv_width * depth
    operations = fit.half_cache_operations if setting.kv_block_bytes >= 64 else fit.small_cache_operations
    return setting.num_parallel * slower_of(read, numbers * operations / host.shader_rate)


def engine_decode_seconds(
    model: ModelSizes, quant: QuantSizes, setting: Setting, host: DeviceNumbers, fit: EngineFit, depth: int
) -> float:
    """Time of one further token of every sequence after ``depth`` tokens. Weights are unpacked once for all of them."""
    total = cache_seconds(model, setting, host, fit, depth) + fit.decode_layer_s * model.num_layers
    for product in quant.products:
        total = total + row_seconds(product, host, fit, setting.num_parallel)
    return total


def engine_prompt_seconds(
    model: ModelSizes, quant: QuantSizes, host: DeviceNumbers, fit: EngineFit, num_tokens: int
) -> float:
    """Time of a prompt in one pass: products, attention at the plain rate, and a time per layer.

    Only the last token goes through the head.
    """
    pairs = num_tokens * (num_tokens + 1) / 2
    attention = model.attention_flops * pairs / (host.shader_rate * fit.attention_efficiency)
    total = attention + fit.prompt_layer_s * model.num_layers
    for product in quant.products:
        if product["is_head"]:
            total = total + row_seconds(product, host, fit, 1)
        else:
            read = product["bytes"] / (host.bandwidth * fit.read_efficiency)
            unpacked = product["weights"] * fit.pass_operations[product["type"]] / host.shader_rate
            multiplied = 2 * product["weights"] * num_tokens / product_rate(product, host, fit)
            total = total + slower_of(read, unpacked + multiplied)
    return total


def engine_vision_seconds(model: ModelSizes, setting: Setting, host: DeviceNumbers, fit: EngineFit) -> float:
    """Time of the tower and the projector for the prompt's pictures, in 16 bits."""
    flops = setting.num_images * (model.vision_flops + model.projector_flops)
    return flops / (host.half_rate * fit.vision_efficiency)
