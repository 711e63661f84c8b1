"""Scenes: what is in a picture, and the picture itself. Everything follows from (split, index).

A scene is one of four kinds: loose shapes, one shape on a pale ground, a sign with a word, a bar chart. Coordinates
are fractions of the drawn picture's width and height; sizes are fractions of its shorter side.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.tiny.words import HELD_OUT_WORDS, TRAINING_WORDS

__all__ = ["COLORS", "COLOR_NAMES", "HELD_OUT_PAIRS", "SHAPES", "Bar", "Scene", "Shape", "Sign", "Split", "draw_scene",
           "make_scene", "render", "scene_rng"]  # fmt: skip

Split = Literal["train", "eval", "compositional"]
Kind = Literal["shapes", "single", "sign", "chart"]

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond")
COLORS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0), "gray": (128, 128, 128), "red": (255, 0, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "teal": (0, 128, 128), "green": (0, 255, 0), "brown": (165, 42, 42), "orange": (255, 140, 0),
    "purple": (140, 0, 170), "pink": (255, 120, 190),
}  # fmt: skip
COLOR_NAMES = tuple(COLORS)
# Never shown together in training; the compositional split shows nothing else.
HELD_OUT_PAIRS = frozenset({("purple", "star"), ("orange", "ring"), ("pink", "diamond"), ("teal", "cross")})
_SINGLE_SHAPES = ("circle", "rectangle", "triangle")
_SINGLE_COLORS = ("black", "gray", "red", "blue", "yellow", "teal", "green", "brown")
_SPLIT_IDS: dict[Split, int] = {"train": 1, "eval": 2, "compositional": 3}


@dataclass(frozen=True)
class Shape:
    """One object. ``radius`` is a fraction of the shorter side; ``aspect`` is width over height."""

    shape: str
    color: str
    is_large: bool
    x: float
    y: float
    radius: float
    aspect: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Sign:
    """A board with a word."""

    word: str
    x: float
    y: float
    letter_height: float
    font: int
    ink: tuple[int, int, int]
    board: tuple[int, int, int] | None


@dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    color: str
    value: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture's content and how it is drawn."""

    kind: Kind
    width: int
    height: int
    background: tuple[int, int, int]
    shapes: tuple[Shape, ...] = ()
    sign: Sign | None = None
    bars: tuple[Bar, ...] = ()
    supersample: int = 1
    jpeg_quality: int | None = None


def scene_rng(split: Split, index: int) -> np.random.Generator:
    """The one source of randomness of a scene: splits cannot overlap."""
    return np.random.default_rng((20260, _SPLIT_IDS[split], index))


def make_scene(split: Split, index: int, *, kind: Kind | None = None) -> Scene:
    """Invent a scene; the same arguments give the same scene."""
    rng = scene_rng(split, index)
    if kind is None:
        kind = ("shapes", "single", "sign", "chart")[int(rng.choice(4, p=(0.53, 0.13, 0.23, 0.11)))]
    if kind == "single":
        return _single(rng)
    width, height = _canvas(rng, kind)
    background = _background(rng)
    common = {
        "kind": kind, "width": width, "height": height, "background": background,
        "supersample": 1 if rng.random() < 0.25 else (3 if max(width, height) <= 128 else 2),
        "jpeg_quality": int(rng.integers(60, 95)) if rng.random() < 0.08 else None,
    }  # fmt: skip
    aspect = width / height
    if kind == "chart":
        return Scene(bars=_bars(rng), **common)  # type: ignore[arg-type]
    if kind == "sign":
        words = HELD_OUT_WORDS if split == "compositional" else TRAINING_WORDS
        sign = _sign(rng, words)
        shapes = _shapes(rng, int(rng.choice(3, p=(0.4, 0.4, 0.2))), split, aspect, background, avoid=sign)
        return Scene(sign=sign, shapes=shapes, **common)  # type: ignore[arg-type]
    num = int(rng.choice(np.arange(1, 7), p=(0.14, 0.2, 0.2, 0.18, 0.16, 0.12)))
    return Scene(shapes=_shapes(rng, num, split, aspect, background, avoid=None), **common)  # type: ignore[arg-type]


def _canvas(rng: np.random.Generator, kind: Kind) -> tuple[int, int]:
    side = int(rng.choice((64, 96, 112, 128, 160, 224, 336), p=(0.1, 0.15, 0.25, 0.15, 0.15, 0.15, 0.05)))
    if kind != "shapes":
        side = max(side, 96)
    if kind == "sign" or rng.random() < 0.7:
        return side, side
    short = int(side * rng.uniform(0.62, 0.95))
    return (side, short) if rng.random() < 0.6 else (short, side)


def _background(rng: np.random.Generator) -> tuple[int, int, int]:
    if rng.random() < 0.25:
        return (255, 255, 255)
    red, green, blue = (int(v) for v in rng.integers(222, 256, 3))
    return red, green, blue


