"""Files are asked for ahead where they fit, and what is not there is left to whoever opens it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llavakit.weights.read_ahead import start_reading_ahead


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system has no such request")
def test_every_part_of_every_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "projector.gguf", tmp_path / "model.gguf"]
    files[0].write_bytes(b"x" * 10)
    with files[1].open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    asked: list[tuple[str, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, start))
        assert start + length > start

    monkeypatch.setattr(os, "posix_fadvise", advise)
    thread = start_reading_ahead(files, available_bytes=1 << 30)
    assert thread is not None
    thread.join(timeout=30)
    mib = 1024 * 1024
    assert asked == [("projector.gguf", 0), ("model.gguf", 0), ("model.gguf", 32 * mib), ("model.gguf", 64 * mib)]


def test_what_does_not_fit_is_left_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 1000)
    assert start_reading_ahead([file], available_bytes=999) is None
    assert start_reading_ahead([file], available_bytes=None) is None
    assert start_reading_ahead([tmp_path / "absent.gguf"], available_bytes=1 << 30) is None


def test_what_goes_away_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x")

    def fail(*_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(os, "posix_fadvise", fail, raising=False)
    thread = start_reading_ahead([file], available_bytes=1 << 30)
    assert thread is not None
    thread.join(timeout=30)
    assert not thread.is_alive()
