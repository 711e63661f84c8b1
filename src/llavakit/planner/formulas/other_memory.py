"""Memory of other programs: llama.cpp and what is built on it, transformers, vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

from llavakit.planner.formulas.common import (
    HOST,
    MIB,
    cached_tokens,
    context_bytes,
    device_weights,
    kv_bytes,
    part,
    prompt_tokens,
)
from llavakit.planner.records import DeviceNumbers, ModelSizes, QuantSizes, Setting

__all__ = ["compute_buffer_bytes", "llama_cpp_parts", "processor_buffer_bytes", "torch_parts", "vllm_parts"]


def compute_buffer_bytes(model: ModelSizes, setting: Setting, is_partial: bool) -> int:
    """llama.cpp's buffer on a device: the largest of scores, activations and logits of one batch.

    Reproduces logged sizes. A model that lies only partly on devices keeps one dequantized matrix there as well.
    """
    batch = min(setting.micro_batch, setting.num_context_tokens)
    widest = model.hidden_size + model.vocab_size
    size = 4 * batch * widest + 2 * batch * setting.num_context_tokens
    if not setting.has_flash_attention:
        scores = 1 + 4 * model.hidden_size + setting.num_context_tokens * (1 + model.num_heads)
        size = 4 * batch * max(widest, scores)
    if is_partial:
        size = size + floor(model.hidden_size * model.vocab_size * 105 / 128)
    return size


def host_buffer_bytes(model: ModelSizes, setting: Setting) -> int:
    """llama.cpp's buffer on the host: mask and input of one batch."""
    batch = min(setting.micro_batch, setting.num_context_tokens)
    return 4 * batch * (setting.num_context_tokens + model.hidden_size)


def processor_buffer_bytes(model: ModelSizes, setting: Setting) -> int:
    """llama.cpp's buffer where there is no device, of a build of 2026: scores, a layer's work or logits, and the input.

    Reproduces what it logs (``benchmarks/llama_cpp_buffers.py``). Three rows of the feed-forward part are there at a
    time, since its activation is an operation of its own.
    """
    batch = min(setting.micro_batch, setting.num_context_tokens)
    work = 3 * model.intermediate_size + 4 * model.hidden_size
    mask = 2 * batch * setting.num_context_tokens
    if not setting.has_flash_attention:
        scores = 7 * model.hidden_size + setting.num_context_tokens * (1 + model.num_heads)
        work = max(work + model.hidden_size + setting.num_context_tokens, scores)
        mask = 0
    return 4 * batch * max(work, model.hidden_size + model.vocab_size) + mask


def llama_cpp_parts(model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers]) -> Any:
    """llama.cpp and what is built on it: layers on devices, the rest and the token table on the host."""
    parts = []
    shares = device_weights(model, quant, setting, devices)
    host = shares[len(devices)]
    is_partial = host["layers"] > 0
    positions = cached_tokens(model, setting, devices) * setting.num_parallel
    has_device = False
    is_vision_placed = False
    for idx in range(len(devices)):
        share = shares[idx]
        if share["weights"] > 0:
            has_device = True
            parts.append(part("weights", share["weights"], idx, "exact"))
            if setting.is_vision_on_device and not is_vision_placed:
                is_vision_placed = True
                parts.append(part("vision and projector", quant.vision_bytes, idx, "exact"))
                parts.append(part("vision buffer", model.vision_buffer_bytes, idx, "logged"))
            parts.append(part("key-value cache", kv_bytes(model, setting, share["layers"], positions), idx, "exact"))
            parts.append(part("compute buffer", compute_buffer_bytes(model, setting, is_partial), idx, "logged"))
            parts.append(part("driver context", context_bytes(devices[idx]), idx, "fitted"))
    parts.append(part("weights", host["weights"] + quant.table_bytes, HOST, "exact"))
    if not is_vision_placed:
        parts.append(part("vision and projector", quant.vision_bytes, HOST, "exact"))
        parts.append(part("vision buffer", model.vision_buffer_bytes, HOST, "logged"))
    if host["layers"] > 0:
        parts.append(part("key-value cache", kv_bytes(model, setting, host["layers"], positions), HOST, "exact"))
    size = host_buffer_bytes(model, setting) if has_device else processor_buffer_bytes(model, setting)
    parts.append(part("compute buffer", size, HOST, "logged"))
    parts.append(part("program", 150 * MIB, HOST, "assumed"))
    return parts