def _rgb(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    base = COLORS[color]
    if rng.random() < 0.4:
        return base
    if color == "green":
        base = (int(rng.integers(0, 60)), int(rng.integers(140, 256)), int(rng.integers(0, 60)))
    elif color == "blue":
        base = (int(rng.integers(0, 60)), int(rng.integers(0, 90)), int(rng.integers(190, 256)))
    red, green, blue = (int(np.clip(v + rng.integers(-14, 15), 0, 255)) for v in base)
    return red, green, blue


def _single(rng: np.random.Generator) -> Scene:
    """One shape on a pale ground: the manner of easy-VQA, drawn by our own code."""
    background = tuple(int(v) for v in rng.integers(230, 256, 3))
    radius = float(rng.uniform(0.07, 0.27))
    shape = str(rng.choice(_SINGLE_SHAPES))
    color = str(rng.choice(_SINGLE_COLORS))
    x, y = (float(v) for v in rng.uniform(min(radius + 0.02, 0.5), max(1 - radius - 0.02, 0.5), 2))
    aspect = float(rng.uniform(0.6, 1.6)) if shape == "rectangle" else 1.0
    one = Shape(shape, color, radius > 0.12, x, y, radius, aspect, 0.0, COLORS[color])
    side = 64 if rng.random() < 0.8 else 112
    return Scene("single", side, side, background, (one,), supersample=3)  # type: ignore[arg-type]


def _shapes(
    rng: np.random.Generator,
    num: int,
    split: Split,
    aspect: float,
    background: tuple[int, int, int],
    *,
    avoid: Sign | None,
) -> tuple[Shape, ...]:
    placed: list[Shape] = []
    repeat = rng.random() < 0.5
    for _ in range(num * 30):
        if len(placed) == num:
            break
        is_large = bool(rng.random() < 0.5)
        radius = float(rng.uniform(0.125, 0.16) if is_large else rng.uniform(0.062, 0.085))
        color, shape = _color_and_shape(rng, split, placed if repeat else [])
        x, y = (float(v) for v in rng.uniform(radius + 0.01, 1 - radius - 0.01, 2))
        if avoid is not None and abs(y - avoid.y) < radius + avoid.letter_height * 0.85:
            continue
        wide, tall = max(aspect, 1.0), max(1 / aspect, 1.0)
        if any(math.hypot((x - o.x) * wide, (y - o.y) * tall) < radius + o.radius + 0.03 for o in placed):
            continue
        stretch = float(rng.uniform(0.62, 1.6)) if shape == "rectangle" else 1.0
        angle = float(rng.uniform(-12, 12)) if rng.random() < 0.3 and shape != "circle" else 0.0
        rgb = _rgb(rng, color)
        if sum(abs(a - b) for a, b in zip(rgb, background, strict=True)) < 110:
            continue
        placed.append(Shape(shape, color, is_large, x, y, radius, stretch, angle, rgb))
    return tuple(placed)


def _color_and_shape(rng: np.random.Generator, split: Split, earlier: list[Shape]) -> tuple[str, str]:
    if split == "compositional":
        return sorted(HELD_OUT_PAIRS)[int(rng.integers(len(HELD_OUT_PAIRS)))]
    while True:
        color, shape = str(rng.choice(COLOR_NAMES)), str(rng.choice(SHAPES))
        if earlier and rng.random() < 0.6:  # repeats make counting and hard negatives worth asking
            other = earlier[int(rng.integers(len(earlier)))]
            which = rng.random()
            color = other.color if which < 0.7 else color
            shape = other.shape if which > 0.35 else shape
        if (color, shape) not in HELD_OUT_PAIRS:
            return color, shape


def _sign(rng: np.random.Generator, words: tuple[str, ...]) -> Sign:
    word = words[int(rng.integers(len(words)))]
    letter_height = float(min(rng.uniform(0.15, 0.24), 0.86 / len(word)))
    half_width = len(word) * letter_height * 0.58
    x = float(rng.uniform(min(half_width + 0.02, 0.5), max(1 - half_width - 0.02, 0.5)))
    y = float(rng.uniform(letter_height * 0.9, 1 - letter_height * 0.9))
    board: tuple[int, int, int] | None = None
    ink = tuple(int(v) for v in rng.integers(0, 90, 3))
    if rng.random() < 0.6:
        is_dark = rng.random() < 0.5
        board = tuple(int(v) for v in (rng.integers(0, 110, 3) if is_dark else rng.integers(190, 256, 3)))  # type: ignore[assignment]
        ink = (255, 255, 255) if is_dark else ink
    return Sign(word, x, y, letter_height, int(rng.integers(len(_fonts()))), ink, board)  # type: ignore[arg-type]


def _bars(rng: np.random.Generator) -> tuple[Bar, ...]:
    num = int(rng.integers(2, 6))
    colors = rng.permutation(COLOR_NAMES)[:num]
    # Different values, so that "the tallest" has one answer.
    values = rng.permutation(np.arange(1, 10))[:num]
    return tuple(Bar(str(c), int(v), _rgb(rng, str(c))) for c, v in zip(colors, values, strict=True))


# Drawing.


@lru_cache
def _fonts() -> tuple[Path, ...]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif-Bold.ttf")
    return tuple(folder / name for name in names)


@lru_cache(maxsize=512)
def _font(idx: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_fonts()[idx]), size)


