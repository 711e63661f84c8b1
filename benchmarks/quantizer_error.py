"""Errors and speed of our quantizer beside llama.cpp's, type by type.

    python -m benchmarks.quantizer_error --peer PEER_FOLDER     # as built by benchmarks.cpu_peers --build-peer

Both quantize the same rows: normal numbers as most weights are, Laplace and Student's t with three degrees of freedom,
whose tails are heavy, and matrices of llava:tiny; without importance, and with that of columns whose scales differ. The
error is the root of the weighted mean squared difference over that of the weights; ours divided by theirs should not
exceed 1. Speed is that of one thread each, on the normal numbers.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.kernels.library import load_library
from llavakit.weights.ggml_types import stored_bytes, type_by_name
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
_ROWS, _K = 256, 2048
_REPEATS = 3


def make_tensors() -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and matrices whose rows are whole blocks of 256."""
    rng = np.random.default_rng(0)
    shape = (_ROWS, _K)
    yield "normal", rng.standard_normal(shape).astype(np.float32) * 0.02
    yield "Laplace", rng.laplace(size=shape).astype(np.float32) * 0.02
    yield "Student t, 3", rng.standard_t(3, size=shape).astype(np.float32) * 0.02
    tensors = open_resolved(resolve("llava:tiny")).checkpoint.tensors
    parts = [
        np.frombuffer(tensor.data, dtype=np.float16).astype(np.float32)
        for name, tensor in tensors.items()
        if name.startswith("language_model.layers") and name.endswith("proj.weight") and tensor.dtype == "float16"
    ]
    weights = np.concatenate(parts)
    yield "llava:tiny", weights[: len(weights) // _K * _K].reshape(-1, _K)


class LlamaCpp:
    """``ggml_quantize_chunk`` of a built llama.cpp."""

    def __init__(self, peer: Path) -> None:
        (file,) = sorted(peer.glob("lib/python3*/site-packages/llama_cpp/lib/libggml-base.so"))
        self._library = ctypes.CDLL(str(file))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip

    def quantize(self, x: np.ndarray, dtype: str, importance: np.ndarray | None) -> np.ndarray:
        """Return the blocks of rows (N, K)."""
        out = np.empty(stored_bytes(dtype, x.size), dtype=np.uint8)
        address = None if importance is None else importance.ctypes.data
        self._library.ggml_quantize_chunk(
            type_by_name(dtype).type_id, x.ctypes.data, out.ctypes.data, 0, len(x), x.shape[1], address
        )
        return out


def quantize_ours(x: np.ndarray, dtype: str, importance: np.ndarray | None, num_threads: int = 2) -> np.ndarray:
    """Return the blocks of rows (N, K)."""
    out = np.empty(stored_bytes(dtype, x.size), dtype=np.uint8)
    load_library().quantize(x, type_by_name(dtype).type_id, out, num_threads=num_threads, importance=importance)
    return out


def error_of(blocks: np.ndarray, dtype: str, x: np.ndarray, importance: np.ndarray | None) -> float:
    """Weighted root mean square error, relative to the weights."""
    values = load_library().dequantize(blocks, type_by_name(dtype).type_id, x.size).reshape(x.shape)
    weight = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    squares = (values.astype(np.float64) - x) ** 2 * weight
    return float(np.sqrt(squares.sum() / (x.astype(np.float64) ** 2 * weight).sum()))


def speed_of(quantize: Callable[[], object], num_weights: int) -> float:
    """Million weights in a second of one processor, which others' work changes less than seconds of the clock."""
    seconds = []
    for _ in range(_REPEATS):
        began = time.process_time()
        quantize()
        seconds.append(time.process_time() - began)
    return num_weights / min(seconds) / 1e6


def speed_rows(theirs: LlamaCpp, x: np.ndarray, importance: np.ndarray) -> list[dict[str, Any]]:
    """One thread each, in turn; searches go on until the error stops falling, so the weights matter."""
    rows: list[dict[str, Any]] = []
    for title, weights in (("none", None), ("log-normal", importance)):
        row: dict[str, Any] = {"weights": "speed", "importance": title}
        for dtype in _TYPES:
            ours = speed_of(partial(quantize_ours, x, dtype, weights, num_threads=1), x.size)
            their = speed_of(partial(theirs.quantize, x, dtype, weights), x.size)
            row[dtype] = round(ours / their, 2)
            row[f"{dtype} million weights a second"] = [round(ours, 2), round(their, 2)]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="the folder that benchmarks.cpu_peers built")
    options = parser.parse_args()
    theirs = LlamaCpp(options.peer)
    importance = np.exp(np.random.default_rng(1).standard_normal(_K)).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for name, x in make_tensors():
        for weights in (None, importance):
            row: dict[str, Any] = {"weights": name, "importance": "none" if weights is None else "log-normal"}
            for dtype in _TYPES:
                ours = error_of(quantize_ours(x, dtype, weights), dtype, x, weights)
                their = error_of(theirs.quantize(x, dtype, weights), dtype, x, weights)
                row[dtype] = round(ours / their, 4)
                row[f"{dtype} errors"] = [ours, their]
            rows.append(row)
    speeds = speed_rows(theirs, next(x for _, x in make_tensors()), importance)
    manifest = make_manifest(num_threads=2)
    write_result("quantizer_error", manifest, rows + speeds)
    print(f"our error over llama.cpp's; commit {manifest['commit']}\n")
    print(make_table(rows, ["weights", "importance", *_TYPES]))
    print("\nour speed over llama.cpp's, a thread each\n")
    print(make_table(speeds, ["importance", *_TYPES]))


if __name__ == "__main__":
    main()
