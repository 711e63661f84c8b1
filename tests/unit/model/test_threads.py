"""The native library computes on threads of its own, and where torch's wait long, on those with the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llavakit.kernels.library import load_library
from llavakit.model import threads
from llavakit.model.stored_matrix import StoredMatrix

_WEIGHTS = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float16).view(np.uint8)


def _product() -> torch.Tensor:
    x = torch.arange(64 * 40, dtype=torch.float32).view(40, 64).sin()
    return StoredMatrix(_WEIGHTS, "float16", (300, 64)).multiply(x)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are shared where torch brings GNU OpenMP")
def test_torchs_threads_are_found() -> None:
    assert threads._find_team() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="threads are shared where torch brings GNU OpenMP")
def test_torchs_threads_compute_the_same() -> None:
    library, own = threads.load_shared_library(), _product()
    library.set_team(threads._find_team())
    try:
        assert torch.equal(_product(), own)
    finally:
        library.set_team(None)


def test_callers_that_meet_in_the_pool_get_their_own_results() -> None:
    """Rounds end while workers are still on their way to them, and the next one begins."""
    library = load_library()
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((4, 96, 32)).astype(np.float16)

    def multiply(caller: int) -> bool:
        x = np.full((1, 32), caller + 1, dtype=np.float32)
        expected = (x @ weights[caller].astype(np.float32).T)[0]
        out = np.empty((1, 96), dtype=np.float32)
        for num_threads in [2, 5, 8, 3] * 250:
            out.fill(np.nan)
            library.matmul(
                weights[caller].ctypes.data, 1, x.ctypes.data, out.ctypes.data, num_rows=1, num_columns=96, k=32,
                num_threads=num_threads,
            )  # fmt: skip
            if not np.allclose(out[0], expected, rtol=1e-3, atol=1e-3):
                return False
        return True

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(multiply, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_of_fork_does_not_wait_for_threads_it_has_not() -> None:
    shared = _product()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        os.write(writer, b"1" if torch.equal(_product(), shared) else b"0")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.waitpid(child, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of the GNU C library")
def test_memory_that_was_freed_is_used_again() -> None:
    """Blocks of some MiB cost no page faults the second time; by default each one does."""
    code = """
import ctypes, resource, sys
from llavakit.model.threads import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for round in range(6):
    if round == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(4 << 20) for _ in range(12)]
    for block in blocks: libc.memset(block, 1, 4 << 20)
    for block in blocks: libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=True).stdout)
        for kind in ("default", "keep")
    ]
    assert faults[0] > 10_000
    assert faults[1] < 1_000
