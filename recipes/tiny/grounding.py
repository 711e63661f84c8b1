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

Attention averages, so a head that looks at all red circles sees one red circle, however many there are. A fourth head
is told to look, from the end of a question about one phrase, at every object that the phrase may mean *and* at the
first token, each with the same weight: of k objects the first token then gets 1 / (k + 1), from which the number can be
read, and whether it is zero (`gaze_at_all`).
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

__all__ = [
    "Gaze",
    "Mention",
    "PlaceHead",
    "find_meant",
    "find_mentions",
    "gaze_at_all",
    "gaze_at_patches",
    "gaze_at_tokens",
]  # fmt: skip

_NOUNS = "|".join((*SHAPES, "object", "shape"))
_PLURALS = "|".join((*(f"{shape}s" for shape in SHAPES), "crosses", "objects", "shapes"))
_PHRASE = re.compile(rf"\b(?:(?P<size>small|large) )?(?:(?P<color>{'|'.join(COLOR_NAMES)}) )?(?P<shape>{_NOUNS})\b")
_PHRASES = re.compile(
    rf"\b(?:(?P<size>small|large) )?(?:(?P<color>{'|'.join(COLOR_NAMES)}) )?(?P<shape>{_NOUNS}|{_PLURALS})\b"
)


@dataclass(frozen=True)
class Mention:
    """A phrase that ends before ``end`` and names the object at (``x``, ``y``), -1 to 1 across the padded square."""

    end: int
    x: float
    y: float


def find_mentions(text: str, scene: Scene) -> Iterator[Mention]:
    """Find the phrases that mean one object of the scene and no other."""
    for match in _PHRASE.finditer(text):
        meant = _meant(match, scene)
        if len(meant) == 1:
            yield Mention(match.end(), *meant[0])


def find_meant(question: str, scene: Scene) -> list[tuple[float, float]] | None:
    """Return the centres of all objects that the one phrase of a question may mean; None unless it has one phrase.

    "What shape" asks for a name and is no phrase; neither are the options of a multiple choice.
    """
    phrases = [match for match in _PHRASES.finditer(question) if not _is_asked_for(question, match)]
    return _meant(phrases[0], scene) if len(phrases) == 1 else None


def _is_asked_for(question: str, match: re.Match[str]) -> bool:
    before = question[: match.start()].lower()
    return match["shape"] == "shape" and match["color"] is None and before.endswith(("what ", "which "))


def _meant(match: re.Match[str], scene: Scene) -> list[tuple[float, float]]:
    size, color, shape = match["size"], match["color"], match["shape"]
    singular = (
        shape if shape in (*SHAPES, "object", "shape") else shape.removesuffix("es" if shape == "crosses" else "s")
    )
    square = max(scene.width, scene.height)
    return [
        ((other.x * 2 - 1) * scene.width / square, (other.y * 2 - 1) * scene.height / square)
        for other in scene.shapes
        if singular in (other.shape, "object", "shape")
        and color in (other.color, None)
        and (size is None or (size == "large") == other.is_large)
    ]


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
        scores = torch.einsum("me,mte->mt", query, self._key[rows, head]).float() * self._scale
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
    return -_log_attention_near(log_weights, starts, wanted, side=side).mean()


def _log_attention_near(log_weights: Tensor, starts: Tensor, wanted: Tensor, *, side: int) -> Tensor:
    middles = (torch.arange(side) + 0.5) / side * 2 - 1
    columns, rows = ((middles[None] - wanted[:, idx, None]).abs() < 1.6 / side for idx in (0, 1))
    is_near = (rows[:, :, None] & columns[:, None, :]).flatten(1)
    patches = log_weights.gather(1, starts[:, None] + torch.arange(side * side)[None])
    return patches.masked_fill(~is_near, -torch.inf).logsumexp(-1)


def gaze_at_all(
    log_weights: Tensor, starts: Tensor, questions: Tensor, wanted: Tensor, *, side: int
) -> tuple[Tensor, float]:
    """How far attention is from equal shares for the first token and for every object meant.

    Parameters
    ----------
    log_weights : tensor of shape (M, T)
        Of M questions.
    starts : tensor of shape (M,)
        As for `gaze_at_patches`.
    questions : integer tensor of shape (K,)
        Which question each object belongs to.
    wanted : tensor of shape (K, 2)
        Centres of the objects meant, from -1 to 1.
    side : int

    Returns
    -------
    tensor
        Mean divergence (Kullback-Leibler) of the attention from its targets; 0 is perfect.
    float
        Mean distance between 1 / (attention to the first token) - 1, and the number of objects.
    """
    counts = torch.bincount(questions, minlength=len(starts)).float()
    first = log_weights[:, 0]
    objects = torch.zeros(len(starts)).index_add(
        0, questions, _log_attention_near(log_weights[questions], starts[questions], wanted, side=side)
    )
    divergence = -(first + objects) / (counts + 1) - (counts + 1).log()
    return divergence.mean(), ((-first).exp().clamp(max=20) - 1 - counts).abs().mean().item()


def gaze_at_tokens(log_weights: Tensor, wanted: Tensor) -> Tensor:
    """Minus the logarithm of the attention that falls on the positions ``wanted`` (M,)."""
    return -log_weights.gather(1, wanted[:, None]).mean()