def torch_program_part(devices: Sequence[DeviceNumbers], program_bytes: int) -> Any:
    """Python and torch on the host beside devices; on a processor they are counted as its driver and libraries."""
    return part("program", program_bytes if devices[0].kind != "cpu" else 0, HOST, "assumed")


def torch_parts(
    model: ModelSizes, quant: QuantSizes, setting: Setting, devices: Sequence[DeviceNumbers], program_bytes: int
) -> Any:
    """Plan transformers: 16 bits, or 4 bits of bitsandbytes for all linear layers but the head.

    A block of 64 weights in 4 bits has one float32 scale. Of several devices, as with ``device_map="auto"``, each has
    layers in proportion to what it can use, and their part of the cache; the first has what comes before the layers,
    the last the head. Weights come through the host's memory file by file, for which nothing is counted.
    """
    matrices = model.hidden_size * (2 * model.hidden_size + 2 * model.kv_width + 3 * model.intermediate_size)
    layer = matrices + 2 * model.hidden_size
    head = model.hidden_size * model.vocab_size
    before = model.num_reference_parameters - model.num_layers * layer - head
    before_matrices = model.num_linear_parameters - model.num_layers * matrices
    positions = cached_tokens(model, setting, devices) * setting.num_parallel
    activations = (
        2 * prompt_tokens(model, setting) * setting.num_parallel * (8 * model.hidden_size + 4 * model.intermediate_size)
    )
    shares = device_weights(model, quant, setting, devices)
    parts = [torch_program_part(devices, program_bytes)]
    for idx in range(len(devices)):
        num_layers = shares[idx]["layers"]
        parameters = num_layers * layer + (head if shares[idx]["has_head"] else 0) + (before if idx == 0 else 0)
        shrunk = num_layers * matrices + (before_matrices if idx == 0 else 0)
        weights = 2 * parameters
        if setting.engine == "transformers-4bit":
            weights = weights - floor(shrunk * (2 - 0.5 - 4 / 64))
        place = HOST if devices[idx].kind == "cpu" else idx
        parts.append(part("weights", weights, place, "exact" if len(devices) == 1 else "assumed"))
        parts.append(part("key-value cache", 2 * half_cache_bytes(model, num_layers, positions), place, "exact"))
        parts.append(part("activations", activations, place, "assumed"))
        parts.append(part("driver context and libraries", context_bytes(devices[idx]) + 300 * MIB, place, "fitted"))
    return parts


def half_cache_bytes(model: ModelSizes, num_layers: int, positions: int) -> int:
    """Keys, or values, of some layers in 16 bits."""
    return 2 * num_layers * model.kv_width * positions


def vllm_parts(model: ModelSizes, setting: Setting, devices: Sequence[DeviceNumbers], program_bytes: int) -> Any:
    """VLLM: what must fit before it fills nine tenths of a device with cache blocks of 16 positions.

    Its profiling pass runs 2,048 tokens or the whole context and 256 rows of logits; its recorded graphs are assumed
    to take 0.6 GiB. Of several devices each has its part of every matrix and of every position's heads, and buffers in
    which they add up what they have, assumed to take 0.25 GiB.
    """
    count = len(devices)
    batch = max(2048, setting.num_context_tokens)
    activations = (
        2 * batch * (6 * model.hidden_size + floor(3 * model.intermediate_size / count)) + 4 * 256 * model.vocab_size
    )
    blocks = floor((cached_tokens(model, setting, devices) + 15) / 16) * setting.num_parallel
    parts = [torch_program_part(devices, program_bytes)]
    for idx in range(count):
        weights = floor(2 * model.num_reference_parameters / count)
        cache = floor(2 * half_cache_bytes(model, model.num_layers, 16 * blocks) / count)
        parts.append(part("weights", weights, idx, "exact" if count == 1 else "assumed"))
        parts.append(part("key-value cache", cache, idx, "exact"))
        parts.append(part("activations", activations, idx, "assumed"))
        parts.append(part("recorded graphs", 614 * MIB, idx, "assumed"))
        parts.append(part("exchange buffers", 256 * MIB if count > 1 else 0, idx, "assumed"))
        parts.append(part("driver context and libraries", context_bytes(devices[idx]) + 300 * MIB, idx, "fitted"))
        parts.append(part("held back", floor(devices[idx].memory_bytes / 10), idx, "exact"))
    return parts
