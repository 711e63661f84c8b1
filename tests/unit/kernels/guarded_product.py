"""A product by the library, with untouchable memory behind its result."""

from __future__ import annotations

import numpy as np

from llavakit.kernels.library import InstructionSet, load_library
from llavakit.weights.ggml_types import type_by_name

_GUARD = np.float32(12345.0)


def run(x: np.ndarray, stored: np.ndarray, dtype: str, *, level: InstructionSet, num_threads: int = 2) -> np.ndarray:
    """Multiply ``x`` (M, K) with rows of stored bytes (N, ...) of a type: (M, N)."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    guarded = np.full(len(x) * len(stored) + 16, _GUARD)
    load_library().matmul(
        stored.ctypes.data, type_by_name(dtype).type_id, x.ctypes.data, guarded.ctypes.data, num_rows=len(x),
        num_columns=len(stored), k=x.shape[1], num_threads=num_threads, level=level,
    )  # fmt: skip
    assert (guarded[-16:] == _GUARD).all()
    return guarded[:-16].reshape(len(x), len(stored))
