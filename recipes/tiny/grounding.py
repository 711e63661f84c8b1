"""What the decoder is taught beside its answers: where the object lies that a phrase names.

A question about a place has one bit or two in its answer, which is little to learn from: a decoder that only sees
answers finds out late that "the red circle" must be looked up in the picture. The renderer knows where the red circle
is. So at the last token of every phrase that names exactly one object, a throw-away head reads the place from the
decoder's stream, as the dense heads read the tower's patches. Where a question names two objects, a second head reads
from the last token before the answer how far they lie apart.

To read a place the decoder must look there, and that it finds out late as well: until one of its heads happens to match
a phrase with a patch, nothing tells the head that it should. So one attention head is told where to look from a phrase
(`gaze_at_patches`), and two are told to look back from the end of a question at the two phrases it compares
(`gaze_at_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.model.layers import apply_rotary
from recipes.tiny.scenes import COLOR_NAMES, SHAPES, Scene

__all__ = ["Gaze", "Mention", "PlaceHead", "find_mentions", "gaze_at_patches", "gaze_at_tokens"]

_NOUNS = "|".join((*SHAPES, "object", "shape"))
_PHRASE = re.compile(rf"\b(?:(?P<size>small|large) )?(?:(?P<color>{'|'.join(COLOR_NAMES)}) )?(?P<shape>{_NOUNS})\b")


@dataclass(frozen=True)
class Mention:
    """A phrase that ends before ``end`` and names the object at (``x``, ``y``), -1 to 1 across the padded square."""

    end: int
    x: float
    y: float


def find_mentions(text: str, scene: Scene) -> Iterator[Mention]:
    """Find the phrases that mean one object of the scene and no other."""
    for match in _PHRASE.finditer(text):
        size, color, shape = match["size"], match["color"], match["shape"]
        meant = [
            other
            for other in scene.shapes
            if shape in (other.shape, "object", "shape")
            and color in (other.color, None)
            and (size is None or (size == "large") == other.is_large)
        ]
        if len(meant) == 1:
            square = max(scene.width, scene.height)
            yield Mention(
                match.end(), (meant[0].x * 2 - 1) * scene.width / square, (meant[0].y * 2 - 1) * scene.height / square
            )


class PlaceHead(nn.Module):
    """Throw-away head: from the decoder's stream to a place, or to the way from one place to another.

    Parameters
    ----------
    width : int
        D of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.place = nn.Linear(width, 2)

    def loss(self, stream: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
        """Compare (M, D) at M tokens with what they stand for, (M, 2) in half pictures.

        Returns the mean squared error, and its root as a fraction of the picture.
        """
        error = F.mse_loss(self.place(self.norm(stream)).float(), wanted)
        return error, error.sqrt().item() / 2


class Gaze:
    """Where the heads of one attention layer look, from what its projections put out.

    Parameters
    ----------
    query, key : tensors of shape (B, T, H * E)
        As projected, before positions are rotated in.
    rotary : pair of tensors
        Cosines and sines.
    head_dim : int
        E.
    """

    def __init__(self, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor], *, head_dim: int) -> None:
        self._query, self._key = (
            apply_rotary(part.unflatten(-1, (-1, head_dim)).transpose(1, 2).float(), *rotary) for part in (query, key)
        )
        self._scale = head_dim**-0.5

    def log_weights(self, rows: Tensor, positions: Tensor, *, head: int) -> Tensor:
        """Return the logarithm of the attention (M, T) that M tokens pay to every position."""
        query = self._query[rows, head, positions]
        scores = torch.einsum("me,mte->mt", query, self._key[rows, head]) * self._scale
        is_later = torch.arange(scores.shape[1])[None] > positions[:, None]
        return scores.masked_fill(is_later, -torch.inf).log_softmax(-1)


def gaze_at_patches(log_weights: Tensor, starts: Tensor, wanted: Tensor, *, side: int) -> Tensor:
    """Minus the logarithm of the attention that falls on the patches next to where an object's centre lies.

    Parameters
    ----------
    log_weights : tensor of shape (M, T)
    starts : tensor of shape (M,)
        Positions of the first patch of each picture; ``side * side`` of them follow row by row.
    wanted : tensor of shape (M, 2)
        Centres, from -1 to 1.
    side : int
        Patches per row.
    """
    middles = (torch.arange(side) + 0.5) / side * 2 - 1
    columns, rows = ((middles[None] - wanted[:, idx, None]).abs() < 1.6 / side for idx in (0, 1))
    is_near = (rows[:, :, None] & columns[:, None, :]).flatten(1)
    patches = log_weights.gather(1, starts[:, None] + torch.arange(side * side)[None])
    return -patches.masked_fill(~is_near, -torch.inf).logsumexp(-1).mean()


def gaze_at_tokens(log_weights: Tensor, wanted: Tensor) -> Tensor:
    """Minus the logarithm of the attention that falls on the positions ``wanted`` (M,)."""
    return -log_weights.gather(1, wanted[:, None]).mean()
