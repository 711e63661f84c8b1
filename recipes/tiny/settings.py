"""Sizes and budgets of `llava:tiny`, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig

__all__ = ["Budget", "Stage", "llava_config"]


def llava_config(*, vocab_size: int, image_token_id: int, pad_token_id: int) -> LlavaConfig:
    """Return the architecture: LLaVA-1.5 in small, 64 patches of 14 pixels."""
    return LlavaConfig(
        text_config=TextConfig(
            vocab_size=vocab_size, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0,
            hidden_act="silu", tie_word_embeddings=False,
        ),
        vision_config=VisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, num_channels=3,
            image_size=112, patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        ),
        image_token_id=image_token_id, vision_feature_layer=-2, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", multimodal_projector_bias=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=pad_token_id, dtype="float16",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training: AdamW, and Muon for the matrices between embeddings and head where it has a rate."""

    num_steps: int
    batch_size: int
    peak_lr: float
    num_warmup_steps: int
    peak_lr_muon: float | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Every stage; an hour and three quarters on two Zen 5 cores, with the evaluation.

    The last one's rates are a third of those that learn fastest in its first hundred steps: with those the decoder
    goes on taking one object for another until the rates have fallen.
    """

    vision: Stage = Stage(num_steps=2100, batch_size=48, peak_lr=1e-3, num_warmup_steps=150)
    reading: Stage = Stage(num_steps=1520, batch_size=48, peak_lr=9e-4, num_warmup_steps=30)
    seeing: Stage = Stage(num_steps=1500, batch_size=48, peak_lr=8e-4, num_warmup_steps=30)
    alignment: Stage = Stage(num_steps=1000, batch_size=32, peak_lr=3e-3, num_warmup_steps=20)
    instruction: Stage = Stage(num_steps=5000, batch_size=32, peak_lr=7e-4, peak_lr_muon=1.5e-3, num_warmup_steps=100)
