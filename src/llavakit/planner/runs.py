"""Runs of this package's own engine that were measured on processors, beside what is planned of them now.

``data/proof.json`` holds what was measured, and the errors of other rules; ``python -m benchmarks.planner_proof``
writes it from the stored records. Nothing of it is used to plan.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from llavakit.kernels.machine import MachineLimits
from llavakit.planner import formulas
from llavakit.planner.cases import PROGRAM_BYTES
from llavakit.planner.machine import generic_host, measured_host
from llavakit.planner.models import PlannedModel, find_model
from llavakit.planner.records import KV_BLOCK_BYTES, DeviceNumbers, EngineFit, Setting
from llavakit.planner.speed import engine_fit

__all__ = ["MeasuredRun", "Residual", "compare_run", "list_runs", "load_proof", "planned_seconds"]


@dataclass(frozen=True)
class MeasuredRun:
    """One run: what was asked, and what it took.

    Attributes
    ----------
    is_seen : bool
        The speeds of this engine are fitted to it.
    limits : MachineLimits
        The best of what was measured between its answers.
    peak_bytes : int
    vision_s : float or None
        None without pictures.
    prompt_s, decode_s : float
    """

    model: str
    quant: str
    num_images: int
    num_text_tokens: int
    num_new_tokens: int
    cache: str
    is_seen: bool
    num_prompt_tokens: int
    limits: MachineLimits
    peak_bytes: int
    vision_s: float | None
    prompt_s: float
    decode_s: float

    @property
    def setting(self) -> Setting:
        """What was asked for."""
        return Setting(
            engine="llavakit", num_images=self.num_images, num_text_tokens=self.num_text_tokens,
            num_new_tokens=self.num_new_tokens, kv_block_bytes=KV_BLOCK_BYTES[self.cache],
        )  # fmt: skip


@dataclass(frozen=True)
class Residual:
    """One thing, planned and measured, in bytes or seconds."""

    planned: float
    measured: float

    @property
    def error(self) -> float:
        """Of the plan, relative to what was measured."""
        return self.planned / self.measured - 1


@lru_cache(maxsize=1)
def load_proof() -> dict[str, Any]:
    """Return the stored runs and the errors of other rules."""
    text = (resources.files("llavakit.planner") / "data" / "proof.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def list_runs(machine: dict[str, Any]) -> list[MeasuredRun]:
    """Return the runs of one machine of ``data/proof.json``."""
    return [MeasuredRun(**{**entry, "limits": MachineLimits(**entry["limits"])}) for entry in machine["runs"]]


def compare_run(run: MeasuredRun) -> dict[str, Residual]:
    """Plan a run with the measured limits of its machine; the keys are memory, picture, prompt and token."""
    model, setting = find_model(run.model), run.setting
    parts = formulas.parts_of(model.sizes, model.quantize(run.quant), setting, [], PROGRAM_BYTES)
    numbers = measured_host(generic_host(), run.limits).engine_numbers
    planned = planned_seconds(
        model, run.quant, setting, numbers, engine_fit(run.limits.instruction_set), run.num_prompt_tokens
    )
    found = {"memory": Residual(formulas.place_totals(parts, 0)[0], run.peak_bytes)}
    if run.vision_s is not None:
        found["picture"] = Residual(planned["vision_s"], run.vision_s)
    found["prompt"] = Residual(planned["prompt_s"], run.prompt_s)
    found["token"] = Residual(planned["decode_s"], run.decode_s)
    return found


def planned_seconds(
    model: PlannedModel, quant: str, setting: Setting, numbers: DeviceNumbers, fit: EngineFit, num_tokens: int
) -> dict[str, float]:
    """Return the planned seconds of the pictures, of a prompt of so many tokens, and of a further token after it."""
    sizes, depth = model.quantize(quant), num_tokens + setting.num_new_tokens // 2
    return {
        "vision_s": formulas.vision_seconds(model.sizes, setting, [], [], numbers, fit),
        "prompt_s": formulas.prompt_seconds(model.sizes, sizes, setting, [], [], numbers, fit, num_tokens),
        "decode_s": formulas.decode_seconds(model.sizes, sizes, setting, [], [], numbers, fit, depth),
    }
