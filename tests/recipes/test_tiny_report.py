"""The card of `llava:tiny`, which is made of its evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the curves are drawn with matplotlib: pip install 'llavakit[recipes]'")

from recipes.tiny.report import write_card


def _card(repository: Path, folder: Path, *, is_prolonged: bool) -> str:
    shutil.copy(repository / "src" / "llavakit" / "assets" / "tiny" / "config.json", folder)
    result = json.loads((repository / "recipes" / "tiny" / "results.json").read_text(encoding="utf-8"))
    write_card(folder, result, is_prolonged=is_prolonged)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_embedded_card_has_the_figures_of_its_evaluation(repository: Path, tmp_path: Path) -> None:
    committed = repository / "src" / "llavakit" / "assets" / "tiny" / "README.md"
    assert _card(repository, tmp_path, is_prolonged=False) == committed.read_text(encoding="utf-8")


def test_a_card_says_how_its_weights_were_made(repository: Path, tmp_path: Path) -> None:
    assert "have taken these weights further" in _card(repository, tmp_path, is_prolonged=True)
    assert "without further rounds" in _card(repository, tmp_path, is_prolonged=False)
