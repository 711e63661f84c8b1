"""How wrong the planner is, beside other rules: sizes, speeds of left-out devices, this machine.

    python -m benchmarks.planner_error                      tables from data and stored runs, in seconds
    python -m benchmarks.planner_error --machine FOLDER     and runs of this package on this machine; random weights of
                                                            the real shapes are written to FOLDER and stay there

Other rules are written down from what their authors publish: "catalogue" is parameters x naive bits / 8 + 0.5 GB;
llmfit's memory is parameters x bytes per type + 0.5 GB with its cache rule, and its speed bandwidth / size x 0.55;
whichllm's memory is 0.5625 bytes a parameter, 3.5 MiB x billions x thousands of tokens, and its overheads; "one factor"
is bandwidth / bytes x the one share with the least mean error, which flatters it: it has seen the rows. Both speed
rules are given the true bytes, where their authors estimate them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import RESULTS, make_manifest, make_table, write_result
from llavakit.diagnostics.plan_check import compare, measure_run
from llavakit.kernels.machine import count_cpus
from llavakit.planner.calibrate import leave_one_out
from llavakit.planner.devices import find_device, read_rows
from llavakit.planner.machine import generic_host
from llavakit.planner.measured import decode_work, list_rows
from llavakit.planner.models import find_model
from llavakit.planner.plans import make_plan
from llavakit.planner.records import KV_BLOCK_BYTES, Setting

Run = tuple[str, str, int, int, int, str]
_BITS = {"q4_k_m": 4.5, "q6_k": 6.5, "q8_0": 8.0, "f16": 16.0}
_LLMFIT_BYTES = {"q4_k_m": 0.58, "q6_k": 0.80, "q8_0": 1.05, "f16": 2.0}
_PARAMETERS_B = 13.1
# LLaVA-1.5 13B on llama.cpp, all layers on the device, 4,096 tokens, without the driver: weights, projector, work
# buffer and cache, each as its logs print them, and the compute buffer by formula (no log of it at this size is known).
_SUM_GB = {"q4_k_m": 12.19, "q6_k": 14.97, "q8_0": 18.08, "f16": 30.13}
# Rows of kinds of which fewer than three devices were measured are counted apart.
_ALL = ("all", "all, three devices or more of the kind", "all, fewer")
# Model, type, pictures, tokens of text, tokens of answer, cache.
RUNS = (
    ("llava:7b", "q4_k_m", 0, 32, 8, "f16"), ("llava:7b", "q4_k_m", 1, 24, 8, "f16"),
    ("llava:7b", "q4_k_m", 0, 1024, 8, "f16"), ("llava:7b", "q4_k_m", 0, 1024, 8, "q8_0"),
    ("llava:7b", "q4_k_m", 2, 24, 8, "q8_0"), ("llava:7b", "q4_k_m", 0, 3000, 4, "f16"),
    ("llava:7b", "q4_k_m", 3, 200, 4, "f16"), ("llava:7b", "q4_0", 0, 256, 8, "f16"),
    ("llava:7b", "q8_0", 0, 128, 8, "f16"), ("llava:7b", "q6_k", 1, 24, 8, "f16"),
    ("llava:7b", "q2_k", 0, 512, 8, "f16"), ("llava:7b", "q5_k_m", 1, 128, 8, "q8_0"),
    ("llava:7b", "f16", 0, 32, 4, "f16"), ("llava:13b", "q4_k_m", 0, 32, 8, "f16"),
    ("llava:13b", "q4_k_m", 1, 24, 8, "f16"), ("llava:13b", "q5_k_m", 0, 256, 8, "q8_0"),
)  # fmt: skip


def compare_memory() -> list[dict[str, Any]]:
    """Memory of the 13B by each rule."""
    rows, model = [], find_model("llava:13b")
    for quant, parts_gb in _SUM_GB.items():
        plan = make_plan(model, quant, Setting(), [find_device("B200 SXM")], generic_host(2048), has_advice=False)
        ours = sum(part.bytes for part in plan.parts if part.place == 0 and part.name != "driver context") / 1e9
        catalogue = _PARAMETERS_B * _BITS[quant] / 8 + 0.5
        llmfit = _PARAMETERS_B * _LLMFIT_BYTES[quant] + 8e-6 * _PARAMETERS_B * 4096 + 0.5
        whichllm = _PARAMETERS_B * 0.5625 + 3.5 * _PARAMETERS_B * 4.096 / 1024 + 0.4 + 0.08 * _PARAMETERS_B + 0.15 + 0.5
        row: dict[str, Any] = {"type": quant, "sum of parts, GB": parts_gb}
        for name, value in (("llavakit", ours), ("catalogue", catalogue), ("llmfit", llmfit)):
            row[name] = f"{value:.2f} ({value / parts_gb - 1:+.1%})"
        row["whichllm"] = f"{whichllm:.2f} ({whichllm / parts_gb - 1:+.1%})" if quant == "q4_k_m" else None
        rows.append(row)
    return rows


def compare_speeds() -> list[dict[str, Any]]:
    """Errors of every rule on the measured rows, ours without the row's device."""
    rows = []
    for kind in ("decode", "prompt"):
        residuals = leave_one_out(kind)
        for family in (*_ALL, *sorted({r.family for r in residuals})):
            own = [abs(r.error) for r in residuals if family in (_ALL[0], _ALL[1 if r.is_covered else 2], r.family)]
            if own:
                rows.append({"what": kind, "rule": "llavakit", "family": family, **_summary(own)})
    works = [work for row in list_rows() if (work := decode_work(row)) is not None]
    # Bytes over bandwidth: the share that each row reaches, were there nothing else.
    shares = [work.ideal_s / work.measured_s for work in works]
    best = min((step / 1000 for step in range(100, 1001)), key=lambda f: fmean(abs(f / s - 1) for s in shares))
    for name, factor in (("llmfit, 0.55", 0.55), (f"one factor, {best:.2f}", best)):
        rows.append(
            {"what": "decode", "rule": name, "family": "all", **_summary([abs(factor / s - 1) for s in shares])}
        )
    return rows


