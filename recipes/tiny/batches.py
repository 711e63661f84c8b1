"""Batches of every stage. Batch i of a stage is a function of i alone, so a resumed run sees the same data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llavakit.core.config import CLIP_MEAN, CLIP_STD, LlavaConfig
from llavakit.processing.image import ImageProcessing, preprocess
from recipes.tiny.conversations import Encoded, Turns, encode, image_turns, text_turns
from recipes.tiny.dense_labels import dense_labels
from recipes.tiny.scenes import Scene, draw_scene, make_scene
from recipes.tiny.vocabulary import IGNORE, Vocabulary

__all__ = ["TextBatch", "VisionBatch", "instruction_batch", "vision_batch"]

# Stages draw from separate ranges of the training split: no picture is seen in two stages.
_STAGE_STRIDE = 100_000_000
_TEXT_LEN = 208


@dataclass(frozen=True)
class VisionBatch:
    """Pixels (N, 3, S, S), patch targets (N, targets, P), words (N, letters)."""

    pixels: Tensor
    patches: Tensor
    words: Tensor


@dataclass(frozen=True)
class TokenTargets:
    """Rows (M,) and positions (M,) of tokens, and what they stand for, (M, 2).

    ``compared`` (M, 2) are the positions of the two phrases that a gap lies between; of places it is empty.
    """

    rows: Tensor
    positions: Tensor
    wanted: Tensor
    compared: Tensor


@dataclass(frozen=True)
class Tallies:
    """Rows (M,) and positions (M,) of tokens; of K objects the token that means it, (K,), and its place (K, 2)."""

    rows: Tensor
    positions: Tensor
    questions: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class TextBatch:
    """Ids and labels (B, T); pixels (N, 3, S, S) of the pictures, in the order of their image tokens, or None.

    ``places``, ``gaps`` and ``tallies`` say what tokens stand for (`recipes.tiny.conversations.Encoded`).
    """

    ids: Tensor
    labels: Tensor
    pixels: Tensor | None
    places: TokenTargets
    gaps: TokenTargets
    tallies: Tallies


def _processing(image_size: int) -> ImageProcessing:
    """The ``original`` preset."""
    return ImageProcessing(
        mode="pad", image_size=image_size, shortest_edge=image_size, resample=3, rescale_factor=1 / 255,
        mean=CLIP_MEAN, std=CLIP_STD, is_exif_turned=False,
        alpha="drop",
    )  # fmt: skip


def vision_batch(
    config: LlavaConfig, step: int, batch_size: int, *, stage: int = 0, with_more_signs: bool = False
) -> VisionBatch:
    """Pictures with dense labels; two in three of them signs if asked."""
    vision = config.vision_config
    scenes = [
        make_scene("train", index, kind="sign" if with_more_signs and index % 3 else None)
        for index in _indices(stage, step, batch_size)
    ]
    labels = [dense_labels(s, image_size=vision.image_size, patch_size=vision.patch_size) for s in scenes]
    return VisionBatch(
        _pixels(scenes, vision.image_size),
        torch.from_numpy(np.stack([label.patches for label in labels])),
        torch.from_numpy(np.stack([label.word for label in labels])),
    )


def instruction_batch(config: LlavaConfig, vocabulary: Vocabulary, step: int, batch_size: int) -> TextBatch:
    """Conversations about pictures, and one in twenty without."""
    rows, scenes = [], []
    for index in _indices(3, step, batch_size):
        rng = np.random.default_rng((index, 7))
        if rng.random() < 0.05:
            rows.append(_fitting(vocabulary, text_turns(rng), None, None))
            continue
        scene = make_scene("train", index)
        scenes.append(scene)
        rows.append(_fitting(vocabulary, image_turns(scene, rng), config.num_image_tokens, scene))
    return _stack(vocabulary, rows, _pixels(scenes, config.vision_config.image_size))


def _indices(stage: int, step: int, batch_size: int) -> range:
    first = stage * _STAGE_STRIDE + step * batch_size
    return range(first, first + batch_size)


def _pixels(scenes: list[Scene], image_size: int) -> Tensor:
    processing = _processing(image_size)
    return torch.from_numpy(np.stack([preprocess(draw_scene(scene), processing) for scene in scenes]))


def _fitting(vocabulary: Vocabulary, turns: Turns, num_image_tokens: int | None, scene: Scene | None) -> Encoded:
    """Encode, dropping the last turns of a conversation that is too long."""
    while True:
        encoded = encode(vocabulary, turns, num_image_tokens=num_image_tokens, scene=scene)
        if len(encoded.ids) <= _TEXT_LEN or len(turns) == 1:
            places, gaps = (
                [entry for entry in part if entry[0] < _TEXT_LEN] for part in (encoded.places, encoded.gaps)
            )
            tallies = [entry for entry in encoded.tallies if entry[0] < _TEXT_LEN]
            ids, labels = encoded.ids[:_TEXT_LEN], encoded.labels[:_TEXT_LEN]
            return Encoded(ids, labels, places, gaps, encoded.compared[: len(gaps)], tallies)
        turns = turns[:-1]


def _stack(vocabulary: Vocabulary, rows: list[Encoded], pixels: Tensor | None) -> TextBatch:
    # Few distinct lengths, so that a compiled step is compiled few times.
    length = _TEXT_LEN if max(len(row.ids) for row in rows) > 112 else 112
    ids = torch.full((len(rows), length), vocabulary.pad_id)
    labels = torch.full((len(rows), length), IGNORE)
    for idx, row in enumerate(rows):
        ids[idx, : len(row.ids)] = torch.tensor(row.ids)
        labels[idx, : len(row.labels)] = torch.tensor(row.labels)
    places, gaps = (
        _targets([row.places for row in rows], []),
        _targets([row.gaps for row in rows], [pair for row in rows for pair in row.compared]),
    )
    return TextBatch(ids, labels, pixels, places, gaps, _tallies([row.tallies for row in rows]))


def _tallies(rows: list[list[tuple[int, list[tuple[float, float]]]]]) -> Tallies:
    asked = [(idx, position, places) for idx, row in enumerate(rows) for position, places in row]
    meant = [(question, x, y) for question, (_, _, places) in enumerate(asked) for x, y in places]
    table = torch.tensor(meant, dtype=torch.float32).reshape(-1, 3)
    where = torch.tensor([(idx, position) for idx, position, _ in asked], dtype=torch.int64).reshape(-1, 2)
    return Tallies(where[:, 0], where[:, 1], table[:, 0].long(), table[:, 1:])


def _targets(rows: list[list[tuple[int, float, float]]], compared: list[tuple[int, int]]) -> TokenTargets:
    entries = [(idx, position, x, y) for idx, row in enumerate(rows) for position, x, y in row]
    table = torch.tensor(entries, dtype=torch.float32).reshape(-1, 4)
    pairs = torch.tensor(compared, dtype=torch.int64).reshape(-1, 2)
    return TokenTargets(table[:, 0].long(), table[:, 1].long(), table[:, 2:], pairs)
