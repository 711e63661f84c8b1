"""llavakit beside llama.cpp on the same GGUF pair: two processes that take turns in one run.

    python -m benchmarks.cpu_peers --build-peer PEER_FOLDER
    python -m benchmarks.cpu_peers --model MODEL.gguf --peer PEER_FOLDER
    python -m benchmarks.cpu_peers --model MODEL.gguf --transformers

The first builds llama-cpp-python from its source package for this very machine. Every figure is measured on both sides
in the order A B B A, and is given with its share of what the machine can do: bytes read a second for single tokens,
8-bit products a second for prompts, 16-bit ones for pictures. What it can do is measured again before every round, as a
machine that others share is not equally fast at all times. The third compares with transformers in bfloat16, whose
weights are random and made in memory (`benchmarks/transformers_worker.py`): pictures and prompts only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.common import ROOT, make_manifest, make_table, summarise, write_result
from llavakit.core.config import LlavaConfig
from llavakit.core.shapes import decode_flops, kv_bytes_per_token, prefill_flops, projector_flops, vision_flops
from llavakit.diagnostics.generated import make_picture
from llavakit.diagnostics.memory import drop_page_cache
from llavakit.kernels.library import Rate, load_library
from llavakit.weights.gguf_checkpoint import find_projector
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

_PACKAGE = "llama-cpp-python"
_LIMIT_SECONDS = 0.3


class Work(NamedTuple):
    """What has to be done at least: bytes to read, and operations at a rate."""

    num_bytes: float
    num_ops: float
    rate: Rate


class Side:
    """One worker process."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None  # noqa: S101 - piped above
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended while it was asked for {op!r}: {self._process.args!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)


def build_peer(folder: Path) -> None:
    """Build llama-cpp-python from source, with every instruction of this machine."""
    venv.create(folder, with_pip=True)
    subprocess.run(
        [
            str(folder / "bin/pip"),
            "install",
            "--no-cache-dir",
            "--no-binary",
            _PACKAGE,
            _PACKAGE,
            "-C",
            "cmake.args=-DGGML_NATIVE=ON",
        ],
        check=True,
    )


