"""Memory of this package's own engine."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

from llavakit.planner.formulas.common import HOST, MIB, cached_tokens, context_bytes, kv_bytes, part, prompt_tokens
from llavakit.planner.records import DeviceNumbers, ModelSizes, QuantSizes, Setting

__all__ = ["llavakit_activation_bytes", "llavakit_parts"]


def module_activation_bytes(model: ModelSizes, setting: Setting, num_tokens: int) -> int:
    """Largest set of float32 activations held at once in a prompt, layer by layer, with the pictures' features.

    Attention holds the embeddings, the layer's input, its norm, query, key, value, what they give and its projection,
    and three more copies while keys and values are written in 8 bits. The widest product holds the embeddings, the
    layer's input, its output so far, its norm and its result, and gate and up.
    """
    block = 4 * num_tokens * model.hidden_size
    attention = block * (8 if setting.kv_block_bytes >= 64 else 11)
    product = 6 * block + 8 * num_tokens * model.intermediate_size
    return 8 * setting.num_images * model.num_image_tokens * model.hidden_size + max(attention, product)


def llavakit_activation_bytes(model: ModelSizes, quant: QuantSizes, setting: Setting, num_tokens: int) -> int:
    """Float32 activations of a prompt in this package's engine on a CPU, all layers in one native call.

    Held are the embeddings, their copy that the layers change, the result, and what the call needs: a token's norm, and
    either its heads' products, before and after rotation, or gate and up; and 8-bit copies of 960 inputs of the widest
    product. Beside them are the pictures' features; or before them, the tower's activations.

    The C library gives blocks of 32 MiB and more back to the system at once and keeps smaller ones. What the call
    needed is free again when the head's weights are first read, so only what is more counts.
    """
    block = 4 * num_tokens * model.hidden_size
    heads = 2 * model.hidden_size + 3 * model.kv_width
    scratch = block + 4 * num_tokens * max(heads, 2 * model.intermediate_size)
    packed = floor(9 * min(num_tokens, 960) * model.intermediate_size / 8)
    decoder = 3 * block + scratch + packed
    if scratch >= 32 * MIB:
        decoder = max(3 * block, decoder - quant.head_bytes)
    features = 8 * setting.num_images * model.num_image_tokens * model.hidden_size
    tower = 4 * model.vision_tokens * (4 * model.vision_width + 2 * model.vision_inner)
    return features + max(decoder, tower if setting.num_images > 0 else 0)


def llavakit_parts(
    model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers], program_bytes: int
) -> Any:
    """Our engine. On a CPU the mapped file and what one prompt and its answer use of the cache.

    The cache commits a page when a position in it is first written, so that a large context costs nothing until it is
    used. The vocabulary takes 800 bytes a piece, as measured, in the tables of two directions. On a GPU weights are 16
    bits wide, whatever the file's types.
    """
    positions = cached_tokens(model, setting, devices) * setting.num_parallel
    if len(devices) > 0 and devices[0].kind != "cpu":
        half = floor(module_activation_bytes(model, setting, prompt_tokens(model, setting)) / 2)
        return [
            part("weights", 2 * model.num_parameters, 0, "exact"),
            part("key-value cache", kv_bytes(model, setting, model.num_layers, positions), 0, "exact"),
            part("activations", half, 0, "fitted"),
            part("driver context", context_bytes(devices[0]) + 300 * MIB, 0, "fitted"),
            part("program", program_bytes, HOST, "measured"),
        ]
    cache = kv_bytes(model, setting, model.num_layers, positions)
    activations = llavakit_activation_bytes(model, quant, setting, prompt_tokens(model, setting))
    return [
        part("weights", quant.language_bytes - quant.table_bytes, HOST, "exact"),
        part("vision and projector", quant.vision_bytes if setting.num_images > 0 else 0, HOST, "exact"),
        part("key-value cache", cache, HOST, "exact"),
        part("activations", activations, HOST, "fitted"),
        part("vocabulary", 800 * model.vocab_size, HOST, "measured"),
        part("program", program_bytes, HOST, "measured"),
    ]
