"""Bench on a tiny random model: every part is there, adds up, and has an honest share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="writes its model with transformers: pip install 'llavakit[verify]'")

import llavakit
from llavakit.core.errors import ConfigError
from llavakit.core.shapes import weight_bytes
from llavakit.diagnostics.bench import BenchPart, BenchReport, bench_loaded, bench_model
from llavakit.kernels.machine import MachineLimits
from tests.tiny import make_tiny_llava

_LIMITS = MachineLimits(
    read_gb_per_s=30.0, fp32_gflops=200.0, bf16_gflops=400.0, int8_gops=None, num_threads=2, cpu_name="test",
    instruction_set="test",
)  # fmt: skip
_PARTS = ["picture file", "resize", "vision tower", "projector", "prompt", "first token", "further tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_llava(folder, vision_image_size=56)
    return folder


def _part(report: BenchReport, name: str) -> BenchPart:
    return next(part for part in report.parts if part.name == name)


def test_every_part_is_measured(folder: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = bench_model(folder, repeats=2, new_tokens=4, on_progress=lambda *step: steps.append(step))
    names = [part.name for part in report.parts]
    assert names == [
        "load, cold", "first token, cold start", "load, warm", "first token, warm start", *_PARTS
    ]  # fmt: skip
    for part in report.parts:
        assert 0 < part.min_s <= part.median_s <= part.max_s
        assert part.num_runs == (1 if "cold" in part.name else 2)
    assert _part(report, "first token, cold start").median_s > _part(report, "load, cold").median_s
    assert report.machine is not None
    assert all(0 <= done <= total for _, done, total in steps)
    assert {name for name, done, total in steps if done == total} >= {"load, cold", "vision tower", "answer"}


def test_shares_follow_from_the_limits(folder: Path) -> None:
    loaded = llavakit.load(folder, dtype="float32", device="cpu")
    report = bench_loaded(loaded, prompt_tokens=200, new_tokens=5, repeats=1, machine=_LIMITS)
    assert (report.num_prompt_tokens, report.num_new_tokens) == (200, 5)
    assert report.weight_bytes == weight_bytes(loaded.config, "float32")
    text = loaded.config.text_config
    decode = _part(report, "further tokens")
    norms = 2
    layers = text.num_hidden_layers * text.hidden_size * (4 * text.hidden_size + 3 * text.intermediate_size + norms)
    cache = 2 * text.num_hidden_layers * text.hidden_size * (200 + 5 // 2)
    num_bytes = 4 * (layers + text.hidden_size * text.vocab_size + cache)
    assert decode.bound_by == "memory"
    assert decode.limit_s == pytest.approx(4 * num_bytes / 30e9)
    assert decode.share == pytest.approx(decode.limit_s / decode.median_s)
    assert decode.rate == pytest.approx(4 / decode.median_s)
    prompt = _part(report, "prompt")
    assert prompt.bound_by == "arithmetic"
    assert prompt.amount == 200
    assert all(part.bound_by == "memory" for part in (_part(report, "picture file"), _part(report, "resize")))
    before = ("picture file", "resize", "vision tower", "projector", "prompt")
    assert _part(report, "first token").limit_s == pytest.approx(sum(_part(report, name).limit_s for name in before))
    # The first token needs the prompt and more.
    assert _part(report, "first token").median_s > prompt.median_s


def test_bfloat16_is_held_to_its_own_limit(folder: Path) -> None:
    reports = [
        bench_loaded(llavakit.load(folder, dtype=dtype, device="cpu"), repeats=1, new_tokens=2, machine=_LIMITS)
        for dtype in ("float32", "bfloat16")
    ]
    wide, narrow = (_part(report, "vision tower").limit_s for report in reports)
    assert wide == pytest.approx(2 * narrow)


def test_the_report_is_json(folder: Path) -> None:
    loaded = llavakit.load(folder, device="cpu")
    report = bench_loaded(loaded, repeats=1, new_tokens=2, machine=_LIMITS)
    content = json.loads(report.to_json())
    assert [part["name"] for part in content["parts"]] == _PARTS
    assert all("share" in part and "rate" in part for part in content["parts"])
    assert content["machine"]["cpu_name"] == "test"
    if os.path.exists("/proc/self/status"):  # noqa: PTH110
        assert content["memory"]["peak_resident"] > content["weight_bytes"]


@pytest.mark.parametrize(
    "settings", [{"new_tokens": 1}, {"repeats": 0}, {"prompt_tokens": 3}, {"prompt_tokens": 500, "new_tokens": 64}]
)
def test_impossible_settings_are_refused(folder: Path, settings: dict[str, int]) -> None:
    loaded = llavakit.load(folder, device="cpu")
    with pytest.raises(ConfigError):
        bench_loaded(loaded, machine=_LIMITS, **settings)
