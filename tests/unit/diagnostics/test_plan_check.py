"""``plan --verify``: the run is a real one, and what is planned of memory is what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llavakit.core.errors import CapacityError, ConfigError
from llavakit.diagnostics.memory import read_memory
from llavakit.diagnostics.plan_check import check_plan, measure_run, run_worker
from llavakit.kernels.machine import MachineLimits, count_cpus
from llavakit.planner.models import find_model
from llavakit.planner.records import KV_BLOCK_BYTES, Setting

_MACHINE = MachineLimits(
    read_gb_per_s=20.0, fp32_gflops=100.0, bf16_gflops=None, int8_gops=None, num_threads=1, cpu_name="x",
    instruction_set="avx2",
)  # fmt: skip
_SETTING = Setting(
    engine="llavakit", num_context_tokens=512, num_visual_tokens=64, num_text_tokens=40, num_new_tokens=4
)


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
    monkeypatch.setattr("llavakit.diagnostics.plan_check.write_random_pair", pytest.fail)
    monkeypatch.setattr("llavakit.diagnostics.plan_check.read_available_bytes", lambda: 10_000_000)
    with pytest.raises(CapacityError, match=r"0\.0 are free.*smaller --quant"):
        check_plan(model, "q8_0", _SETTING, machine=_MACHINE)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"engine": "vllm"}, "engine vllm was asked for. Ask for --engine llavakit"),
        ({"num_parallel": 2}, "parallel 2 was asked for. Ask for --parallel 1"),
        ({"num_device_layers": 1}, "gpu-layers 1 was asked for. Leave --gpu-layers out"),
        ({"is_vision_on_device": False}, "Leave --vision-on-cpu out"),
        ({"has_flash_attention": True}, "Leave --flash-attention out"),
        ({"num_visual_tokens": 32}, "visual-tokens 32 was asked for. Leave --visual-tokens out"),
        ({"kv_block_bytes": KV_BLOCK_BYTES["f32"]}, "Choose f16 or q8_0 with --kv-type"),
    ],
)  # fmt: skip
def test_a_setting_that_would_be_measured_as_another_is_refused(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], problem: str
) -> None:
    monkeypatch.setattr("llavakit.diagnostics.plan_check.write_random_pair", pytest.fail)
    with pytest.raises(ConfigError, match=problem):
        check_plan(find_model("llava:tiny"), "q8_0", replace(_SETTING, **fields), machine=_MACHINE)


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (None, count_cpus())])
def test_a_run_has_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch, asked: int | None, used: int) -> None:
    requests: list[dict[str, object]] = []
    monkeypatch.setattr("llavakit.diagnostics.plan_check.run_worker", lambda request: requests.append(request) or {})
    measure_run(find_model("llava:tiny"), "q8_0", _SETTING, num_threads=asked)
    assert [request["num_threads"] for request in requests] == [used]


def test_a_failed_run_says_why() -> None:
    with pytest.raises(CapacityError, match="the run failed with status 1"):
        run_worker({"model": "/nowhere.gguf", "num_threads": 1, "kv_dtype": "auto", "num_images": 0,
                    "num_prompt_tokens": 4, "num_new_tokens": 2, "num_rounds": 1})  # fmt: skip
