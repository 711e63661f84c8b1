"""What the decoder is taught beside its answers: where the object lies that a phrase names.

A question about a place has one bit or two in its answer, which is little to learn from: a decoder that only sees
answers finds out late that "the red circle" must be looked up in the picture. The renderer knows where the red circle
is. So at the last token of every phrase that names exactly one object, a throw-away head reads the place from the
decoder's stream, as the dense heads read the tower's patches. Where a question names two objects, a second head reads
from the last token before the answer how far they lie apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from recipes.tiny.scenes import COLOR_NAMES, SHAPES, Scene

__all__ = ["Mention", "PlaceHead", "find_mentions"]

_NOUNS = "|".join((*SHAPES, "object", "shape"))
_PHRASE = re.compile(rf"\b(?:(?P<size>small|large) )?(?:(?P<color>{'|'.join(COLOR_NAMES)}) )?(?P<shape>{_NOUNS})\b")


@dataclass(frozen=True)
class Mention:
    """A phrase that ends before ``end`` and names the object at (``x``, ``y``), from -1 to 1 across the picture."""

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
            yield Mention(match.end(), meant[0].x * 2 - 1, meant[0].y * 2 - 1)


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
