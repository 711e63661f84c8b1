"""What a vision tower's products and attention take: as shares of the machine's rate, and beside another build.

    python -m benchmarks.tower_products [--other LIBRARY]

Shapes of the 7B's tower, float16 weights that are read from memory each time. Both libraries are in one process and
take turns in the order A B B A, and the rate of 16-bit products is measured before every turn. The other library may be
of an older interface, as long as it has these functions: ``llk_matmul`` and ``llk_attention``.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.kernels.library import Activation, Rate, load_library
from llavakit.kernels.machine import count_cpus
from llavakit.kernels.structures import AttentionCall, Matrix

_ROWS, _WIDTH, _MLP, _HEADS, _HEAD_DIM, _F16 = 577, 1024, 4096, 16, 64, 1
_WEIGHT_BYTES = 96 << 20  # so many of a shape that each is out of the caches when its turn comes again
_RATE_SECONDS = 0.02
_COLUMNS = ("what", "ms", "share of the rate", "other, ms", "this / other")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    int32, int64, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    library.llk_matmul.argtypes = [
        int32, int32, address, int64, int64, address, int64, address, int32, address, int64, int32,
    ]  # fmt: skip
    library.llk_attention.argtypes = [int32, ctypes.POINTER(AttentionCall), int32]
    return library


class Work:
    """Arrays of the tower's shapes, and calls on them."""

    def __init__(self, num_threads: int) -> None:
        self._threads, self._level = num_threads, int(load_library().best)
        rng = np.random.default_rng(0)
        self._x = rng.standard_normal((_ROWS, _MLP)).astype(np.float32)
        self._out, self._between = (np.empty((_ROWS, _MLP), np.float32) for _ in range(2))
        self._bias = np.zeros(_MLP, np.float32)
        # Every matrix has as many numbers or a quarter; they begin at different places of one array.
        pattern = (rng.standard_normal(1 << 20) * 0.02).astype(np.float16)
        self._weights = np.tile(pattern, _WEIGHT_BYTES // pattern.nbytes)
        self._places = itertools.cycle(range(0, self._weights.size - (_MLP * _WIDTH), _MLP * _WIDTH))

    def _weight(self) -> int:
        return self._weights.ctypes.data + 2 * next(self._places)

    def multiply(self, library: ctypes.CDLL, num_columns: int, k: int, *, is_second: bool = False) -> None:
        """One product; the second of a pair takes the first one's result."""
        x, out = (self._out, self._between) if is_second else (self._x, self._out)
        status = library.llk_matmul(
            self._level, _F16, self._weight(), num_columns, k, x.ctypes.data, _ROWS, self._bias.ctypes.data,
            Activation.QUICK_GELU if num_columns == _MLP else Activation.NONE, out.ctypes.data, num_columns,
            self._threads,
        )  # fmt: skip
        assert status == 0  # noqa: S101

    def multiply_pair(self) -> None:
        """Compute the MLP in one call, by this library."""
        load_library().matmul_pair(
            Matrix(self._weight(), _MLP, _WIDTH, _F16, 0), Matrix(self._weight(), _WIDTH, _MLP, _F16, 0),
            self._x.ctypes.data, self._between.ctypes.data, num_rows=_ROWS, num_threads=self._threads,
            first_bias_address=self._bias.ctypes.data, second_bias_address=self._bias.ctypes.data,
            activation=Activation.QUICK_GELU,
        )  # fmt: skip

    def attend(self, library: ctypes.CDLL) -> None:
        """All heads, without a mask."""
        counts, call = np.array([_ROWS]), AttentionCall()
        call.query = call.keys = call.values = self._x.ctypes.data
        call.out, call.num_keys = self._out.ctypes.data, counts.ctypes.data
        call.query_strides[:] = call.key_strides[:] = call.value_strides[:] = (0, _HEAD_DIM, _WIDTH)
        call.batch, call.num_queries, call.num_heads, call.num_kv_heads = 1, _ROWS, _HEADS, _HEADS
        call.head_dim, call.kv_type, call.is_causal, call.scale = _HEAD_DIM, 0, 0, _HEAD_DIM**-0.5
        assert library.llk_attention(self._level, ctypes.byref(call), self._threads) == 0  # noqa: S101


def measure(
    name: str, flops: float, ours: Callable[[], None], other: Callable[[], None] | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Take turns; the ratio is the median of those of neighbouring turns."""
    library, times, shares = load_library(), {True: [], False: []}, []  # type: ignore[var-annotated]
    for idx in range(options.rounds + 2):
        rate = library.measure_rate(Rate.BF16_DOT, num_threads=options.threads, seconds=_RATE_SECONDS)
        for is_ours in (True, False) if idx % 2 == 0 else (False, True):
            call = ours if is_ours else other
            if call is None:
                continue
            began = time.perf_counter()
            call()
            seconds = time.perf_counter() - began
            if idx > 1:
                times[is_ours].append(seconds)
                if is_ours and rate is not None:
                    shares.append(flops / seconds / (rate * 1e9))
    row: dict[str, Any] = {"what": name, "ms": round(1e3 * median(times[True]), 3)}
    row["share of the rate"] = f"{100 * median(shares):.0f} %" if shares else None
    if times[False]:
        row["other, ms"] = round(1e3 * median(times[False]), 3)
        row["this / other"] = round(median(a / b for a, b in zip(times[True], times[False], strict=True)), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--other", type=Path, help="a shared library of another build")
    parser.add_argument("--threads", type=int, default=count_cpus())
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    this, work = _declare(ctypes.CDLL(str(load_library().path))), Work(options.threads)
    other = None if options.other is None else _declare(ctypes.CDLL(str(options.other.resolve())))

    def both(call: Callable[[ctypes.CDLL], None]) -> tuple[Callable[[], None], Callable[[], None] | None]:
        return lambda: call(this), None if other is None else lambda: call(other)

    def mlp(library: ctypes.CDLL) -> None:
        work.multiply(library, _MLP, _WIDTH)
        work.multiply(library, _WIDTH, _MLP, is_second=True)

    small, large = 2.0 * _ROWS * _WIDTH * _WIDTH, 2.0 * _ROWS * _WIDTH * _MLP
    rows = [
        measure(f"{columns} x {k}", flops, *both(lambda one, c=columns, k=k: work.multiply(one, c, k)), options)  # type: ignore[misc]
        for columns, k, flops in ((_WIDTH, _WIDTH, small), (_MLP, _WIDTH, large), (_WIDTH, _MLP, large))
    ]
    rows.append(measure("attention", 4.0 * _ROWS * _ROWS * _WIDTH, *both(work.attend), options))
    rows.append(measure("MLP in one call, other: in two", 2 * large, work.multiply_pair, lambda: mlp(this), options))
    manifest = make_manifest(num_threads=options.threads)
    print(make_table(rows, _COLUMNS))
    print(write_result("tower_products", manifest, rows))


if __name__ == "__main__":
    main()
