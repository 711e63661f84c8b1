"""One pass over padded rows: logits of every position, and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.core.errors import PromptError
from llavakit.dropin.inputs import TensorPrompt
from llavakit.model.llava import Llava

__all__ = ["compute_logits", "encode_pixels", "keep_positions", "shifted_loss"]

_IGNORED_LABEL = -100


def compute_logits(model: Llava, prompts: Sequence[TensorPrompt], mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute each row as if it were alone.

    Parameters
    ----------
    model : Llava
    prompts : sequence of B TensorPrompt
        Rows without padding.
    mask : bool tensor of shape (B, T)
        Where the rows' tokens stand.

    Returns
    -------
    logits : tensor of shape (B, T, V)
        Zero at hidden positions.
    features : tensor of shape (N, P, D) or None
        Of the pictures of all rows.
    """
    vocab_size = model.config.text_config.vocab_size
    logits = torch.zeros((*mask.shape, vocab_size), dtype=model.dtype, device=model.device)
    features = [
        None if prompt.pixel_values is None else encode_pixels(model, prompt.pixel_values) for prompt in prompts
    ]
    for row, prompt, mine, is_seen in zip(logits, prompts, features, mask, strict=True):
        row[is_seen.to(model.device)] = _forward_row(model, prompt, mine)
    encoded = [mine for mine in features if mine is not None]
    return logits, torch.cat(encoded) if encoded else None


def encode_pixels(model: Llava, pixels: np.ndarray) -> Tensor:
    """Map normalised pixels (N, 3, S, S) to image features (N, P, D), each picture as if it were alone."""
    pictures = torch.from_numpy(pixels).to(model.device)
    return torch.cat([model.encode_images(picture[None]) for picture in pictures])


def keep_positions(logits: Tensor, kept: int | Tensor) -> Tensor:
    """Return logits (B, T, V) of the last so many positions, 0 for all, or of those that a tensor (n,) names.

    Raises
    ------
    PromptError
        If a position is not there, or ``kept`` is neither.
    """
    num_positions = logits.shape[1]
    if isinstance(kept, Tensor) and kept.dim() == 1 and not (kept.is_floating_point() or kept.dtype == torch.bool):
        if kept.numel() and not (-num_positions <= int(kept.min()) and int(kept.max()) < num_positions):
            raise PromptError(f"logits_to_keep names positions {kept.tolist()}; the input has {num_positions}.")
        return logits[:, kept.to(logits.device)]
    if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
        raise PromptError(f"logits_to_keep must be a number from 0, or a tensor of positions (n,); got {kept!r:.100}.")
    return logits[:, -kept:] if kept else logits


def shifted_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy, float32, of label t + 1 under the logits of position t, where t is not hidden.

    It has no gradient: logits are computed without one, and training is not part of this release.

    Raises
    ------
    PromptError
        If labels and logits differ in shape.
    """
    if labels.shape != logits.shape[:2]:
        raise PromptError(f"labels has shape {tuple(labels.shape)}, but input_ids has {tuple(logits.shape[:2])}.")
    targets = labels[:, 1:].to(logits.device).masked_fill(~mask[:, :-1].to(logits.device), _IGNORED_LABEL)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED_LABEL)


def _forward_row(model: Llava, prompt: TensorPrompt, features: Tensor | None) -> Tensor:
    """Return logits (T, V) of one prompt without padding."""
    embeds = model.embed(torch.tensor([prompt.token_ids], device=model.device), features)
    positions = torch.arange(embeds.shape[1], device=model.device)[None]
    return model(embeds, positions)[0]  # type: ignore[no-any-return]
