"""A random-weight `Llava` without any files, and prompts for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig
from llavakit.model.llava import Llava

__all__ = ["NumberDecoder", "RawPrompt", "make_config", "make_model", "make_prompt"]

_VOCAB_SIZE = 97


@dataclass(frozen=True)
class RawPrompt:
    """The engine's view of a prompt."""

    token_ids: tuple[int, ...]
    pixel_values: np.ndarray | None
    image_keys: tuple[str, ...]
    image_decode_s: float = 0.0
    image_resize_s: float = 0.0


class NumberDecoder:
    """Shows a token as its number and a space."""

    def push(self, token_id: int) -> str:
        return f"{token_id} "

    def finish(self) -> str:
        return ""


def make_config(**text: Any) -> LlavaConfig:
    """Four picture positions per image, two decoder layers, grouped key heads."""
    text_config = TextConfig(
        vocab_size=_VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=160, rms_norm_eps=1e-5, rope_theta=10000.0,
        hidden_act="silu", tie_word_embeddings=False,
    )  # fmt: skip
    vision_config = VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_channels=3, image_size=28,
        patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    return LlavaConfig(
        text_config=replace(text_config, **text), vision_config=vision_config, image_token_id=_VOCAB_SIZE,
        vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
        multimodal_projector_bias=True, bos_token_id=1, eos_token_id=2, pad_token_id=None, dtype="float32",
    )  # fmt: skip


def make_model(*, seed: int = 0, config: LlavaConfig | None = None) -> Llava:
    """Return a model whose weights are wide enough that attention is far from uniform."""
    torch.manual_seed(seed)
    model = Llava(config or make_config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            parameter.requires_grad_(False)
    return model


def make_prompt(model: Llava, *, num_images: int, seed: int, num_words: int = 6) -> RawPrompt:
    """Return random words around random pictures; the same seed gives the same pictures."""
    generator = np.random.default_rng(seed)
    config = model.config
    ids = [config.bos_token_id]
    for _ in range(num_images):
        ids += generator.integers(3, _VOCAB_SIZE, 3).tolist() + [config.image_token_id] * config.num_image_tokens
    ids += generator.integers(3, _VOCAB_SIZE, num_words).tolist()
    side = config.vision_config.image_size
    pictures = np.random.default_rng((seed, 1))
    pixels = pictures.standard_normal((num_images, 3, side, side), dtype=np.float32) if num_images else None
    keys = () if pixels is None else tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels)
    return RawPrompt(tuple(ids), pixels, keys)