def find_peer_version(folder: Path) -> str:
    """Return the version of the llama-cpp-python that `build_peer` made."""
    command = [str(folder / "bin/python"), "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


class Comparison:
    """Both sides, what is asked of them, and what the machine could do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.commands = {
            "ours": [sys.executable, "-m", "benchmarks.llavakit_worker"],
            "theirs": [sys.executable, "-m", "benchmarks.transformers_worker"]
            if options.transformers
            else [str(options.peer / "bin/python"), str(ROOT / "benchmarks/llama_cpp_worker.py")],
        }
        self.sides: dict[str, Side] = {}
        self.library = load_library()
        self.read_gb_per_s = self._measure_read(1)
        self.int8_gops = self._measure_rate(Rate.INT8_DOT, 1)
        self.word_gops = self._measure_rate(Rate.BF16_DOT, 1)
        self.peer_name = "transformers" if options.transformers else "llama.cpp"
        self.columns = ("measured", "llavakit", self.peer_name, "speed ratio", "share of the limit", "their share")
        self.model_bytes = options.model.stat().st_size
        opened = open_resolved(resolve(str(options.model)))
        self.config: LlavaConfig = opened.checkpoint.config

    def run(self) -> Iterator[dict[str, Any]]:
        """Measure everything; yield a row as soon as it is measured."""
        options = self.options
        projector = find_projector(options.model, self.config.text_config.hidden_size)
        loading = {
            "model": str(options.model), "projector": str(projector), "threads": options.threads,
            "context": max(2200, max(options.depths, default=0) + 64, 8 * 128),
            "sequences": max(options.batches, default=1),
        }  # fmt: skip
        if options.cold and not options.transformers:
            cold = self._load_cold([options.model, projector], loading)
            yield self._row("load, cold page cache", [cold["ours"]], [cold["theirs"]])
        self.sides = {name: Side(command) for name, command in self.commands.items()}
        loads = {name: side.ask("load", **loading)["seconds"] for name, side in self.sides.items()}
        if not options.transformers:
            yield self._row("load, warm page cache", [loads["ours"]], [loads["theirs"]])
        with tempfile.TemporaryDirectory() as folder:
            size = self.config.vision_config.image_size
            pixels = Path(folder) / "pixels"
            pixels.write_bytes(make_picture(0).convert("RGB").resize((size, size)).tobytes())
            flops = vision_flops(self.config) + projector_flops(self.config)
            if options.pictures:
                yield self._compare(
                    "picture through tower and projector", "picture", {"pixels": str(pixels), "size": size},
                    work=Work(0, flops, Rate.BF16_DOT),
                )  # fmt: skip
        for num_tokens in options.prompts:
            ids = [1, *(100 + idx % 20000 for idx in range(num_tokens - 1))]
            flops = prefill_flops(self.config, num_tokens)
            yield self._compare(
                f"prompt of {num_tokens} tokens", "prompt", {"ids": ids}, work=Work(0, flops, Rate.INT8_DOT)
            )
        if options.transformers:
            return
        for depth in options.depths:
            yield self._compare_decode(depth, 1)
        for batch in options.batches:
            if batch > 1:
                yield self._compare_decode(64, batch)
        peaks = {name: side.ask("memory")["peak_bytes"] for name, side in self.sides.items()}
        yield {
            "measured": "peak memory", "llavakit": f"{peaks['ours'] / 1e9:.2f} GB",
            self.peer_name: f"{peaks['theirs'] / 1e9:.2f} GB", "speed ratio": None, "peaks": peaks,
            "file_bytes": self.model_bytes + projector.stat().st_size,
        }  # fmt: skip

    def _load_cold(self, files: list[Path], loading: dict[str, Any]) -> dict[str, float]:
        seconds = {}
        for name, command in self.commands.items():
            drop_page_cache(files)
            side = Side(command)
            seconds[name] = side.ask("load", **loading)["seconds"]
            side.close()
        return seconds

    def _compare_decode(self, depth: int, batch: int) -> dict[str, Any]:
        num_bytes = self.model_bytes + batch * depth * kv_bytes_per_token(self.config, "float16")
        work = Work(num_bytes, batch * decode_flops(self.config, depth), Rate.INT8_DOT)
        name = f"one token of {batch} sequences" if batch > 1 else f"one token at depth {depth}"
        return self._compare(name, "decode", {"depth": depth, "steps": 16, "batch": batch}, work=work)

    def _measure_read(self, seconds: float) -> float:
        return self.library.measure_read(
            num_bytes=1 << 30, num_threads=self.options.threads, num_streams=1, seconds=seconds
        )

    def _measure_rate(self, rate: Rate, seconds: float) -> float:
        gops = self.library.measure_rate(rate, num_threads=self.options.threads, seconds=seconds)
        if gops is not None:
            return gops
        if rate is Rate.BF16_DOT:
            # Pictures then go through products of 16-bit integers, half as many as of bytes.
            return self._measure_rate(Rate.INT8_DOT, seconds) / 2
        raise SystemExit("this processor has no products of bytes; shares of its limit cannot be given.")

    def _measure_limit(self, work: Work) -> float:
        """Return the seconds that the machine, as fast as it is now, needs at least."""
        seconds = work.num_ops / (self._measure_rate(work.rate, _LIMIT_SECONDS) * 1e9)
        if work.num_bytes:
            seconds = max(seconds, work.num_bytes / (self._measure_read(_LIMIT_SECONDS) * 1e9))
        return seconds

    def _compare(self, name: str, op: str, arguments: dict[str, Any], *, work: Work) -> dict[str, Any]:
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        limits = []
        for idx in range(self.options.rounds):
            limits.append(self._measure_limit(work))
            for side in ("ours", "theirs") if idx % 2 == 0 else ("theirs", "ours"):
                times[side].append(self.sides[side].ask(op, **arguments)["seconds"])
        return self._row(name, times["ours"], times["theirs"], limits=limits)

    def _row(
        self, name: str, ours: list[float], theirs: list[float], *, limits: Sequence[float] = ()
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "measured": name,
            "llavakit": _show(median(ours)),
            self.peer_name: _show(median(theirs)),
            "speed ratio": round(median(theirs) / median(ours), 2),
            "ours": {**summarise(ours), "all_s": ours},
            "theirs": {**summarise(theirs), "all_s": theirs},
        }
        if limits:
            row["limits_s"] = list(limits)
            for column, times in (("share of the limit", ours), ("their share", theirs)):
                share = median(limit / seconds for limit, seconds in zip(limits, times, strict=True))
                row[column] = f"{100 * share:.0f} %"
        return row

    def close(self) -> None:
        """End both processes."""
        for side in self.sides.values():
            side.close()


def _show(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build-peer", type=Path, help="build llama-cpp-python into a new folder and stop")
    parser.add_argument("--peer", type=Path, help="the folder that --build-peer made")
    parser.add_argument("--transformers", action="store_true", help="compare with transformers in bfloat16 instead")
    parser.add_argument("--model", type=Path, help="a GGUF file with its projector beside it")
    parser.add_argument("--label", help="what to call it in the results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, nargs="*", default=[64, 128, 600, 2000])
    parser.add_argument("--depths", type=int, nargs="*", default=[2, 600, 3500])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--cold", action="store_true", help="measure loading from a cold page cache too")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false")
    options = parser.parse_args()
    if options.build_peer:
        build_peer(options.build_peer)
        return
    if not options.model or not (options.peer or options.transformers):
        parser.error("name --model and --peer or --transformers, or --build-peer")
    manifest = make_manifest(num_threads=options.threads)
    if not options.transformers:
        manifest["versions"][_PACKAGE] = find_peer_version(options.peer)
    comparison = Comparison(options)
    limits = {
        "read_gb_per_s": comparison.read_gb_per_s, "int8_gops": comparison.int8_gops,
        "word_gops": comparison.word_gops,
    }  # fmt: skip
    label = options.label or options.model.stem
    print(f"{label}, {options.threads} threads, commit {manifest['commit']}, {limits}\n")
    print(make_table([], comparison.columns))
    try:
        for row in comparison.run():
            write_result("cpu_peers", manifest, [{"model": label, "limits": limits, **row}])
            print(make_table([row], comparison.columns).splitlines()[-1], flush=True)
    finally:
        comparison.close()


if __name__ == "__main__":
    main()
