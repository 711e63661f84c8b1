from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llavakit.cli.checks import print_bench, print_verify
from llavakit.cli.main import run_command
from llavakit.diagnostics import bench as bench_module
from llavakit.diagnostics import verify as verify_module
from llavakit.diagnostics.bench import BenchPart, BenchReport
from llavakit.diagnostics.compare import StageResult, Verdict
from llavakit.diagnostics.memory import MemoryUse
from llavakit.diagnostics.verify import VerifyReport
from llavakit.kernels.machine import MachineLimits
from tests.unit.cli.streams import make_console

_STAGE = StageResult(
    name="logits", num_compared=12345, max_abs_difference=0.00025, relative_error=3.2e-7, tolerance=1e-5, reason="why",
    verdict=Verdict.PASS, detail="20 prompts",
)  # fmt: skip
_REPORT = VerifyReport(
    model="llava:tiny", dtype="float32", versions={"llavakit": "1", "transformers": "5"}, are_weights_shared=False,
    stages=(_STAGE,),
)  # fmt: skip
_BENCH = BenchReport(
    model="llava:tiny", dtype="float32", device="cpu", version="1", torch_version="2", num_threads=2,
    num_prompt_tokens=100, num_new_tokens=32, weight_bytes=2_000_000, kv_bytes=1_000, cached_share=0.25,
    machine=MachineLimits(
        read_gb_per_s=12.3, fp32_gflops=66, bf16_gflops=125, int8_gops=None, num_threads=2, cpu_name="CPU",
        instruction_set="avx2",
    ),
    parts=(
        BenchPart(
            name="further tokens", median_s=0.5, min_s=0.4, max_s=1.5, first_s=None, num_runs=5, amount=31,
            unit="tokens", limit_s=0.25, bound_by="memory",
        ),
    ),
    memory=MemoryUse(peak_resident=600_000_000, resident=1, proportional=None, anonymous=2, file_backed=3),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavakit.cli.checks.pull_with_progress", lambda *_, **__: None)


def _run(*arguments: str) -> tuple[int, str]:
    console = make_console()
    return run_command(arguments, console=console), console.stdout.getvalue()


def _with_report(monkeypatch: pytest.MonkeyPatch, report: VerifyReport) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(verify_module, "verify_model", lambda model, **options: calls.append(options) or report)
    return calls


def test_verify_when_all_stages_hold_then_the_status_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _with_report(monkeypatch, _REPORT)
    status, out = _run("verify", "llava:tiny", "--dtype", "bfloat16")
    assert status == 0
    assert calls[0]["dtype"] == "bfloat16"
    row = next(line for line in out.splitlines() if line.startswith("logits"))
    assert row.split() == ["logits", "12,345", "2.5e-04", "3.2e-07", "1.0e-05", "pass", "20", "prompts"]
    assert out.endswith("no stage failed\n")


def test_verify_when_a_stage_fails_then_the_status_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = replace(_STAGE, verdict=Verdict.FAIL, relative_error=float("inf"))
    _with_report(monkeypatch, replace(_REPORT, stages=(_STAGE, failed), are_weights_shared=True))
    status, out = _run("verify", "llava:tiny")
    assert status == 1
    assert out.endswith("1 of 2 stages FAILED\n")
    assert "transformers was given our tensors" in out
    status, out = _run("verify", "llava:tiny", "--json")
    assert (status, json.loads(out)["is_ok"]) == (1, False)


def test_bench_shows_rates_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "bench_model", lambda model, **options: _BENCH)
    status, out = _run("bench", "llava:tiny")
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith("further tokens"))
    assert row.split() == [
        "further", "tokens", "500.00", "ms", "62.0", "tokens/s", "50%", "of", "memory", "400.00", "ms", "1.50", "s",
        "5",
    ]  # fmt: skip
    assert "12.3 GB/s, 66 GFLOP/s float32, 125 GFLOP/s bfloat16 (measured)" in out
    assert "peak memory      600 MB" in out
    assert "25% of the files stayed in memory" in out
    assert json.loads(_run("bench", "llava:tiny", "--json")[1])["parts"][0]["share"] == 0.5


def test_bench_when_on_a_gpu_then_no_limits_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(_BENCH.parts[0], limit_s=None, bound_by=None)
    report = replace(_BENCH, machine=None, memory=None, cached_share=None, parts=(part,))
    monkeypatch.setattr(bench_module, "bench_model", lambda model, **options: report)
    out = _run("bench", "llava:tiny", "--device", "cuda")[1]
    assert "limits" not in out.split("part ")[0]
    assert "of memory" not in out


def test_tables_when_the_terminal_is_narrow_then_no_row_is_broken_and_failures_say_why() -> None:
    console = make_console(is_terminal=True, environ={"COLUMNS": "80", "NO_COLOR": "1"})
    stages = (
        replace(_STAGE, name="greedy tokens, batches of 4", num_compared=1_234_567),
        replace(_STAGE, name="pixels", verdict=Verdict.FAIL, detail="picture 3 differs"),
    )
    print_verify(replace(_REPORT, stages=stages), console)
    print_bench(replace(_BENCH, parts=(replace(_BENCH.parts[0], name="first token, warm start"),)), console)
    lines = console.stdout.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "pixels: fail, picture 3 differs" in lines
    for name in ("greedy tokens, batches of 4 ", "pixels ", "first token, warm start "):
        assert any(line.startswith(name) for line in lines)
