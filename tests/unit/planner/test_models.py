"""Models by name: what is read, and what is fetched, to plan for one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import llavakit.assets
from llavakit.planner.models import find_model
from llavakit.weights import hub

_TINY = Path(next(iter(llavakit.assets.__path__))) / "tiny"


def _fake_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Make the Hub hold one model in this folder; return a list that gets whether weights were wanted, by fetch."""
    asked: list[bool] = []

    def download(_hub_id: str, *, with_weights: bool = True, **_options: Any) -> Path:
        asked.append(with_weights)
        return folder

    monkeypatch.setattr(hub, "scan", list)
    monkeypatch.setattr(hub, "download", download)
    return asked


def test_no_weights_are_fetched_for_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(_TINY / "config.json", tmp_path)
    asked = _fake_hub(tmp_path, monkeypatch)
    model = find_model("somebody/some-llava")
    assert asked == [False]
    assert model.config == find_model("llava:tiny").config


def test_a_folder_is_planned_by_its_configuration(tmp_path: Path) -> None:
    """What its weights' files hold is not looked at."""
    shutil.copy(_TINY / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    assert find_model(str(tmp_path)).config == find_model("llava:tiny").config
