"""The pictures of the chat page's gallery: ``python -m recipes.tiny.gallery``. Drawn like those in examples/."""

from __future__ import annotations

from pathlib import Path

from recipes.tiny.examples import EXAMPLES
from recipes.tiny.scenes import COLORS, Bar, Scene, Shape, Sign, draw_scene

__all__ = ["GALLERY", "main"]

_SIDE = 448
_RADIUS = 0.135


def _shape(shape: str, color: str, x: float, y: float) -> Shape:
    return Shape(shape, color, True, x, y, _RADIUS, 1.5 if shape == "rectangle" else 1.0, 0.0, COLORS[color])


def _scene(kind: str, background: tuple[int, int, int], **content: object) -> Scene:
    return Scene(kind, _SIDE, _SIDE, background, supersample=3, **content)  # type: ignore[arg-type]


GALLERY: dict[str, Scene] = {
    **EXAMPLES,
    "ring.png": _scene(
        "shapes",
        (236, 244, 236),
        shapes=(_shape("ring", "purple", 0.25, 0.7), _shape("star", "orange", 0.72, 0.27)),
    ),
    "music.png": _scene(
        "sign",
        (240, 246, 250),
        sign=Sign("MUSIC", 0.5, 0.72, 0.14, 1, (255, 255, 255), (20, 90, 60)),
        shapes=(_shape("diamond", "red", 0.28, 0.26), _shape("star", "blue", 0.72, 0.26)),
    ),
    "bars.png": _scene(
        "chart",
        (255, 255, 255),
        bars=tuple(Bar(color, value, COLORS[color]) for color, value in (("red", 8), ("purple", 3), ("yellow", 5))),
    ),
}


def main() -> None:
    """Draw every picture."""
    folder = Path(__file__).parents[2] / "src" / "llavakit" / "server" / "static" / "gallery"
    folder.mkdir(exist_ok=True)
    for name, scene in GALLERY.items():
        draw_scene(scene).save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
