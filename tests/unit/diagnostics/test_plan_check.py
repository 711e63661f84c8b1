"""``plan --verify``: the run is a real one, and what is planned of memory is what is measured."""

from __future__ import annotations

import pytest

from llavakit.core.errors import CapacityError, ConfigError
from llavakit.diagnostics.memory import read_memory
from llavakit.diagnostics.plan_check import check_plan, run_worker
from llavakit.kernels.machine import MachineLimits
from llavakit.planner.models import find_model
from llavakit.planner.records import Setting

_MACHINE = MachineLimits(
    read_gb_per_s=20.0, fp32_gflops=100.0, bf16_gflops=None, int8_gops=None, num_threads=1, cpu_name="x",
    instruction_set="avx2",
)  # fmt: skip
_SETTING = Setting(num_context_tokens=512, num_visual_tokens=64, num_text_tokens=40, num_new_tokens=4)


@pytest.mark.skipif(read_memory() is None, reason="the system does not say what a process holds")
def test_small_models_are_measured() -> None:
    report = check_plan(find_model("llava:tiny"), "q8_0", _SETTING, machine=_MACHINE)
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {"peak memory", "program", "vision tower", "prompt", "one further token"}
    assert all(row.measured > 0 and row.predicted > 0 for row in report.rows)
    assert report.measured["num_prompt_tokens"] == 64 + 40
    # The program is nearly all of it here; libraries differ between machines.
    assert abs(rows["peak memory"].error) < 0.3
    assert report.to_dict()["rows"][0]["name"] == "peak memory"


def test_what_cannot_be_checked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model("llava:tiny")
    with pytest.raises(ConfigError, match="f16 or q8_0"):
        check_plan(model, "q8_0", Setting(num_visual_tokens=64, kv_block_bytes=18), machine=_MACHINE)
    monkeypatch.setattr("llavakit.diagnostics.plan_check.read_available_bytes", lambda: 10_000_000)
    with pytest.raises(CapacityError, match=r"0\.0 are free.*smaller --quant"):
        check_plan(model, "q8_0", _SETTING, machine=_MACHINE)


def test_a_failed_run_says_why() -> None:
    with pytest.raises(CapacityError, match="the run failed with status 1"):
        run_worker({"model": "/nowhere.gguf", "num_threads": 1, "kv_dtype": "auto", "num_images": 0,
                    "num_prompt_tokens": 4, "num_new_tokens": 2, "num_rounds": 1})  # fmt: skip
