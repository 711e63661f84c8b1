"""A server takes its memory from one heap, says how much it has, and looks through no library for garbage."""

from __future__ import annotations

import asyncio
import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from llavakit.server import memory
from llavakit.server.app import create_app
from llavakit.server.memory import read_resident_bytes
from llavakit.server.settings import ServerSettings
from tests.server.live import ScriptedEngine, ScriptedHost

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


_TRIM = """
import ctypes, json
from llavakit.server.memory import give_back, read_resident_bytes, use_one_heap
from llavakit.model.threads import keep_freed_memory
use_one_heap(), keep_freed_memory()  # as a server does
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(40_000) for _ in range(2_000)]
for block in blocks: ctypes.memset(block, 1, 40_000)
for block in blocks[::2]: libc.free(block)
before = read_resident_bytes()
give_back()
print(json.dumps([before, read_resident_bytes()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is that of the GNU C library")
def test_free_pages_between_others_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _TRIM], check=True, timeout=60, capture_output=True, text=True)
    before, after = json.loads(done.stdout)
    whole_pages = 1_000 * 8 * mmap.PAGESIZE  # of 40,000 bytes, wherever they begin
    assert before - after > 0.9 * whole_pages


def test_a_server_gives_back_as_long_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(memory, "_EVERY_S", 0.01)
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(1))

    async def run() -> int:
        app = create_app(ScriptedHost(ScriptedEngine()), ServerSettings())
        async with app.router.lifespan_context(app):
            while len(calls) < 3:
                await asyncio.sleep(0.01)
        num_calls = len(calls)
        await asyncio.sleep(0.05)
        return len(calls) - num_calls

    assert asyncio.run(asyncio.wait_for(run(), 10)) == 0


_START = """
import gc, json, sys
from llavakit.server.lifecycle import DrainingServer
def run(self, sockets):
    print(json.dumps([gc.get_freeze_count(), len(gc.get_objects()), "torch" in sys.modules]))
DrainingServer.run = run
from llavakit.cli.main import main
sys.argv[1:] = ["serve", "llava:tiny", "--port", "0", "--no-state-file"]
sys.exit(main())
"""


def test_a_server_looks_through_no_library_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", _START], check=True, timeout=60, capture_output=True, text=True)
    num_frozen, num_others, has_torch = json.loads(done.stdout.splitlines()[-1])
    assert has_torch  # the largest of them is there by then
    assert num_frozen > 100 * num_others


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_resident_memory_counts_what_is_written() -> None:
    before = read_resident_bytes()
    block = mmap.mmap(-1, 64 << 20)  # of the system, for what was freed before may be used again
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    after = read_resident_bytes()
    assert before is not None
    assert after is not None
    assert 0.9 * len(block) < after - before < 1.5 * len(block)
