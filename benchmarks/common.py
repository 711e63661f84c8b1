"""What every benchmark shares: the machine's manifest, result files, tables, statistics."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from llavakit.core.host_memory import read_available_bytes
from llavakit.kernels.machine import count_cpus, get_cpu_name

__all__ = ["RESULTS", "ROOT", "make_manifest", "make_table", "summarise", "write_result"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("torch", "transformers", "numpy", "pillow", "tokenizers", "safetensors")


def make_manifest(*, num_threads: int) -> dict[str, Any]:
    """Return what a number cannot be read without: machine, versions, commit, date. No host names, no paths."""
    return {
        "cpu": get_cpu_name(),
        "num_cpus": count_cpus(),
        "num_threads": num_threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "available_gib": round((read_available_bytes() or 0) / 1024**3, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _find_version(name))},
        "commit": _find_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _find_commit() -> str:
    """Return the commit, with a mark when the measured code differs from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        is_changed = bool(_git("status", "--porcelain", "--untracked-files=no", "--", "src", "csrc", "benchmarks"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if is_changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_result(name: str, manifest: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Path:
    """Append one run to ``results/NAME.jsonl``, one JSON object a line; return the file."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.jsonl"
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"benchmark": name, "manifest": manifest, "rows": list(rows)}, ensure_ascii=False) + "\n")
    return file


def make_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
