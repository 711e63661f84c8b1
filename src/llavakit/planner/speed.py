"""Calibrated efficiencies: what `llavakit.planner.calibrate` has fitted, looked up by device."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

from llavakit.planner.devices import Device
from llavakit.planner.records import SpeedFit

__all__ = ["ERAS", "MIN_OTHER_DEVICES", "fit_for", "load_calibration"]

# Builds of llama.cpp by year; the last one stands for everything since.
ERAS = ("2023", "2024", "2025")
# With fewer other devices of its kind measured, a device's speed is a guess.
MIN_OTHER_DEVICES = 2


@lru_cache(maxsize=1)
def load_calibration() -> dict[str, Any]:
    """Return parameters and residuals as stored."""
    text = (resources.files("llavakit.planner") / "data" / "calibration.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def fit_for(device: Device, *, era: str = ERAS[-1]) -> SpeedFit:
    """Return the calibration of a device's family with builds of an era; that of all devices for a family never met."""
    fits = [SpeedFit(**entry) for entry in load_calibration()["fits"] if entry["era"] == era]
    for fit in fits:
        if fit.family == device.family:
            return fit
    return next(fit for fit in fits if fit.family == "nvidia")


def engine_fit(instruction_set: str) -> SpeedFit:
    """Return the calibration of this package's own engine on a processor, as shares of the machine's measured limits.

    ``data/engine.json`` names the machines they were measured on. A processor with another form of AVX-512 gets that of
    AVX-512; any other one that of the plainest, which is too slow for it.
    """
    text = (resources.files("llavakit.planner") / "data" / "engine.json").read_text(encoding="utf-8")
    entries = json.loads(text)["fits"]
    nearest = "avx512_bf16" if instruction_set.startswith("avx512") else "avx2"
    return SpeedFit(**entries.get(instruction_set, entries[nearest]))
