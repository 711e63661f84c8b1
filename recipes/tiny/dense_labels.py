"""What the vision tower is taught: for every patch, what is there; for the whole picture, the word.

The labels come from the renderer, so they are exact. Per patch: shape, colour and size of the object that covers it,
whether an object's centre lies in it, the value of a bar, the letters in its four quarters, and its row and column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from recipes.tiny.scenes import COLOR_NAMES, SHAPES, Scene, bar_boxes, letter_boxes
from recipes.tiny.scenes import _draw_shape as draw_shape_mask

__all__ = ["PATCH_TARGETS", "DenseHeads", "DenseLabels", "dense_labels"]

_MAX_SIDE = 16  # patches per row and column
# Class 0 is "nothing here" throughout.
PATCH_TARGETS = {"row": _MAX_SIDE + 1, "column": _MAX_SIDE + 1, "shape": len(SHAPES) + 2,
                 "color": len(COLOR_NAMES) + 1, "size": 3, "center": 2, "value": 10,
                 "letter0": 27, "letter1": 27, "letter2": 27, "letter3": 27}  # fmt: skip
MAX_LETTERS = 6
_BAR_CLASS = len(SHAPES) + 1
# A patch belongs to an object that covers this share of it.
_MIN_COVER = 0.12


@dataclass(frozen=True)
class DenseLabels:
    """Targets of one picture: int64 (num_targets, P) per patch, int64 (MAX_LETTERS,) of the word."""

    patches: np.ndarray
    word: np.ndarray


def dense_labels(scene: Scene, *, image_size: int, patch_size: int) -> DenseLabels:
    """Compute the targets on the square that the ``original`` preset makes of the picture."""
    side = image_size // patch_size
    grid = np.zeros((len(PATCH_TARGETS), side, side), dtype=np.int64)
    names = list(PATCH_TARGETS)
    # Where it is must be in a patch's features too: the decoder sees them in one line.
    grid[names.index("row")] = np.arange(1, side + 1)[:, None]
    grid[names.index("column")] = np.arange(1, side + 1)[None]
    objects = _object_map(scene, image_size)
    if objects is not None:
        _label_objects(scene, objects, grid, names, patch_size)
    word = np.zeros(MAX_LETTERS, dtype=np.int64)
    if scene.sign is not None:
        _label_letters(scene, grid, names, side)
        word[: len(scene.sign.word)] = [ord(letter) - 64 for letter in scene.sign.word]
    return DenseLabels(grid.reshape(len(names), -1), word)


def _to_square(scene: Scene) -> tuple[float, float, float]:
    """Scale and offsets from fractions of the picture to fractions of the padded square: per-axis size and start."""
    square = max(scene.width, scene.height)
    return float(square), (square - scene.width) // 2, (square - scene.height) // 2


def _object_map(scene: Scene, image_size: int) -> np.ndarray | None:
    """Number of the object (1, 2, ...) at every pixel of the padded, resized picture."""
    if not scene.shapes and not scene.bars:
        return None
    picture = Image.new("L", (scene.width, scene.height), 0)
    draw = ImageDraw.Draw(picture)
    for number, shape in enumerate(scene.shapes, start=1):
        draw_shape_mask(draw, shape, picture.size, number, 0)
    if scene.bars:
        for number, box in enumerate(bar_boxes(scene, picture.size), start=1):
            draw.rectangle(box, fill=number)
    square, left, top = _to_square(scene)
    padded = Image.new("L", (int(square), int(square)), 0)
    padded.paste(picture, (int(left), int(top)))
    return np.asarray(padded.resize((image_size, image_size), Image.Resampling.NEAREST))


def _label_objects(scene: Scene, objects: np.ndarray, grid: np.ndarray, names: list[str], patch_size: int) -> None:
    side = grid.shape[1]
    tiles = objects.reshape(side, patch_size, side, patch_size).swapaxes(1, 2).reshape(side, side, -1)
    num = len(scene.shapes) + len(scene.bars)
    cover = np.stack([(tiles == number).mean(-1) for number in range(1, num + 1)])
    owner = np.where(cover.max(0) >= _MIN_COVER, cover.argmax(0) + 1, 0)
    square, left, top = _to_square(scene)
    for number, shape in enumerate(scene.shapes, start=1):
        mine = owner == number
        column = int((shape.x * scene.width + left) / square * side)
        row = int((shape.y * scene.height + top) / square * side)
        mine[row, column] = True  # the centre patch tells of its object even where the object is hollow
        grid[names.index("shape")][mine] = SHAPES.index(shape.shape) + 1
        grid[names.index("color")][mine] = COLOR_NAMES.index(shape.color) + 1
        grid[names.index("size")][mine] = 2 if shape.is_large else 1
        grid[names.index("center")][row, column] = 1
    for number, bar in enumerate(scene.bars, start=1):
        mine = owner == number
        grid[names.index("shape")][mine] = _BAR_CLASS
        grid[names.index("color")][mine] = COLOR_NAMES.index(bar.color) + 1
        grid[names.index("value")][mine] = bar.value


def _label_letters(scene: Scene, grid: np.ndarray, names: list[str], side: int) -> None:
    if scene.sign is None:
        return
    square, left, top = _to_square(scene)
    centers = (np.arange(2 * side) + 0.5) / (2 * side) * square
    quarters = np.zeros((2 * side, 2 * side), dtype=np.int64)
    for letter, (x0, y0, x1, y1) in zip(
        scene.sign.word, letter_boxes(scene.sign, (scene.width, scene.height)), strict=True
    ):
        columns = (centers >= x0 + left) & (centers < x1 + left)
        rows = (centers >= y0 + top) & (centers < y1 + top)
        quarters[np.ix_(rows, columns)] = ord(letter) - 64
    for idx in range(4):
        grid[names.index(f"letter{idx}")] = quarters[idx // 2 :: 2, idx % 2 :: 2]


@cache
def _weights(name: str) -> Tensor:
    """Patches with something in them are rare: they count more."""
    weights = torch.full((PATCH_TARGETS[name],), 4.0 if name == "center" else 2.0)
    weights[0] = 0.5
    return weights


class DenseHeads(nn.Module):
    """Throw-away heads on the patch features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patches = nn.Linear(width, sum(PATCH_TARGETS.values()))
        self.queries = nn.Parameter(torch.randn(MAX_LETTERS, width) * 0.02)
        self.pool = nn.MultiheadAttention(width, 4, batch_first=True)
        self.letters = nn.Linear(width, 27)

    def forward(self, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Map (N, P, D) to logits per target, (N, P, classes), and of the word, (N, MAX_LETTERS, 27)."""
        features = self.norm(features)
        parts = self.patches(features).split(list(PATCH_TARGETS.values()), dim=-1)
        pooled, _ = self.pool(self.queries.expand(len(features), -1, -1), features, features, need_weights=False)
        return dict(zip(PATCH_TARGETS, parts, strict=True)), self.letters(pooled)

    def loss(self, features: Tensor, patches: Tensor, word: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weighted cross-entropies, and the accuracy on patches that hold something."""
        logits, letters = self(features)
        total = F.cross_entropy(letters.float().flatten(0, 1), word.flatten()) * 0.5
        accuracy = {"word": (letters.argmax(-1) == word).all(-1)[word[:, 0] > 0].float().mean().item()}
        is_object = patches[:, list(PATCH_TARGETS).index("shape")].flatten() > 0
        for idx, (name, values) in enumerate(logits.items()):
            target = patches[:, idx]
            flat, wanted = values.float().flatten(0, 1), target.flatten()
            total = total + F.cross_entropy(flat, wanted, weight=_weights(name)) * (0.8 if "letter" in name else 1.0)
            if name in ("row", "column") and is_object.any():
                # An object's patches have most to tell, and few of all patches are theirs: without this they forget
                # where they lie, and no question about a place could be answered.
                total = total + F.cross_entropy(flat[is_object], wanted[is_object])
            if (wanted > 0).any():
                counted = is_object & (wanted > 0) if name in ("row", "column") else wanted > 0
                accuracy[name] = (flat.argmax(-1) == wanted)[counted].float().mean().item()
        return total, accuracy
