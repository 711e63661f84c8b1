"""Loading, whoever asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llavakit.api import loading


def test_every_load_reads_the_weights_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def record(files: Sequence[Path]) -> None:
        asked.extend(files)

    monkeypatch.setattr(loading, "start_reading_ahead", record)
    loading.load("llava:tiny")
    assert [file.name for file in asked] == ["model.safetensors"]
