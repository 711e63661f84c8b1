"""``llavakit plan --verify``: what the planner says of this machine, beside what is measured on it.

The model runs in a process of its own: the real weights if they are here, else random ones of the same shapes and
types, written for the purpose and removed again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llavakit.conversion.random_pair import write_random_pair
from llavakit.core.errors import CapacityError, ConfigError
from llavakit.core.host_memory import read_available_bytes
from llavakit.kernels.machine import MachineLimits, count_cpus
from llavakit.planner import formulas
from llavakit.planner.cases import PROGRAM_BYTES
from llavakit.planner.machine import detect_machine, measured_host
from llavakit.planner.models import PlannedModel
from llavakit.planner.plans import check_setting
from llavakit.planner.records import KV_BLOCK_BYTES, DeviceNumbers, Setting
from llavakit.planner.runs import planned_seconds
from llavakit.planner.speed import engine_fit

__all__ = [
    "CheckRow",
    "PlanCheck",
    "check_plan",
    "compare",
    "limits_of",
    "machine_numbers",
    "measure_run",
    "run_worker",
]

OnProgress = Callable[[str, int, int], None]
# Answers of a run; the machine is measured between them.
_NUM_ROUNDS = 4
_PROMPT_TEXT_TOKENS = 60
_WORKER_SECONDS = 3600


@dataclass(frozen=True)
class CheckRow:
    """One thing, planned and measured."""

    name: str
    predicted: float
    measured: float
    unit: str
    note: str = ""

    @property
    def error(self) -> float:
        """Of the plan, relative to what was measured."""
        return self.predicted / self.measured - 1 if self.measured else 0.0

    def format(self, value: float) -> str:
        """Write a value with its unit."""
        if self.unit == "bytes":
            return f"{value / 1e9:.3f} GB"
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


@dataclass(frozen=True)
class PlanCheck:
    """All of it."""

    summary: str
    rows: tuple[CheckRow, ...]
    machine: MachineLimits
    measured: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON's types."""
        return {
            "summary": self.summary,
            "rows": [{**vars(row), "error": row.error} for row in self.rows],
            "machine": {name: getattr(self.machine, name) for name in MachineLimits.__slots__},
            "measured": self.measured,
        }


def check_plan(
    model: PlannedModel,
    quant: str,
    setting: Setting,
    *,
    folder: Path | None = None,
    num_threads: int | None = None,
    machine: MachineLimits | None = None,
    on_progress: OnProgress | None = None,
) -> PlanCheck:
    """Measure, and compare: `measure_run` and `compare`."""
    measured = measure_run(
        model, quant, setting, folder=folder, num_threads=num_threads,
        num_rounds=_NUM_ROUNDS if machine is None else 1, on_progress=on_progress,
    )  # fmt: skip
    return compare(model, quant, setting, measured, machine=machine)


