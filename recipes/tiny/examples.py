"""The pictures in examples/: ``python -m recipes.tiny.examples``. Composed by hand, drawn by the scenes' renderer."""

from __future__ import annotations

from pathlib import Path

from recipes.tiny.scenes import COLORS, Bar, Scene, Shape, Sign, draw_scene

__all__ = ["EXAMPLES", "main"]

_LARGE, _SMALL = 0.135, 0.075
_SIDE = 448


def _shape(shape: str, color: str, x: float, y: float, radius: float) -> Shape:
    aspect = 1.5 if shape == "rectangle" else 1.0
    return Shape(shape, color, radius > 0.1, x, y, radius, aspect, 0.0, COLORS[color])


def _scene(kind: str, background: tuple[int, int, int], **content: object) -> Scene:
    return Scene(kind, _SIDE, _SIDE, background, supersample=3, **content)  # type: ignore[arg-type]


EXAMPLES: dict[str, Scene] = {
    "shapes.png": _scene(
        "shapes",
        (243, 246, 252),
        shapes=(
            _shape("circle", "red", 0.2, 0.24, _LARGE),
            _shape("circle", "red", 0.78, 0.3, _SMALL),
            _shape("star", "blue", 0.5, 0.42, _LARGE),
            _shape("triangle", "green", 0.8, 0.75, _LARGE),
        ),
    ),
    "sign.png": _scene(
        "sign",
        (252, 248, 240),
        sign=Sign("COFFEE", 0.5, 0.3, 0.14, 1, (255, 255, 255), (70, 40, 20)),
        shapes=(_shape("cross", "purple", 0.3, 0.72, _LARGE), _shape("diamond", "orange", 0.72, 0.74, _SMALL)),
    ),
    "chart.png": _scene(
        "chart",
        (255, 255, 255),
        bars=tuple(Bar(color, value, COLORS[color]) for color, value in (("blue", 4), ("orange", 7), ("green", 2))),
    ),
}


def main() -> None:
    """Draw every example."""
    folder = Path(__file__).parents[2] / "examples"
    for name, scene in EXAMPLES.items():
        draw_scene(scene).save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
