"""A server takes its memory from one heap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_COUNT = """
import ctypes, sys, threading
from llavakit.server.memory import use_one_heap
if sys.argv[1] == "one":
    assert use_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
barrier = threading.Barrier(4)
def work():
    barrier.wait()
    libc.malloc(100_000)
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def _count_heaps(kind: str, path: Path) -> int:
    subprocess.run([sys.executable, "-c", _COUNT, kind, str(path)], check=True, timeout=60)
    return path.read_text().count("<heap nr=")


@pytest.mark.skipif(sys.platform != "linux", reason="the heaps are those of the GNU C library")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    assert _count_heaps("many", tmp_path / "many.xml") > 1
    assert _count_heaps("one", tmp_path / "one.xml") == 1
