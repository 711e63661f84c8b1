"""What the planner says beside what was measured: devices left out of the fit, memory of runs on a machine."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from benchmarks.planner_error import read_stored
from llavakit.planner import formulas
from llavakit.planner.calibrate import Residual, leave_one_out
from llavakit.planner.cases import PROGRAM_BYTES
from llavakit.planner.models import find_model
from llavakit.planner.records import KV_BLOCK_BYTES, Setting
from llavakit.planner.speed import load_calibration

_RUNS = [
    pytest.param(run, measured, id=f"{instructions} {run}".replace(" ", "-"))
    for instructions, runs in read_stored().items()
    for run, measured in runs.items()
]


@pytest.mark.parametrize(("kind", "mean", "worst"), [("decode", 0.08, 0.25), ("prompt", 0.20, 0.80)])
def test_devices_left_out_of_the_fit_are_predicted(kind: str, mean: float, worst: float) -> None:
    found = [Residual(**entry) for entry in load_calibration()["residuals"][kind]]
    errors = [abs(row.error) for row in found if row.is_covered]
    assert len(errors) > 0.95 * len(found)
    assert fmean(errors) <= mean
    assert max(errors) <= worst


def test_the_stored_residuals_are_those_of_the_tables() -> None:
    stored = [Residual(**entry) for entry in load_calibration()["residuals"]["decode"]]
    computed = leave_one_out("decode")
    assert [row.predicted for row in computed] == pytest.approx([row.predicted for row in stored], rel=2e-3)


@pytest.mark.parametrize(("run", "measured"), _RUNS)
def test_the_peak_memory_of_a_run_is_what_is_planned(run: str, measured: dict[str, Any]) -> None:
    name, quant, images, text, answer, cache = run.split()
    model = find_model(name)
    setting = Setting(
        engine="llavakit", num_images=int(images), num_text_tokens=int(text), num_new_tokens=int(answer),
        kv_block_bytes=KV_BLOCK_BYTES[cache],
    )  # fmt: skip
    parts = formulas.parts_of(model.sizes, model.quantize(quant), setting, [], PROGRAM_BYTES)
    planned = formulas.place_totals(parts, 0)[0]
    assert -0.01 <= planned / measured["peak_bytes"] - 1 <= 0.03
