"""The native library computes on torch's threads, and where it cannot, on its own with the same results."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

from llavakit.model import threads
from llavakit.model.stored_matrix import StoredMatrix

_WEIGHTS = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float16).view(np.uint8)


def _product() -> torch.Tensor:
    x = torch.arange(64 * 40, dtype=torch.float32).view(40, 64).sin()
    return StoredMatrix(_WEIGHTS, "float16", (300, 64)).multiply(x)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are shared where torch brings GNU OpenMP")
def test_torchs_threads_are_found() -> None:
    assert threads._find_team() is not None


def test_own_threads_compute_the_same() -> None:
    library = threads.load_shared_library()
    shared = _product()
    library.set_team(None)
    try:
        assert torch.equal(_product(), shared)
    finally:
        threads.load_shared_library.cache_clear()
        threads.load_shared_library()


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
