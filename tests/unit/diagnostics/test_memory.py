"""What the system says about memory, read right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llavakit.diagnostics.memory import drop_page_cache, read_memory

_STATUS = (
    "Name:\tpython\nVmHWM:\t  3000 kB\nVmRSS:\t  2000 kB\nRssAnon:\t 500 kB\nRssFile:\t 1400 kB\nRssShmem:\t 100 kB\n"
)


def test_fields_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(_STATUS)
    (tmp_path / "smaps_rollup").write_text("00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 2000 kB\nPss: 1700 kB\n")
    memory = read_memory(tmp_path)
    assert memory is not None
    assert (memory.peak_resident, memory.resident) == (3000 * 1024, 2000 * 1024)
    assert (memory.anonymous, memory.file_backed) == (500 * 1024, 1500 * 1024)
    assert memory.proportional == 1700 * 1024


def test_a_system_without_proc_gives_nothing(tmp_path: Path) -> None:
    assert read_memory(tmp_path / "absent") is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_touching_memory_shows() -> None:
    before = read_memory()
    block = bytearray(os.urandom(1024) * (64 * 1024))
    after = read_memory()
    assert before is not None
    assert after is not None
    assert after.anonymous - before.anonymous > len(block) // 2
    assert after.peak_resident >= after.resident >= after.anonymous


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_dropping_the_cache_keeps_the_files(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "weights").write_bytes(content)
    (tmp_path / "empty").touch()
    share = drop_page_cache([tmp_path / "weights", tmp_path / "empty"])
    assert share is None or 0.0 <= share <= 1.0
    assert (tmp_path / "weights").read_bytes() == content