def draw_scene(scene: Scene) -> Image.Image:
    """Draw the scene at its own size, RGB."""
    factor = scene.supersample
    image = Image.new("RGB", (scene.width * factor, scene.height * factor), scene.background)
    draw = ImageDraw.Draw(image)
    if scene.bars:
        _draw_chart(draw, scene, image.size)
    for shape in scene.shapes:
        _draw_shape(draw, shape, image.size, shape.rgb, scene.background)
    if scene.sign is not None:
        draw_sign(draw, scene.sign, image.size)
    if factor > 1:
        image = image.reduce(factor)
    if scene.jpeg_quality is not None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=scene.jpeg_quality)
        image = Image.open(buffer).convert("RGB")
    return image


def render(split: Split, index: int) -> Image.Image:
    """Draw scene ``index`` of a split."""
    return draw_scene(make_scene(split, index))


def shape_box(shape: Shape, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Centre and half extents of a shape in pixels of a picture of this size."""
    short = min(size)
    return shape.x * size[0], shape.y * size[1], shape.radius * short, shape.radius * short


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, size: tuple[int, int], fill: object, hole: object) -> None:
    x, y, radius, _ = shape_box(shape, size)
    if shape.shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)  # type: ignore[arg-type]
        if shape.shape == "ring":
            inner = radius * 0.55
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=hole)  # type: ignore[arg-type]
        return
    turn = math.radians(shape.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    points = [(x + radius * (px * cos - py * sin), y + radius * (px * sin + py * cos)) for px, py in _outline(shape)]
    draw.polygon(points, fill=fill)  # type: ignore[arg-type]


def _outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners in units of the radius, y downwards."""
    if shape.shape == "rectangle":
        root = math.sqrt(shape.aspect)
        wide, tall = 0.8 * root, 0.8 / root
        return [(-wide, -tall), (wide, -tall), (wide, tall), (-wide, tall)]
    if shape.shape == "triangle":
        return [(0, -0.95), (0.95, 0.85), (-0.95, 0.85)]
    if shape.shape == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape.shape == "cross":
        a, b = 0.95, 0.33
        return [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
    points = []  # star
    for idx in range(10):
        reach = 1.0 if idx % 2 == 0 else 0.42
        angle = math.pi * idx / 5 - math.pi / 2
        points.append((reach * math.cos(angle), reach * math.sin(angle)))
    return points


def letter_boxes(sign: Sign, size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Boxes of the letters (left, top, right, bottom) in pixels."""
    font = _font(sign.font, max(6, round(sign.letter_height * min(size) * 1.37)))
    widths = [font.getlength(letter) for letter in sign.word]
    gap = 0.08 * sign.letter_height * min(size)
    total = sum(widths) + gap * (len(widths) - 1)
    left = min(max(sign.x * size[0] - total / 2, 2.0), max(size[0] - total - 2.0, 0.0))
    half = sign.letter_height * min(size) / 2
    boxes = []
    for width in widths:
        boxes.append((left, sign.y * size[1] - half, left + width, sign.y * size[1] + half))
        left += width + gap
    return boxes


def draw_sign(draw: ImageDraw.ImageDraw, sign: Sign, size: tuple[int, int]) -> None:
    """Draw board and word."""
    boxes = letter_boxes(sign, size)
    pad = 0.22 * (boxes[0][3] - boxes[0][1])
    if sign.board is not None:
        draw.rectangle((boxes[0][0] - pad, boxes[0][1] - pad, boxes[-1][2] + pad, boxes[0][3] + pad), fill=sign.board)
    font = _font(sign.font, max(6, round(sign.letter_height * min(size) * 1.37)))
    for letter, box in zip(sign.word, boxes, strict=True):
        draw.text((box[0], box[3]), letter, font=font, fill=sign.ink, anchor="ls")


def bar_boxes(scene: Scene, size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Boxes of the bars (left, top, right, bottom) in pixels."""
    left, right, top, bottom = 0.1 * size[0], 0.96 * size[0], 0.05 * size[1], 0.93 * size[1]
    slot = (right - left) / len(scene.bars)
    boxes = []
    for idx, bar in enumerate(scene.bars):
        start = left + slot * (idx + 0.18)
        boxes.append((start, bottom - (bottom - top) * bar.value / 9.5, start + slot * 0.64, bottom))
    return boxes


def _draw_chart(draw: ImageDraw.ImageDraw, scene: Scene, size: tuple[int, int]) -> None:
    left, right, top, bottom = 0.1 * size[0], 0.96 * size[0], 0.05 * size[1], 0.93 * size[1]
    thin = max(1, round(min(size) / 160))
    for value in range(1, 10):
        y = bottom - (bottom - top) * value / 9.5
        draw.line((left, y, right, y), fill=(205, 205, 205), width=thin)
    for bar, box in zip(scene.bars, bar_boxes(scene, size), strict=True):
        draw.rectangle(box, fill=bar.rgb)
    draw.line((left, top, left, bottom), fill=(40, 40, 40), width=2 * thin)
    draw.line((left, bottom, right, bottom), fill=(40, 40, 40), width=2 * thin)
