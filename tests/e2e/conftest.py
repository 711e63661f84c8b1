"""Fixtures of the tests that run the program."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import make_tiny_llava


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, in the llava-hf format."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llava(folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture whose name needs quoting in a shell."""
    file = tmp_path / "my cat.png"
    Image.new("RGB", (64, 48), "red").save(file)
    return file
