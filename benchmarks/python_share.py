"""Python's share of a step: how much of the time between two tokens is not spent in the native library.

    python -m benchmarks.python_share --model MODEL.gguf

Every call of the native library is timed by a wrapper; what is left of a step is Python, torch's small operations, and
the wrappers themselves, so that the share is an upper bound.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import make_manifest, make_table, summarise, write_result
from benchmarks.llavakit_worker import Worker
from llavakit.kernels.library import KernelLibrary
from llavakit.model.threads import load_shared_library

_COLUMNS = ("model", "depth", "step", "in the native library", "calls", "Python's share")


class Meter:
    """Sums up the time in a library's functions."""

    def __init__(self, library: KernelLibrary) -> None:
        self.seconds, self.num_calls = 0.0, 0
        self._library = library._library
        self._plain = {name: value for name, value in vars(self._library).items() if name.startswith("llk_")}

    def start(self) -> None:
        """Wrap every function."""
        for name, function in self._plain.items():
            setattr(self._library, name, self._wrap(function))

    def stop(self) -> None:
        """Put the functions back."""
        for name, function in self._plain.items():
            setattr(self._library, name, function)

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            self.num_calls += 1
            return result

        return timed


def measure(worker: Worker, depth: int, num_steps: int) -> tuple[float, float, int]:
    """Return seconds of a step, of it in the library, and its calls there."""
    meter = Meter(load_shared_library())
    first = worker._prompt([1, 200, *range(100, 98 + depth)])
    # The same prompt with one further token and with many: the difference is steps alone.
    sums = []
    for num_tokens in (2, num_steps + 2):
        meter.seconds, meter.num_calls = 0.0, 0
        meter.start()
        began = time.perf_counter()
        worker._run([first], num_tokens)
        sums.append((time.perf_counter() - began, meter.seconds, meter.num_calls))
        meter.stop()
    whole, native, calls = (after - before for before, after in zip(*sums, strict=True))
    return whole / num_steps, native / num_steps, round(calls / num_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with its projector beside it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="*", default=[16, 600])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--label", help="what to call the model in the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    worker = Worker()
    worker.load(model=str(options.model), projector="", threads=options.threads, context=0, sequences=1)
    label = options.label or options.model.stem
    rows: list[dict[str, Any]] = []
    for depth in options.depths:
        found = [measure(worker, depth, options.steps) for _ in range(options.rounds)]
        shares = [1 - native / whole for whole, native, _ in found]
        rows.append(
            {
                "model": label, "depth": depth, "step": f"{1000 * median(one[0] for one in found):.1f} ms",
                "in the native library": f"{1000 * median(one[1] for one in found):.1f} ms", "calls": found[0][2],
                "Python's share": f"{median(shares):.1%}", "shares": shares,
                "steps": summarise([one[0] for one in found]),
            }
        )  # fmt: skip
    manifest = make_manifest(num_threads=options.threads)
    write_result("python_share", manifest, rows)
    print(f"commit {manifest['commit']}\n\n{make_table(rows, _COLUMNS)}")


if __name__ == "__main__":
    main()