def list_left_out() -> list[dict[str, Any]]:
    """List the rows that are not used, and those that the bars do not count, each with its reason."""
    rows = [
        {"device": row["device"], "model": row["model"], "type": row["quant"], "reason": row["reason_unused"]}
        for row in read_rows("speeds.csv")
        if row["is_used"] != "yes"
    ]
    for kind in ("decode", "prompt"):
        for r in leave_one_out(kind):
            if not r.is_covered:
                reason = f"{kind}: only {r.num_others} other devices of its kind; error {r.error:+.0%}"
                rows.append({"device": r.device, "model": r.model, "type": r.quant, "reason": reason})
    return rows


def _summary(errors: list[float]) -> dict[str, Any]:
    return {"rows": len(errors), "mean": f"{fmean(errors):.1%}", "worst": f"{max(errors):.1%}"}


def measure_runs(folder: Path, done: Path, most: int | None, num_rounds: int) -> None:
    """Run this package, one process per configuration; what each measured is kept in ``done``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = read_done(done)
    for run in [run for run in RUNS if key_of(run) not in found][:most]:
        name, quant = run[:2]
        own = _folder_of(folder, name)
        found[key_of(run)] = measure_run(find_model(name), quant, setting_of(run), folder=own, num_rounds=num_rounds)
        done.write_text(json.dumps(found), encoding="utf-8")
        report = compare(find_model(name), quant, setting_of(run), found[key_of(run)])
        print(key_of(run), {row.name: f"{row.error:+.1%}" for row in report.rows}, flush=True)
        left = [other for other in RUNS if key_of(other) not in found]
        for file in own.glob("*.gguf"):
            if not any(other[0] == name and f"-{other[1]}" in file.name for other in left):
                file.unlink()


def read_stored() -> dict[str, dict[str, Any]]:
    """Return, by instruction set, the runs of the newest record that has any, the newest set first."""
    stored: dict[str, dict[str, Any]] = {}
    for line in reversed((RESULTS / "planner_error.jsonl").read_text(encoding="utf-8").splitlines()):
        found = {row["run"]: row["measured"] for row in json.loads(line)["rows"] if "run" in row}
        if found:
            stored.setdefault(instructions_of(found), found)
    return stored


def instructions_of(found: dict[str, Any]) -> str:
    """Return the instruction set that all of these runs were made with."""
    (name,) = {str(measured["instruction_set"]) for measured in found.values()}
    return name


def compare_runs(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Set what was measured beside what is predicted now."""
    rows = []
    for run in RUNS:
        if key_of(run) not in found:
            continue
        report = compare(find_model(run[0]), run[1], setting_of(run), found[key_of(run)])
        row: dict[str, Any] = {"run": key_of(run), "reads GB/s": round(report.machine.read_gb_per_s, 1)}
        for entry in report.rows:
            row[entry.name] = f"{entry.format(entry.predicted)} / {entry.format(entry.measured)} ({entry.error:+.1%})"
        rows.append({**row, "measured": found[key_of(run)]})
    return rows


def read_done(done: Path) -> dict[str, Any]:
    return json.loads(done.read_text(encoding="utf-8")) if done.exists() else {}


def key_of(run: Run) -> str:
    return " ".join(map(str, run))


def setting_of(run: Run) -> Setting:
    _, _, images, text, answer, cache = run
    return Setting(
        engine="llavakit", num_context_tokens=4096, num_images=images, num_text_tokens=text, num_new_tokens=answer,
        kv_block_bytes=KV_BLOCK_BYTES[cache],
    )  # fmt: skip


def _folder_of(folder: Path, name: str) -> Path:
    own = folder / name.replace(":", "-")
    own.mkdir(parents=True, exist_ok=True)
    return own


def main() -> None:
    """Print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", type=Path, metavar="FOLDER", help="run this package on this machine")
    parser.add_argument("--most", type=int, metavar="N", help="only so many runs; go on later with the same FOLDER")
    parser.add_argument(
        "--rounds", type=int, default=4, help="answers of each run; the machine is measured between them"
    )
    parser.add_argument("--store", action="store_true", help="store the runs that there are, if not all are done")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}; the machine is measured between answers, so there must be two.")
    runs: list[dict[str, Any]] = []
    if options.machine is not None:
        measure_runs(options.machine, options.machine / "runs.json", options.most, options.rounds)
        runs = compare_runs(read_done(options.machine / "runs.json"))
        if len(runs) < len(RUNS) and not options.store:
            print(f"{len(runs)} of {len(RUNS)} runs are done; nothing is stored yet.")
            return
    memory, speeds = compare_memory(), compare_speeds()
    print(make_table(memory, list(memory[0])))
    print(make_table(speeds, list(speeds[0])))
    left_out = list_left_out()
    print(make_table(left_out, list(left_out[0])))
    # Stored runs are compared with today's planner, not stored again.
    for shown in [runs] if runs else [compare_runs(found) for found in read_stored().values()]:
        print(make_table(shown, ["run", "reads GB/s", "peak memory", "vision tower", "prompt", "one further token"]))
    print(write_result("planner_error", make_manifest(num_threads=count_cpus()), [*memory, *speeds, *left_out, *runs]))


if __name__ == "__main__":
    main()
