"""Calibrated efficiencies: what `llavakit.planner.calibrate` has fitted, looked up by device."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any

from llavakit.planner.devices import Device
from llavakit.planner.records import EngineFit, SpeedFit

__all__ = ["ERAS", "MIN_OTHER_DEVICES", "engine_fit", "fit_for", "load_calibration", "processor_fit", "with_alike"]

# Builds of llama.cpp by year; the last one stands for everything since.
ERAS = ("2023", "2024", "2025")
# Kinds of which no device was measured, and the kind that differs from them in its memory alone; likewise of NVIDIA's,
# of which both were measured.
_OTHER_MEMORY = {"radeon hbm": "radeon"}
_MEASURED_PAIR = ("nvidia hbm", "nvidia")
# With fewer other devices of its kind measured, a device's speed is a guess.
MIN_OTHER_DEVICES = 2
# Of nominal bandwidth that reads reach on a processor; and how far a speed made of nominal figures may be off, as a
# logarithm.
_REACHED_SHARE = 0.78
_NOMINAL_SPREAD = 0.3
# Types that no product was timed of, and the timed one with the like unpacking.
_ALIKE = {
    "q4_1": "q4_0", "q5_0": "q4_0", "q5_1": "q4_0", "bfloat16": "float16", "float32": "float16",
}  # fmt: skip


@lru_cache(maxsize=1)
def load_calibration() -> dict[str, Any]:
    """Return parameters and residuals as stored."""
    text = (resources.files("llavakit.planner") / "data" / "calibration.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def fit_for(device: Device, *, era: str = ERAS[-1]) -> SpeedFit:
    """Return the calibration of a device's family with builds of an era.

    A family of which no device was measured is made of one with other memory; NVIDIA's stands for any other.
    """
    fits = {fit.family: fit for entry in load_calibration()["fits"] if (fit := SpeedFit(**entry)).era == era}
    if device.family in _OTHER_MEMORY:
        return _with_other_memory(device.family, fits)
    return fits.get(device.family, fits["nvidia"])


def _with_other_memory(family: str, fits: dict[str, SpeedFit]) -> SpeedFit:
    """Return a calibration of no device: shares that differ as NVIDIA's do between the two kinds of memory.

    How far these differ is how far the shares may be off, beside what their kind with measured devices is off.
    """
    like = fits[_OTHER_MEMORY[family]]
    other, usual = (fits[name] for name in _MEASURED_PAIR)
    decode = other.decode_efficiency / usual.decode_efficiency
    prompt = other.quant_prompt_efficiency / usual.quant_prompt_efficiency
    return replace(
        like, family=family, num_devices=0,
        decode_efficiency=like.decode_efficiency * decode,
        half_decode_efficiency=like.half_decode_efficiency * other.half_decode_efficiency
        / usual.half_decode_efficiency,
        quant_prompt_efficiency=like.quant_prompt_efficiency * prompt,
        half_prompt_efficiency=like.half_prompt_efficiency * prompt,
        decode_spread=math.hypot(like.decode_spread, math.log(decode)),
        prompt_spread=math.hypot(like.prompt_spread, math.log(prompt)),
    )  # fmt: skip


def processor_fit(device: Device) -> EngineFit:
    """Return the calibration of this package's own engine for a processor.

    The shares are those of measured limits. A processor that is known by its makers' figures alone reaches some 78 % of
    its bandwidth, by the same note as in the table, and is given wider intervals.
    """
    fit = engine_fit(device.instruction_set)
    if device.is_measured:
        return fit
    return replace(
        fit, read_efficiency=fit.read_efficiency * _REACHED_SHARE, decode_spread=_NOMINAL_SPREAD,
        prompt_spread=_NOMINAL_SPREAD,
    )  # fmt: skip


@lru_cache(maxsize=8)
def engine_fit(instruction_set: str) -> EngineFit:
    """Return the calibration of this package's own engine on a processor, as shares of the machine's measured limits.

    ``data/engine.json`` names the machines they were measured on. A processor with another form of AVX-512 gets that of
    AVX-512; any other one that of AVX2, which is too slow for AVX2 with VNNI and too fast for less.
    """
    text = (resources.files("llavakit.planner") / "data" / "engine.json").read_text(encoding="utf-8")
    entries = json.loads(text)["fits"]
    nearest = "avx512_bf16" if instruction_set.startswith("avx512") else "avx2"
    fit = EngineFit(**entries.get(instruction_set, entries[nearest]))
    return replace(
        fit,
        row_operations=with_alike(fit.row_operations),
        pass_operations=with_alike(fit.pass_operations),
        pass_rates=with_alike(fit.pass_rates),
    )


def with_alike(figures: dict[str, float]) -> dict[str, float]:
    """Give types that no product was timed of the figures of the type that is unpacked alike."""
    return {**{name: figures[like] for name, like in _ALIKE.items()}, **figures}
