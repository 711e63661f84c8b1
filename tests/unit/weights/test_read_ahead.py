"""Files are brought into the page cache where they fit, and what is not there is left to whoever opens it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llavakit.diagnostics.memory import cached_share, drop_page_cache
from llavakit.weights import read_ahead
from llavakit.weights.read_ahead import start_reading_ahead

_MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "read_available_bytes", lambda: 1 << 30)


def _write(path: Path, num_bytes: int) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(num_bytes))
    return path


def _wait_for(files: list[Path]) -> None:
    thread = start_reading_ahead(files)
    assert thread is not None
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.mark.parametrize("can_send", [True, False], ids=["sent nowhere", "read"])
def test_whole_files_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_send: bool) -> None:
    files = [_write(tmp_path / "projector.gguf", 1000), _write(tmp_path / "model.gguf", 3 * _MIB + 7)]
    monkeypatch.setattr(read_ahead, "_STEP_BYTES", 2 * _MIB)
    asked: list[tuple[str, int]] = []
    real = os.sendfile

    def send(out: int, descriptor: int, offset: int, count: int) -> int:
        if not can_send:
            raise OSError("to sockets only")
        asked.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, offset))
        return real(out, descriptor, offset, count)

    monkeypatch.setattr(os, "sendfile", send)
    read: list[str] = []
    read_whole = read_ahead._read_whole
    monkeypatch.setattr(read_ahead, "_read_whole", lambda file: (read_whole(file), read.append(file.name)))
    _wait_for(files)
    if can_send:
        size = 3 * _MIB + 7
        assert asked[:2] == [("projector.gguf", 0), ("projector.gguf", 1000)]
        assert asked[2:] == [("model.gguf", 0), ("model.gguf", 2 * _MIB), ("model.gguf", size)]
    else:
        assert read == [str(file) for file in files]


def test_what_was_cold_is_in_the_page_cache(tmp_path: Path) -> None:
    """Larger than what systems read ahead of one request, 8 MiB at most here: a request alone left the rest."""
    file = _write(tmp_path / "model.gguf", 48 * _MIB)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    left = drop_page_cache([file])
    if left is None or left > 0.1:
        pytest.skip("this file system keeps its pages, or does not say")
    _wait_for([file])
    assert cached_share([file]) == 1.0


def test_what_does_not_fit_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _write(tmp_path / "model.gguf", 1000)
    monkeypatch.setattr(read_ahead, "read_available_bytes", lambda: 999)
    assert start_reading_ahead([file]) is None
    monkeypatch.setattr(read_ahead, "read_available_bytes", lambda: None)
    assert start_reading_ahead([file]) is None


def test_what_is_not_there_is_not_read(tmp_path: Path) -> None:
    assert start_reading_ahead([tmp_path / "absent.gguf"]) is None


def test_what_goes_away_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _write(tmp_path / "model.gguf", 1000)

    def fail(*_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(read_ahead, "_send_nowhere", fail)
    monkeypatch.setattr(read_ahead, "_read_whole", fail)
    _wait_for([file])
