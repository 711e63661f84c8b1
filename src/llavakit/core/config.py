"""What a LLaVA-1.5 model is, in numbers: frozen dataclasses, validated once, no defaults for mathematics.

Field names are Hugging Face's. Reading them from the ``config.json`` dialects is ``core/config_json.py``;
this file only says which combinations make a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llavakit.core.errors import ConfigError

__all__ = ["CLIP_MEAN", "CLIP_STD", "LlavaConfig", "TextConfig", "VisionConfig"]

# Of the pictures that CLIP was trained on, in fractions of white: red, green, blue.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FeatureStrategy = Literal["default", "full"]

# Generous ceilings: they stop a hostile or damaged file from asking for absurd memory, not a real model.
_MAX_SIZE = 1 << 20
_MAX_LAYERS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """CLIP vision transformer.

    Parameters
    ----------
    num_hidden_layers : int
        Blocks of the full tower; LLaVA runs only those below the feature layer.
    hidden_act : str
        ``quick_gelu`` or ``gelu``.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size"):
            _check_int(f"vision_config.{name}", getattr(self, name), high=_MAX_SIZE)
        _check_int("vision_config.num_hidden_layers", self.num_hidden_layers, high=_MAX_LAYERS)
        if self.num_channels != 3:
            raise ConfigError(f"vision_config.num_channels is {self.num_channels}; LLaVA-1.5 pictures have 3 channels.")
        _check_divides("vision_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_divides("vision_config.image_size", self.image_size, "patch_size", self.patch_size)
        _check_eps("vision_config.layer_norm_eps", self.layer_norm_eps)
        _check_choice("vision_config.hidden_act", self.hidden_act, ("quick_gelu", "gelu"))

    @property
    def num_patches(self) -> int:
        """Patches of one picture, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """LLaMA decoder.

    Parameters
    ----------
    max_position_embeddings : int
        The context, in tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    hidden_act: str
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                     "head_dim", "max_position_embeddings"):  # fmt: skip
            _check_int(f"text_config.{name}", getattr(self, name), high=1 << 24)
        _check_int("text_config.num_hidden_layers", self.num_hidden_layers, high=_MAX_LAYERS)
        _check_divides("text_config.num_attention_heads", self.num_attention_heads, "num_key_value_heads",
                       self.num_key_value_heads)  # fmt: skip
        if self.head_dim % 2:
            raise ConfigError(f"text_config.head_dim is {self.head_dim}; rotary positions need an even number.")
        _check_eps("text_config.rms_norm_eps", self.rms_norm_eps)
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 1.0):
            raise ConfigError(f"text_config.rope_theta is {self.rope_theta}; it must be a finite number above 1.")
        _check_choice("text_config.hidden_act", self.hidden_act, ("silu",))


@dataclass(frozen=True, kw_only=True, slots=True)
class LlavaConfig:
    """A whole LLaVA-1.5 model.

    Parameters
    ----------
    image_token_id : int
        The id that stands for one image feature in a prompt. It may lie just above the vocabulary
        (original checkpoints have no such token); it is never embedded.
    vision_feature_layer : int
        Index into the tower's hidden states, 0 being the state after the first layer norm; negative
        counts from the end, so -2 is the output of the last block but one.
    vision_feature_select_strategy : {"default", "full"}
        ``default`` drops the class token.
    dtype : str
        ``float32``, ``float16`` or ``bfloat16``: how the checkpoint says it is stored.
    """

    text_config: TextConfig
    vision_config: VisionConfig
    image_token_id: int
    vision_feature_layer: int
    vision_feature_select_strategy: FeatureStrategy
    projector_hidden_act: str
    multimodal_projector_bias: bool
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int | None
    dtype: str

    def __post_init__(self) -> None:
        num_states = self.vision_config.num_hidden_layers + 1
        if not -num_states <= self.vision_feature_layer < num_states:
            raise ConfigError(
                f"vision_feature_layer is {self.vision_feature_layer}, but the vision tower has "
                f"{self.vision_config.num_hidden_layers} blocks, so {-num_states} to {num_states - 1} are possible."
            )
        _check_choice("vision_feature_select_strategy", self.vision_feature_select_strategy, ("default", "full"))
        _check_choice("projector_hidden_act", self.projector_hidden_act, ("gelu",))
        _check_choice("dtype", self.dtype, ("float32", "float16", "bfloat16"))
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if not 0 <= value < self.text_config.vocab_size:
                raise ConfigError(f"{name} is {value}; the vocabulary has {self.text_config.vocab_size} entries.")
        if not 0 <= self.image_token_id <= self.text_config.vocab_size:
            raise ConfigError(
                f"image_token_id is {self.image_token_id}; it must lie in the vocabulary of "
                f"{self.text_config.vocab_size} entries or just above it."
            )

    @property
    def num_vision_blocks(self) -> int:
        """Blocks of the vision tower that the feature layer needs."""
        if self.vision_feature_layer >= 0:
            return self.vision_feature_layer
        return self.vision_config.num_hidden_layers + 1 + self.vision_feature_layer

    @property
    def num_image_tokens(self) -> int:
        """Prompt positions that one picture takes."""
        return self.vision_config.num_patches + (self.vision_feature_select_strategy == "full")

    @property
    def max_context_tokens(self) -> int:
        """Prompt and answer together."""
        return self.text_config.max_position_embeddings


def _check_int(name: str, value: object, *, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}.")
    if not 1 <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be between 1 and {high}.")


def _check_eps(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0.0 < value < 1.0):
        raise ConfigError(f"{name} is {value}; it must be a finite number between 0 and 1.")


def _check_divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{name} is {value}, which is not a multiple of {by_name} ({by}).")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; supported: {', '.join(choices)}.")
