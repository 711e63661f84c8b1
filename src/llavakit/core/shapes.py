"""Every tensor of a model and every cost that follows from its shapes. Pure arithmetic.

One source for the loader's accounting, for ``show``, for ``bench`` and for planning.
"""

from __future__ import annotations

import math

from llavakit.core.config import LlavaConfig

__all__ = [
    "DTYPE_BYTES", "count_parameters", "decode_bytes", "decode_flops", "expected_tensors", "kv_bytes_per_token",
    "prefill_flops", "projector_flops", "vision_flops", "weight_bytes",
]  # fmt: skip

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def expected_tensors(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of ``model.Llava`` (tied embeddings once)."""
    shapes = {**_vision_tensors(config), **_projector_tensors(config), **_language_tensors(config)}
    if not config.text_config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.text_config.vocab_size, config.text_config.hidden_size)
    return shapes


def _vision_tensors(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    vision = config.vision_config
    width, inner = vision.hidden_size, vision.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.embeddings.class_embedding": (width,),
        "vision_tower.embeddings.patch_embedding.weight": (
            width,
            vision.num_channels,
            vision.patch_size,
            vision.patch_size,
        ),
        "vision_tower.embeddings.position_embedding.weight": (vision.num_patches + 1, width),
        "vision_tower.pre_layernorm.weight": (width,),
        "vision_tower.pre_layernorm.bias": (width,),
    }
    for idx in range(config.num_vision_blocks):
        prefix = f"vision_tower.encoder.layers.{idx}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (width, width)
            shapes[f"{prefix}.self_attn.{name}.bias"] = (width,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}.{name}.weight"] = (width,)
            shapes[f"{prefix}.{name}.bias"] = (width,)
        shapes[f"{prefix}.mlp.fc1.weight"] = (inner, width)
        shapes[f"{prefix}.mlp.fc1.bias"] = (inner,)
        shapes[f"{prefix}.mlp.fc2.weight"] = (width, inner)
        shapes[f"{prefix}.mlp.fc2.bias"] = (width,)
    return shapes


def _projector_tensors(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    width, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
    prefix = "multi_modal_projector"
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.linear_1.weight": (hidden, width),
        f"{prefix}.linear_2.weight": (hidden, hidden),
    }
    if config.multimodal_projector_bias:
        shapes |= {f"{prefix}.linear_1.bias": (hidden,), f"{prefix}.linear_2.bias": (hidden,)}
    return shapes


def _language_tensors(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    text = config.text_config
    hidden, inner = text.hidden_size, text.intermediate_size
    q_size, kv_size = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {"language_model.embed_tokens.weight": (text.vocab_size, hidden)}
    for idx in range(text.num_hidden_layers):
        prefix = f"language_model.layers.{idx}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (q_size, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv_size, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv_size, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, q_size),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
    shapes["language_model.norm.weight"] = (hidden,)
    return shapes


def count_parameters(config: LlavaConfig) -> int:
    """Parameters that the model holds and uses."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())


def weight_bytes(config: LlavaConfig, dtype: str) -> int:
    """Bytes of all weights in one dtype."""
    return count_parameters(config) * DTYPE_BYTES[dtype]


def kv_bytes_per_token(config: LlavaConfig, dtype: str) -> int:
    """Bytes of keys and values of one position, all layers; ``q8_0`` has 34 bytes for 32 numbers."""
    text = config.text_config
    count = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return count // 32 * 34 if dtype == "q8_0" else count * DTYPE_BYTES[dtype]


def vision_flops(config: LlavaConfig) -> int:
    """Floating-point operations (multiply and add are two) of one picture through the tower."""
    vision = config.vision_config
    tokens, width, inner = vision.num_patches + 1, vision.hidden_size, vision.intermediate_size
    patches = 2 * vision.num_patches * width * vision.num_channels * vision.patch_size**2
    per_block = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    return patches + config.num_vision_blocks * per_block


def projector_flops(config: LlavaConfig) -> int:
    """Floating-point operations of one picture through the projector."""
    width, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
    return 2 * config.num_image_tokens * (width * hidden + hidden * hidden)


def _layer_weights(config: LlavaConfig) -> int:
    text = config.text_config
    q_size, kv_size = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    return text.hidden_size * (2 * q_size + 2 * kv_size + 3 * text.intermediate_size)


def prefill_flops(config: LlavaConfig, num_tokens: int, *, num_cached_tokens: int = 0) -> int:
    """Floating-point operations of a prompt; logits of its last token only, attention counted causally."""
    text = config.text_config
    linear = 2 * num_tokens * _layer_weights(config)
    pairs = num_tokens * num_cached_tokens + num_tokens * (num_tokens + 1) // 2
    attention = 4 * pairs * text.num_attention_heads * text.head_dim
    return text.num_hidden_layers * (linear + attention) + 2 * text.hidden_size * text.vocab_size


def decode_flops(config: LlavaConfig, num_context_tokens: int) -> int:
    """Floating-point operations of one further token after ``num_context_tokens``."""
    return prefill_flops(config, 1, num_cached_tokens=num_context_tokens)


def decode_bytes(config: LlavaConfig, dtype: str, num_context_tokens: int) -> int:
    """Bytes that one further token must read: all decoder weights, the head, and the cache."""
    text = config.text_config
    weights = text.num_hidden_layers * _layer_weights(config) + text.hidden_size * text.vocab_size
    return weights * DTYPE_BYTES[dtype] + num_context_tokens * kv_bytes_per_token(config, dtype)
