"""Padded tensors in, prompts of the engine out.

The engine knows no padding: each row of ``input_ids`` becomes a prompt of its own, without the positions
that ``attention_mask`` hides, and takes as many pictures as it has image placeholders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, PromptError

__all__ = [
    "REFUSED_INPUTS",
    "TensorPrompt",
    "as_pixels",
    "check_input_ids",
    "infer_attention_mask",
    "refuse_inputs",
    "split_rows",
]


# Arguments of transformers' forward and generate that need parts this model does not hand out.
REFUSED_INPUTS = {
    "inputs_embeds": "prompts are given as input_ids",
    "past_key_values": "the key-value cache belongs to the engine, which reuses it by itself",
    "position_ids": "positions follow from attention_mask",
    "mm_encoder_outputs": "picture features are cached by the engine",
    "logits_processor": "only the settings of GenerationConfig change the scores",
    "stopping_criteria": "use stop_strings, eos_token_id or max_new_tokens",
    "prefix_allowed_tokens_fn": "constrained decoding is not part of this release",
    "assistant_model": "assisted decoding is not part of this release",
    "negative_prompt_ids": "guidance is not part of this release",
    "negative_prompt_attention_mask": "guidance is not part of this release",
    "custom_generate": "no foreign generation code is run",
    "synced_gpus": "a model is on one device",
    "vision_feature_layer": "it is fixed by config.json",
    "vision_feature_select_strategy": "it is fixed by config.json",
    "output_attentions": "attention weights are never built",
    "output_hidden_states": "hidden states are not handed out",
    "cache_position": "positions follow from attention_mask",
}


@dataclass(frozen=True)
class TensorPrompt:
    """One row as the engine takes it (``engine.EnginePrompt``)."""

    token_ids: tuple[int, ...]
    pixel_values: np.ndarray | None
    image_keys: tuple[str, ...]
    image_decode_s: float = 0.0
    image_resize_s: float = 0.0


def check_input_ids(input_ids: object, config: LlavaConfig) -> Tensor:
    """Return ``input_ids`` as a (B, T) integer tensor on the CPU.

    Raises
    ------
    PromptError
        If it is no such tensor, is empty, or holds ids outside of the vocabulary.
    """
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        found = f"{input_ids.dtype} tensor" if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise PromptError(
            f"input_ids must be an integer tensor, got a {found}. Call the processor with return_tensors='pt'."
        )
    if input_ids.dim() != 2 or not input_ids.numel():
        raise PromptError(f"input_ids must have shape (batch, length), both at least 1; got {tuple(input_ids.shape)}.")
    low, high, vocab_size = int(input_ids.min()), int(input_ids.max()), config.text_config.vocab_size
    if low < 0 or high >= max(vocab_size, config.image_token_id + 1):
        raise PromptError(
            f"input_ids holds {low if low < 0 else high}, but the vocabulary has {vocab_size} entries. "
            "The processor is probably another model's."
        )
    return input_ids.detach().cpu()


def infer_attention_mask(input_ids: Tensor, *, pad_token_id: int | None, eos_token_ids: Sequence[int]) -> Tensor:
    """Hide padding when no mask was given, by transformers' rule: only if padding is not also an end token."""
    if pad_token_id is None or pad_token_id in eos_token_ids:
        return torch.ones_like(input_ids)
    return (input_ids != pad_token_id).to(input_ids.dtype)


def split_rows(
    input_ids: Tensor, attention_mask: Tensor | None, pixel_values: Tensor | None, config: LlavaConfig
) -> list[TensorPrompt]:
    """Cut a padded batch into prompts.

    Parameters
    ----------
    input_ids : integer tensor of shape (B, T)
        From `check_input_ids`.
    attention_mask : tensor of shape (B, T), optional
        0 hides a position.
    pixel_values : floating tensor of shape (N, 3, S, S), optional
        The pictures of all rows, in order.
    config : LlavaConfig

    Raises
    ------
    PromptError
        If shapes disagree, a row is hidden entirely, or placeholders and pictures do not match.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.detach().cpu()
    if mask.shape != input_ids.shape:
        raise PromptError(f"attention_mask has shape {tuple(mask.shape)}, but input_ids has {tuple(input_ids.shape)}.")
    rows = [ids[is_seen].tolist() for ids, is_seen in zip(input_ids, mask.bool(), strict=True)]
    if empty := [idx for idx, row in enumerate(rows) if not row]:
        raise PromptError(f"row {empty[0]} of input_ids is hidden entirely by attention_mask; a prompt needs a token.")
    pixels = None if pixel_values is None else as_pixels(pixel_values, config)
    counts = [_count_images(idx, row, config) for idx, row in enumerate(rows)]
    num_pixels = 0 if pixels is None else len(pixels)
    if sum(counts) != num_pixels:
        raise PromptError(
            f"input_ids has places for {sum(counts)} pictures ({config.num_image_tokens} image tokens each), but "
            f"pixel_values holds {num_pixels}. Pass ids and pixels of one processor call."
        )
    prompts, start = [], 0
    for row, count in zip(rows, counts, strict=True):
        mine = None if pixels is None or not count else pixels[start : start + count]
        keys = () if mine is None else tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in mine)
        prompts.append(TensorPrompt(tuple(row), mine, keys))
        start += count
    return prompts


def as_pixels(pixel_values: object, config: LlavaConfig) -> np.ndarray:
    """Return ``pixel_values`` as a float32 array (N, 3, S, S).

    Raises
    ------
    PromptError
        If it is no floating tensor of this shape.
    """
    side = config.vision_config.image_size
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        raise PromptError("pixel_values must be a floating tensor. Call the processor with return_tensors='pt'.")
    if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
        raise PromptError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; this model needs (pictures, 3, {side}, {side})."
        )
    # Through float32, which holds every float16 and bfloat16 value exactly.
    return np.ascontiguousarray(pixel_values.detach().cpu().float().numpy())


def _count_images(row_idx: int, row: list[int], config: LlavaConfig) -> int:
    num_tokens = row.count(config.image_token_id)
    count, rest = divmod(num_tokens, config.num_image_tokens)
    if rest:
        raise PromptError(
            f"row {row_idx} of input_ids has {num_tokens} image tokens, which is no multiple of the "
            f"{config.num_image_tokens} that one picture takes. Expand placeholders with this model's processor."
        )
    return count


def refuse_inputs(inputs: Mapping[str, Any]) -> None:
    """Refuse arguments of a call by name, unless they ask for nothing.

    Raises
    ------
    ConfigError
    """
    for name, value in inputs.items():
        if name not in REFUSED_INPUTS:
            raise ConfigError(f"the model does not take an argument {name!r}; check its spelling or leave it out.")
        is_empty = isinstance(value, list | tuple) and not value
        if value is not None and value is not False and not is_empty:
            raise ConfigError(f"{name} is not supported: {REFUSED_INPUTS[name]}.")
