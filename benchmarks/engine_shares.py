"""Fit this package's own engine to runs on this machine: shares of its bandwidth and of its arithmetic.

    python -m benchmarks.planner_error --machine FOLDER
    python -m benchmarks.engine_shares FOLDER             prints the shares, and the errors on runs it has not seen
    python -m benchmarks.engine_shares FOLDER --write     and puts them into the planner's data

The fit sees other types than Q4_K_M, the 13B, and one long prompt, without which attention could not be told from the
rest. What is predicted from it are the other runs of the 7B at Q4_K_M. Products of Q2_K unpack slower than those of all
other types and those of 16 bits fill the memory of a small machine; neither is fitted.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planner_error import RUNS, Run, key_of, read_done, setting_of
from llavakit.diagnostics.plan_check import best_limits, machine_numbers, planned_seconds
from llavakit.kernels.machine import MachineLimits
from llavakit.planner.models import find_model
from llavakit.planner.records import DeviceNumbers, SpeedFit

_DATA = Path(__file__).parents[1] / "src" / "llavakit" / "planner" / "data" / "engine.json"
_LONG_RUN = ("llava:7b", "q4_k_m", 0, 3000, 4, "f16")
_NOT_FITTED = ("q2_k", "f16")
# Before any run is seen, and how far it may be off, as a logarithm.
_PRIORS = {
    "decode_efficiency": (0.9, 0.1), "quant_operations": (6.0, 0.3), "k_operations": (6.0, 0.3),
    "quant_prompt_efficiency": (0.6, 0.5), "half_prompt_efficiency": (0.6, 0.5), "attention_efficiency": (0.5, 0.5),
    "prompt_layer_s": (1e-3, 0.7),
}  # fmt: skip
_ROW_SPREAD = 0.05


def make_fit(values: np.ndarray, instruction_set: str) -> SpeedFit:
    """Return a record of logarithms."""
    found = dict(zip(_PRIORS, (float(f"{math.exp(value):.4g}") for value in values), strict=True))
    return SpeedFit(
        family=f"llavakit, {instruction_set}", era="2026", num_devices=1,
        half_decode_efficiency=found["decode_efficiency"], half_operations=found["k_operations"], prompt_joules=0.0,
        decode_layer_s=0.0, decode_spread=0.1, prompt_spread=0.1, **found,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _numbers(limits: str) -> DeviceNumbers:
    return machine_numbers(best_limits([MachineLimits(**found) for found in json.loads(limits)]))


def predict(run: Run, measured: dict[str, Any], fit: SpeedFit) -> dict[str, float]:
    """Return planned over measured seconds of a run."""
    setting = replace(setting_of(run), engine="llavakit")
    numbers, tokens = _numbers(json.dumps(measured["limits"])), measured["num_prompt_tokens"]
    planned = planned_seconds(find_model(run[0]), run[1], setting, numbers, fit, tokens)
    return {name: seconds / measured[name] for name, seconds in planned.items() if measured[name] > 0}


def fit_runs(done: dict[str, Any]) -> tuple[SpeedFit, list[Run]]:
    """Fit; return the record, and the runs that it has not seen."""
    seen = [run for run in RUNS if run[1] != "q4_k_m" or run[0] != "llava:7b" or run == _LONG_RUN]
    seen = [run for run in seen if run[1] not in _NOT_FITTED and key_of(run) in done]
    name = done[key_of(seen[0])]["instruction_set"]
    prior = np.log([mean for mean, _ in _PRIORS.values()])
    spread = np.array([width for _, width in _PRIORS.values()])

    def errors(values: np.ndarray) -> np.ndarray:
        fit = make_fit(values, name)
        logs = [math.log(ratio) for run in seen for ratio in predict(run, done[key_of(run)], fit).values()]
        return np.concatenate([np.array(logs) / _ROW_SPREAD, (values - prior) / spread])

    values, step = prior.copy(), 0.02
    for _ in range(8):
        at = errors(values)
        slopes = np.array([(errors(values + step * unit) - at) / step for unit in np.eye(len(prior))]).T
        values = values + np.clip(np.linalg.lstsq(slopes, -at, rcond=None)[0], -0.3, 0.3)
    return make_fit(values, name), [run for run in RUNS if run not in seen and key_of(run) in done]


def main() -> None:
    """Fit, print, and write if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="put the shares into the planner's data")
    options = parser.parse_args()
    done = read_done(options.folder / "runs.json")
    fit, unseen = fit_runs(done)
    print(json.dumps(asdict(fit)))
    for title, runs in (
        ("seen", [run for run in RUNS if run not in unseen and key_of(run) in done]),
        ("not seen", unseen),
    ):
        for run in runs:
            errors = {name: f"{ratio - 1:+.1%}" for name, ratio in predict(run, done[key_of(run)], fit).items()}
            print(f"{title}: {key_of(run)}: {errors}")
    if options.write:
        content = json.loads(_DATA.read_text(encoding="utf-8"))
        content["fits"][fit.family.removeprefix("llavakit, ")] = asdict(fit)
        _DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
