"""Fit this package's own engine to this machine: shares of its bandwidth and of its arithmetic.

    python -m benchmarks.quantized_products               every type's products alone
    python -m benchmarks.planner_error --machine FOLDER   runs of whole models
    python -m benchmarks.engine_shares FOLDER             prints the shares, and the errors on runs it has not seen
    python -m benchmarks.engine_shares FOLDER --write     and puts them into the planner's data

Without FOLDER the newest stored runs of `benchmarks.planner_error` are fitted, or those of ``--instructions``.

Fitted to single products (the newest record of each type): operations to unpack a weight of each type, for one row
and for a whole prompt, how types differ in the rate they reach, and the share of the 16-bit rate as part of that of the
8-bit rate.
Fitted to runs, by Gauss-Newton on logarithms of times with priors: the share of the bandwidth, one factor on all
operations of one row, a time per layer of a token and one of a prompt, operations of a number of the cache in 16 and
in 8 bits, shares of the 8-bit rate, of the tower and of attention. The fit sees other types than Q4_K_M, the 13B, and
one long prompt, without which attention could not be told from the rest. Tokens of runs during which the memory was
read slower than at three quarters of the fastest run's rate are left out of it. Not seen are the other runs of the 7B
at Q4_K_M, and all of Q2_K and of 16 bits, which are predicted from their single products.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.planner_error import RUNS, Run, instructions_of, key_of, read_done, read_stored, setting_of
from benchmarks.product_shares import ProductShares, fit_products
from llavakit.diagnostics.plan_check import limits_of, machine_numbers
from llavakit.planner.models import find_model
from llavakit.planner.records import DeviceNumbers, EngineFit
from llavakit.planner.runs import planned_seconds
from llavakit.planner.speed import with_alike

_DATA = Path(__file__).parents[1] / "src" / "llavakit" / "planner" / "data" / "engine.json"
_LONG_RUN = ("llava:7b", "q4_k_m", 0, 3000, 4, "f16")
_NOT_FITTED = ("q2_k", "f16")
# Before any run is seen, and how far it may be off, as a logarithm.
_PRIORS = {
    "read_efficiency": (0.9, 0.1), "row_factor": (1.0, 0.1), "decode_layer_s": (1e-4, 0.7),
    "half_cache_operations": (6.0, 0.7), "small_cache_operations": (6.0, 0.7), "quant_prompt_efficiency": (0.6, 0.5),
    "vision_efficiency": (0.6, 0.5), "attention_efficiency": (0.5, 0.5), "prompt_layer_s": (1e-3, 0.7),
}  # fmt: skip
_ROW_SPREAD = 0.05
_FAST_SHARE = 0.75


def make_fit(values: np.ndarray, instruction_set: str, products: ProductShares) -> EngineFit:
    """Return a record of logarithms, and of what products said."""
    found = dict(zip(_PRIORS, (float(f"{math.exp(value):.4g}") for value in values), strict=True))
    factor = found.pop("row_factor")
    half = found["quant_prompt_efficiency"] * products.half_share / products.quant_share
    return EngineFit(
        family=f"llavakit, {instruction_set}", era="2026", num_devices=1, decode_spread=0.1, prompt_spread=0.1,
        row_operations={name: float(f"{value * factor:.4g}") for name, value in products.row_operations.items()},
        pass_operations=dict(products.pass_operations), pass_rates=dict(products.pass_rates),
        half_prompt_efficiency=float(f"{half:.4g}"), **found,  # type: ignore[arg-type]
    )  # fmt: skip


@lru_cache(maxsize=64)
def _numbers(measured: str) -> DeviceNumbers:
    return machine_numbers(limits_of(json.loads(measured)))


def predict(run: Run, measured: dict[str, Any], fit: EngineFit) -> dict[str, float]:
    """Return planned over measured seconds of a run."""
    setting = replace(setting_of(run), engine="llavakit")
    limits = {name: measured.get(name) for name in ("limits", "token_read_gb_per_s")}
    numbers, tokens = _numbers(json.dumps(limits)), measured["num_prompt_tokens"]
    whole = replace(
        fit, row_operations=with_alike(fit.row_operations), pass_operations=with_alike(fit.pass_operations),
        pass_rates=with_alike(fit.pass_rates),
    )  # fmt: skip
    planned = planned_seconds(find_model(run[0]), run[1], setting, numbers, whole, tokens)
    return {name: seconds / measured[name] for name, seconds in planned.items() if measured[name] > 0}


def is_seen(run: Run) -> bool:
    """Whether the fit sees a run."""
    return run[1] not in _NOT_FITTED and (run[1] != "q4_k_m" or run[0] != "llava:7b" or run == _LONG_RUN)


def has_fast_reads(run: Run, done: dict[str, Any]) -> bool:
    """Whether the memory was read about as fast during a run as during the fastest.

    On a shared host it is read half as fast for minutes. Where such minutes meet the measuring of the limit and not the
    answer, a token seems to have used more than all of the bandwidth, so that nothing can be told of shares. Runs that
    measured reads beside every token have no such minutes.
    """
    if done[key_of(run)].get("token_read_gb_per_s") is not None:
        return True
    reads = {key: max(limits["read_gb_per_s"] for limits in found["limits"]) for key, found in done.items()}
    return bool(reads[key_of(run)] >= _FAST_SHARE * max(reads.values()))


def fit_runs(done: dict[str, Any], products: ProductShares) -> EngineFit:
    """Fit what products do not say."""
    seen = [run for run in RUNS if is_seen(run) and key_of(run) in done]
    name = instructions_of(done)
    prior = np.log([mean for mean, _ in _PRIORS.values()])
    spread = np.array([width for _, width in _PRIORS.values()])

    def errors(values: np.ndarray) -> np.ndarray:
        fit = make_fit(values, name, products)
        logs = [
            math.log(ratio)
            for run in seen
            for quantity, ratio in predict(run, done[key_of(run)], fit).items()
            if quantity != "decode_s" or has_fast_reads(run, done)
        ]
        return np.concatenate([np.array(logs) / _ROW_SPREAD, (values - prior) / spread])

    values, step = prior.copy(), 0.02
    for _ in range(8):
        at = errors(values)
        slopes = np.array([(errors(values + step * unit) - at) / step for unit in np.eye(len(prior))]).T
        values = values + np.clip(np.linalg.lstsq(slopes, -at, rcond=None)[0], -0.3, 0.3)
    return make_fit(values, name, products)


def print_errors(done: dict[str, Any], fit: EngineFit) -> None:
    """Print how far every run is off, and the means of those that were seen and of those that were not."""
    for title, wanted in (("seen", True), ("not seen", False)):
        ratios: dict[str, list[float]] = {}
        for run in RUNS:
            if is_seen(run) == wanted and key_of(run) in done:
                found = predict(run, done[key_of(run)], fit)
                for name, ratio in found.items():
                    ratios.setdefault(name, []).append(abs(ratio - 1))
                print(f"{title}: {key_of(run)}:", {name: f"{ratio - 1:+.1%}" for name, ratio in found.items()},
                      "" if has_fast_reads(run, done) else "(slow reads)")  # fmt: skip
        for name, errors in ratios.items():
            print(f"{title}, {name}: {len(errors)} runs, mean error {fmean(errors):.1%}, worst {max(errors):.1%}")


def main() -> None:
    """Fit, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of planner_error --machine (default: the stored runs)")
    parser.add_argument("--write", action="store_true", help="put the shares into the planner's data")
    parser.add_argument("--instructions", help="without a folder: the stored runs of this instruction set")
    options = parser.parse_args()
    stored = read_stored()
    chosen = options.instructions or next(iter(stored), "")
    done = read_done(options.folder / "runs.json") if options.folder else stored.get(chosen, {})
    if not done:
        parser.error("there are no runs; make them with python -m benchmarks.planner_error --machine FOLDER")
    products = fit_products(instructions_of(done))
    fit = fit_runs(done, products)
    print(json.dumps(asdict(fit)))
    print_errors(done, fit)
    if options.write:
        name = fit.family.removeprefix("llavakit, ")
        content = json.loads(_DATA.read_text(encoding="utf-8"))
        content["fits"][name] = asdict(fit)
        dates = ", ".join(f"{name} {date}" for name, date in products.dates.items())
        content["sources"][name] = (
            f"benchmarks/engine_shares.py: {sum(is_seen(run) and key_of(run) in done for run in RUNS)} runs of 7B and "
            f"13B on this machine, and products of {dates}"
        )
        _DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