def measure_run(
    model: PlannedModel,
    quant: str,
    setting: Setting,
    *,
    folder: Path | None = None,
    num_threads: int | None = None,
    num_rounds: int = _NUM_ROUNDS,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run a model of random weights, if need be, in a process of its own; return what it took.

    Parameters
    ----------
    model : PlannedModel
    quant : str
        Of the random weights.
    setting : Setting
        Of this package's engine, on the processor, one answer at a time: pictures, text, new tokens and the cache's
        type.
    folder : Path, optional
        Holds (or gets, and keeps) the random weights; by default a temporary one.
    num_threads : int, optional
        By default one per core.
    num_rounds : int
        Answers; the machine is measured between them.
    on_progress : callable, optional
        Called with what is done, steps done and steps in all.

    Raises
    ------
    ConfigError
        If the setting cannot be, or is not one that this run can have.
    CapacityError
        If the memory does not hold the run, or the run failed.
    DiskFullError
        If the disk does not hold the weights.
    """
    report = on_progress or (lambda _what, _done, _total: None)
    check_setting(model, setting)
    _refuse_what_is_not_run(model, setting)
    sizes = model.quantize(quant)
    parts = formulas.parts_of(model.sizes, sizes, setting, [], PROGRAM_BYTES)
    needed, free = formulas.place_totals(parts, 0)[0], read_available_bytes()
    if free is not None and needed > free:
        raise CapacityError(
            f"the run needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} are free. Close programs, or take a "
            "smaller --quant or the smaller model."
        )
    with tempfile.TemporaryDirectory(prefix="llavakit-plan-") as temporary:
        path = (folder or Path(temporary)) / f"{model.sizes.num_layers}-layers-{quant}.gguf"
        if not path.exists():
            report("writing random weights", 0, 2)
            write_random_pair(path, model.config, quant, num_threads=count_cpus())
        report("running, and measuring the machine", 1, 2)
        request = {"num_rounds": num_rounds, "num_threads": num_threads or count_cpus(), **_request_of(model, setting)}
        return run_worker({"model": str(path), **request})


def _refuse_what_is_not_run(model: PlannedModel, setting: Setting) -> None:
    """Refuse a setting that would be measured as another one."""
    layers = model.sizes.num_layers
    is_cache_known = setting.kv_block_bytes in (KV_BLOCK_BYTES["f16"], KV_BLOCK_BYTES["q8_0"])
    has_all_tokens = setting.num_visual_tokens >= model.sizes.num_image_tokens
    for is_run, asked, what_to_do in (
        (setting.engine == "llavakit", f"engine {setting.engine}", "Ask for --engine llavakit"),
        (setting.num_parallel == 1, f"parallel {setting.num_parallel}", "Ask for --parallel 1"),
        (setting.num_device_layers > layers, f"gpu-layers {setting.num_device_layers}", "Leave --gpu-layers out"),
        (setting.is_vision_on_device, "vision-on-cpu", "Leave --vision-on-cpu out"),
        (not setting.has_flash_attention, "flash-attention", "Leave --flash-attention out"),
        (has_all_tokens, f"visual-tokens {setting.num_visual_tokens}", "Leave --visual-tokens out"),
        (is_cache_known, "another type of cache", "Choose f16 or q8_0 with --kv-type"),
    ):
        if not is_run:
            raise ConfigError(
                "what is measured is llavakit on this processor, one answer at a time, all tokens of a picture, and "
                f"keys and values in f16 or q8_0; {asked} was asked for. {what_to_do}."
            )


def _request_of(model: PlannedModel, setting: Setting) -> dict[str, Any]:
    return {
        "num_images": setting.num_images,
        "kv_dtype": "q8_0" if setting.kv_block_bytes == KV_BLOCK_BYTES["q8_0"] else "auto",
        "num_prompt_tokens": formulas.prompt_tokens(model.sizes, setting),
        "num_new_tokens": setting.num_new_tokens,
    }


def compare(
    model: PlannedModel, quant: str, setting: Setting, measured: dict[str, Any], *, machine: MachineLimits | None = None
) -> PlanCheck:
    """Set what a run measured beside what is planned now.

    Parameters
    ----------
    model, quant, setting
        Of the run, so that the engine is this package's.
    measured : dict
        What `run_worker` returned.
    machine : MachineLimits, optional
        By default what the run measured: `limits_of`.
    """
    if machine is None:
        machine = limits_of(measured)
    parts = formulas.parts_of(model.sizes, model.quantize(quant), setting, [], PROGRAM_BYTES)
    rows = (*_memory_rows(parts, measured), *_speed_rows(model, quant, setting, machine, measured))
    summary = (
        f"{model.name} at {quant.upper()} on {machine.cpu_name}, {machine.num_threads} threads: reads "
        f"{machine.read_gb_per_s:.1f} GB/s; {setting.num_images} pictures, "
        f"{measured['num_prompt_tokens']} tokens of prompt, {setting.num_new_tokens} of answer"
    )
    return PlanCheck(summary, rows, machine, measured)


def limits_of(measured: dict[str, Any]) -> MachineLimits:
    """Return what a run's machine could do: the best between its answers, and reads as they were beside its tokens."""
    limits = best_limits([MachineLimits(**found) for found in measured["limits"]])
    read_gb_per_s = measured.get("token_read_gb_per_s")  # which older runs did not measure
    return limits if read_gb_per_s is None else replace(limits, read_gb_per_s=read_gb_per_s)


def best_limits(limits: list[MachineLimits]) -> MachineLimits:
    """Return the best of every rate."""

    def best(values: list[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return replace(
        limits[0],
        read_gb_per_s=max(found.read_gb_per_s for found in limits),
        fp32_gflops=max(found.fp32_gflops for found in limits),
        bf16_gflops=best([found.bf16_gflops for found in limits]),
        int8_gops=best([found.int8_gops for found in limits]),
    )


def run_worker(request: dict[str, Any]) -> dict[str, Any]:
    """Run `llavakit.diagnostics.plan_worker` in a process of its own.

    Raises
    ------
    CapacityError
        If it failed.
    """
    command = [sys.executable, "-m", "llavakit.diagnostics.plan_worker", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WORKER_SECONDS, check=False, env=os.environ)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed, probably for want of memory"])[-1]
        raise CapacityError(f"the run failed with status {done.returncode}: {last[:300]}.")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _memory_rows(parts: list[dict[str, Any]], measured: dict[str, Any]) -> list[CheckRow]:
    if measured["peak_bytes"] is None:
        return []
    of = {part["name"]: part["bytes"] for part in parts}
    total = sum(of.values())
    return [
        CheckRow("peak memory", total, measured["peak_bytes"], "bytes"),
        CheckRow("program", of["program"], measured["program_bytes"], "bytes", "before a model is loaded"),
    ]


def machine_numbers(machine: MachineLimits) -> DeviceNumbers:
    """Return this machine's processor as the formulas see it, with its measured bandwidth and rates."""
    return measured_host(detect_machine().host, machine).engine_numbers


def _speed_rows(
    model: PlannedModel, quant: str, setting: Setting, machine: MachineLimits, measured: dict[str, Any]
) -> list[CheckRow]:
    tokens, fit = measured["num_prompt_tokens"], engine_fit(measured["instruction_set"])
    planned = planned_seconds(model, quant, setting, machine_numbers(machine), fit, tokens)
    rows = [
        CheckRow("prompt", planned["prompt_s"], measured["prompt_s"], "s", f"{tokens} tokens"),
        CheckRow("one further token", planned["decode_s"], measured["decode_s"], "s"),
    ]
    if setting.num_images:
        note = f"{setting.num_images} pictures"
        rows.insert(0, CheckRow("vision tower", planned["vision_s"], measured["vision_s"], "s", note))
    return rows
