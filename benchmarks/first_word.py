"""From the start of a process to the first word about a picture: llavakit beside llama.cpp, cold and warm.

    python -m benchmarks.first_word --model MODEL.gguf --peer PEER_FOLDER

A person types a command and waits. Both start a new process for every question, on the same GGUF pair and picture:
`llavakit run`, and llama-cpp-python's chat handler for LLaVA-1.5 as its documentation shows it. The clock runs from the
start of the process to the first visible character of the answer. Cold: nothing of the files, nor of Python and the
libraries where the system allows to drop them, is in the page cache. They take turns in the order A B B A.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import ROOT, make_manifest, make_table, summarise, write_result
from llavakit.core.config import LlavaConfig
from llavakit.diagnostics.generated import encode_jpeg, make_picture
from llavakit.diagnostics.memory import drop_page_cache
from llavakit.weights.gguf_checkpoint import find_projector
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

_QUESTION = "What is in this picture?"
_CONTEXT = 2048
_COLUMNS = ("page cache", "llavakit", "llama.cpp", "speed ratio", "of pairs faster")
_EVERYTHING = Path("/proc/sys/vm/drop_caches")


def make_commands(options: argparse.Namespace, projector: Path, picture: Path) -> dict[str, list[str]]:
    """Return both sides' commands."""
    threads = str(options.threads)
    return {
        "ours": [
            sys.executable, "-m", "llavakit", "run", str(options.model), _QUESTION, "--image", str(picture),
            "--max-new-tokens", "2", "--threads", threads, "--quiet",
        ],
        "theirs": [
            str(options.peer / "bin/python"), str(ROOT / "benchmarks/llama_cpp_first_word.py"), str(options.model),
            str(projector), str(picture), _QUESTION, threads, str(_CONTEXT),
        ],
    }  # fmt: skip


def time_first_word(command: list[str]) -> float:
    """Return the seconds from the start of a process to the first visible character on its standard output."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None  # noqa: S101 - piped above
    descriptor = process.stdout.fileno()
    while chunk := os.read(descriptor, 4096):
        if chunk.strip():
            break
    seconds = time.perf_counter() - began
    process.communicate()
    if not chunk or process.returncode:
        raise SystemExit(f"no word came, status {process.returncode}: {command!r}")
    return seconds


def drop_everything(files: list[Path]) -> bool:
    """Empty the page cache; where only the superuser may, forget the model's files. Return which it was."""
    os.sync()
    drop_page_cache(files)
    try:
        _EVERYTHING.write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def read(files: list[Path]) -> None:
    """Bring files into the page cache."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with its projector beside it")
    parser.add_argument("--peer", type=Path, required=True, help="the folder that benchmarks.cpu_peers built")
    parser.add_argument("--label", help="what to call the model in the results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--caches", nargs="*", choices=("cold", "warm"), default=["cold", "warm"])
    options = parser.parse_args()
    config: LlavaConfig = open_resolved(resolve(str(options.model))).checkpoint.config
    projector = find_projector(options.model, config.text_config.hidden_size)
    files = [options.model, projector]
    manifest = make_manifest(num_threads=options.threads)
    label = options.label or options.model.stem
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(encode_jpeg(make_picture(0)))
        commands = make_commands(options, projector, picture)
        rows: list[dict[str, Any]] = []
        for cache in options.caches:
            times: dict[str, list[float]] = {side: [] for side in commands}
            has_dropped_all = None
            for idx in range(options.rounds):
                for side in ("ours", "theirs") if idx % 2 == 0 else ("theirs", "ours"):
                    if cache == "cold":
                        has_dropped_all = drop_everything(files)
                    else:
                        read(files)
                    times[side].append(time_first_word(commands[side]))
            ours, theirs = times["ours"], times["theirs"]
            num_faster = sum(mine <= their for mine, their in zip(ours, theirs, strict=True))
            rows.append(
                {
                    "page cache": cache, "llavakit": f"{median(ours):.2f} s", "llama.cpp": f"{median(theirs):.2f} s",
                    "speed ratio": round(median(theirs) / median(ours), 2),
                    "of pairs faster": f"{num_faster}/{options.rounds}", "has_dropped_everything": has_dropped_all,
                    "ours": {**summarise(ours), "all_s": ours}, "theirs": {**summarise(theirs), "all_s": theirs},
                }
            )  # fmt: skip
            print(make_table([rows[-1]], _COLUMNS).splitlines()[-1], flush=True)
    write_result("first_word", manifest, [{"model": label, **row} for row in rows])
    print(f"\n{label}, {options.threads} threads, commit {manifest['commit']}\n\n{make_table(rows, _COLUMNS)}")


if __name__ == "__main__":
    main()
