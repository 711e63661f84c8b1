"""docs/architecture.md names things that exist, and draws the layers that are enforced."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
_NAMES = sorted(set(re.findall(r"`(llavakit(?:\.\w+)+)`", _PAGE)))


def _resolve(name: str) -> object:
    """Import the longest module prefix of a dotted name, then follow attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize("name", _NAMES)
def test_name_exists(name: str) -> None:
    _resolve(name)


def test_resolver_sees_what_is_missing() -> None:
    for name in ("llavakit.core.types.NoSuchThing", "llavakit.no_such_module", "llavakit.core.types.Timings.nothing"):
        with pytest.raises(AttributeError):
            _resolve(name)


def test_drawing_shows_the_enforced_layers(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    drawing = _PAGE.split("```text\n")[1].split("```")[0].splitlines()
    drawn = [re.findall(r"^ (\w+(?:\s*\|\s*\w+)*)", line)[0] for line in drawing]
    # Beside the packages stand remarks, which may hold bars as well: compare as many names as the layer has.
    for line, layer in zip(drawn, layers, strict=True):
        expected = layer.split(" | ")
        assert re.split(r"\s*\|\s*", line)[: len(expected)] == expected


def test_every_package_is_in_the_drawing(repository: Path) -> None:
    packages = {path.parent.name for path in (repository / "src" / "llavakit").glob("*/__init__.py")} - {"assets"}
    drawing = _PAGE.split("```text\n")[1].split("```")[0]
    assert packages <= set(re.findall(r"\w+", drawing))
