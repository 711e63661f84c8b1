"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture whose name needs quoting in a shell."""
    file = tmp_path / "my cat.png"
    Image.new("RGB", (64, 48), "red").save(file)
    return file


@pytest.fixture
def pictures_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with pictures and other files in it."""
    for name in ("a.png", "b.jpg", "my cat.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes").write_text("words")
    (tmp_path / "red").write_text("a file with the name of a word")
    Image.new("RGB", (8, 8)).save(tmp_path / "no_suffix", format="PNG")
    monkeypatch.chdir(tmp_path)
    return tmp_path
