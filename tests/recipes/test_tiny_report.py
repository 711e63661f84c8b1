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
    assert _card(repository, tmp_path, is_prolonged=True) == committed.read_text(encoding="utf-8")


def test_a_card_says_how_its_weights_were_made(repository: Path, tmp_path: Path) -> None:
    assert "not made in one go" in _card(repository, tmp_path, is_prolonged=True)
    assert "These weights were made so in one go." in _card(repository, tmp_path, is_prolonged=False)


def test_the_figures_of_the_repeated_recipe_are_those_of_its_table(repository: Path, tmp_path: Path) -> None:
    table = json.loads((repository / "recipes" / "tiny" / "repeated" / "results.json").read_text(encoding="utf-8"))
    skills = {name: f"{100 * row['accuracy']:.1f} %" for name, row in table["skills"].items()}
    text = " ".join(_card(repository, tmp_path, is_prolonged=True).split())
    assert f'{skills["shape"]} of shapes, {skills["existence"]} of "is it there", {skills["count"]} of counts' in text
    assert f"{100 * table['easy_vqa_test']['accuracy']:.1f} % of easy-vqa" in text
