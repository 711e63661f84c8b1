"""A small LLaVA-1.5 as a pair of GGUF files, written by the formats' own package, and the same weights as floats.

Names and orders are spelled out here a second time, on purpose: the reader's own table would agree with itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llavakit.core.config import LlavaConfig
from tests.unit.kernels.quantized_oracle import make_blocks

__all__ = ["gguf_config", "write_pair"]

_TEXT = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_VISION = {
    "layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
_OTHERS = {
    "language_model.embed_tokens.weight": "token_embd.weight", "language_model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "vision_tower.embeddings.class_embedding": "v.class_embd",
    "vision_tower.embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "vision_tower.embeddings.position_embedding.weight": "v.position_embd.weight",
    "vision_tower.pre_layernorm.weight": "v.pre_ln.weight", "vision_tower.pre_layernorm.bias": "v.pre_ln.bias",
    "multi_modal_projector.linear_1.weight": "mm.0.weight", "multi_modal_projector.linear_1.bias": "mm.0.bias",
    "multi_modal_projector.linear_2.weight": "mm.2.weight", "multi_modal_projector.linear_2.bias": "mm.2.bias",
}  # fmt: skip


def gguf_config(config: LlavaConfig) -> dict[str, Any]:
    """Metadata of both files, by key."""
    text, vision = config.text_config, config.vision_config
    return {
        "llama.context_length": text.max_position_embeddings, "llama.embedding_length": text.hidden_size,
        "llama.block_count": text.num_hidden_layers, "llama.feed_forward_length": text.intermediate_size,
        "llama.attention.head_count": text.num_attention_heads,
        "llama.attention.head_count_kv": text.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": text.rms_norm_eps, "llama.rope.freq_base": text.rope_theta,
        "clip.vision.image_size": vision.image_size, "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size, "clip.vision.projection_dim": 768,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": vision.layer_norm_eps,
        "clip.vision.block_count": config.num_vision_blocks,
    }  # fmt: skip


def write_pair(
    folder: Path, config: LlavaConfig, *, types: tuple[str, ...], seed: int = 0, swap_names: bool = False,
    metadata: dict[str, Any] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Write ``model.gguf`` and ``mmproj-model-f16.gguf`` with random weights; return the weights by our names.

    Parameters
    ----------
    folder : Path
    config : LlavaConfig
    types : tuple of str
        Quantized types for the decoder's matrices, in turn.
    seed : int
    swap_names : bool
        Name the tower's feed-forward matrices as the old converter did.
    metadata : dict, optional
        Keys to add or replace; None leaves one out.
    """
    import gguf

    from llavakit.model.loader import build_meta_model

    keys = gguf_config(config) | (metadata or {})
    text = gguf.GGUFWriter(folder / "model.gguf", "llama")
    vision = gguf.GGUFWriter(folder / "mmproj-model-f16.gguf", "clip")
    vision.add_key_value("clip.projector_type", "mlp", gguf.GGUFValueType.STRING)
    for key, value in keys.items():
        if value is None:
            continue
        kind = gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.FLOAT32
        (text if key.startswith("llama") else vision).add_key_value(key, value, kind)
    _add_vocabulary(text, config.text_config.vocab_size)
    rng = np.random.default_rng(seed)
    weights: dict[str, torch.Tensor] = {}
    num_matrices = 0
    for name, parameter in build_meta_model(config).named_parameters():
        shape = tuple(parameter.shape)
        is_text = name.startswith(("language_model", "lm_head"))
        target = _gguf_name(name, swap_names=swap_names)
        writer = text if is_text else vision
        if is_text and len(shape) == 2:
            dtype = types[num_matrices % len(types)]
            num_matrices += 1
            stored, values = _random_blocks(dtype, shape, seed=seed + num_matrices)
            writer.add_tensor(target, stored, raw_dtype=gguf.GGMLQuantizationType[dtype.upper()])
        else:
            values = rng.standard_normal(shape).astype(np.float32) * (0.1 if "norm" in name else 0.3)
            values = values + 1 if "norm" in name and name.endswith("weight") else values
            is_half = len(shape) > 1
            values = values.astype(np.float16 if is_half else np.float32)
            writer.add_tensor(target, values)
        order = values.astype(np.float32)
        if target.endswith(("attn_q.weight", "attn_k.weight")) and is_text:
            heads = (
                config.text_config.num_attention_heads if "attn_q" in target else config.text_config.num_key_value_heads
            )
            order = order.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        weights[name] = torch.from_numpy(order.copy())
    for writer in (text, vision):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return weights


def _random_blocks(dtype: str, shape: tuple[int, ...], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import gguf.quants

    blocks = make_blocks(dtype, shape[0], shape[1], seed, scale=1.0)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[dtype.upper()])
    # Scales were drawn as if weights were of any size: bring them to that of a layer by a power of two, which is exact.
    factor = 2.0 ** np.round(np.log2(0.3 / values.std()))
    blocks = make_blocks(dtype, shape[0], shape[1], seed, scale=float(factor))
    return blocks, gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[dtype.upper()])


def _gguf_name(name: str, *, swap_names: bool) -> str:
    if name in _OTHERS:
        return _OTHERS[name]
    stem, _, leaf = name.rpartition(".")
    if name.startswith("language_model"):
        _, _, number, part = stem.split(".", 3)
        return f"blk.{number}.{_TEXT[part]}.{leaf}"
    _, _, _, number, part = stem.split(".", 4)
    target = _VISION[part]
    if swap_names:
        target = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}.get(target, target)
    return f"v.blk.{number}.{target}.{leaf}"


def _add_vocabulary(writer: Any, size: int) -> None:
    """Bytes, letters and their pairs: enough to be a sentencepiece model."""
    import gguf

    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁"]
    types = [2, 3, 3] + [6] * 256 + [1]
    while len(pieces) < size:
        idx = len(pieces) - 260
        pieces.append(chr(97 + idx) if idx < 26 else f"[PAD{len(pieces)}]")
        types.append(1 if idx < 26 else 5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces[:size])
    writer.add_token_scores([float(-idx) for idx in range(size)])
    writer.add_token_types([gguf.TokenType(kind) for kind in types[:size]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
