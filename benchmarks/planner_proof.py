"""Bring what the planner's method page shows of its errors into the package's data.

    python -m benchmarks.planner_proof           says whether the data are those of the stored records
    python -m benchmarks.planner_proof --write   writes them

Of `benchmarks.planner_error`: the newest stored runs of every instruction set, and the errors of other rules.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.engine_shares import is_seen
from benchmarks.planner_error import RUNS, compare_memory, compare_speeds, key_of, read_stored, setting_of
from llavakit.diagnostics.plan_check import limits_of
from llavakit.kernels.machine import MachineLimits

_DATA = Path(__file__).parents[1] / "src" / "llavakit" / "planner" / "data" / "proof.json"


def make_machines() -> list[dict[str, Any]]:
    """Return the stored runs, machine by machine."""
    machines = []
    for instruction_set, found in read_stored().items():
        runs = [_run(run, found[key_of(run)]) for run in RUNS if key_of(run) in found]
        limits = runs[0]["limits"]
        machines.append(
            {
                "instruction_set": instruction_set, "cpu": limits["cpu_name"], "threads": limits["num_threads"],
                "date": _date_of(found), "runs": runs,
            }
        )  # fmt: skip
    return machines


def _run(run: tuple[str, str, int, int, int, str], measured: dict[str, Any]) -> dict[str, Any]:
    limits = limits_of(measured)
    setting = setting_of(run)
    return {
        "model": run[0], "quant": run[1], "num_images": setting.num_images, "num_text_tokens": setting.num_text_tokens,
        "num_new_tokens": setting.num_new_tokens, "cache": run[5], "is_seen": is_seen(run),
        "num_prompt_tokens": measured["num_prompt_tokens"],
        "limits": {name: _rounded(getattr(limits, name)) for name in MachineLimits.__slots__},
        "peak_bytes": measured["peak_bytes"], "vision_s": _rounded(measured["vision_s"]) if run[2] else None,
        "prompt_s": _rounded(measured["prompt_s"]), "decode_s": _rounded(measured["decode_s"]),
    }  # fmt: skip


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _date_of(found: dict[str, Any]) -> str:
    for line in reversed((RESULTS / "planner_error.jsonl").read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if {row["run"]: row["measured"] for row in record["rows"] if "run" in row} == found:
            return str(record["manifest"]["date"])
    raise AssertionError("runs come from a record")


def make_rules() -> dict[str, list[dict[str, Any]]]:
    """Return the memory of the 13B by each rule, and the errors of other rules of speed."""
    return {
        "memory_rules": compare_memory(),
        "speed_rules": [row for row in compare_speeds() if row["rule"] != "llavakit"],
    }


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {_DATA.name}")
    options = parser.parse_args()
    found = {"machines": make_machines(), **make_rules()}
    if options.write:
        _DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(_DATA.read_text(encoding="utf-8"))
    print(f"{_DATA.name} is {'' if stored == found else 'not '}what the records say.")


if __name__ == "__main__":
    main()
