"""What is planned, with the arguments of every formula gathered once: a model in a type, on devices, with an engine."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from llavakit.planner import formulas
from llavakit.planner.devices import Device
from llavakit.planner.models import PlannedModel
from llavakit.planner.records import DeviceNumbers, EngineFit, QuantSizes, Setting, SpeedFit
from llavakit.planner.speed import fit_for, processor_fit

__all__ = ["ENGINES", "HALF_ONLY", "LAYERED", "OWN", "PROGRAM_BYTES", "Case"]

# Python, torch and the native library of this package before a model is loaded, as `plan --verify` measures it.
PROGRAM_BYTES = 310_000_000
OWN = "llavakit"
ENGINES = ("llama.cpp", "ollama", "llavakit", "transformers", "transformers-4bit", "vllm")
# Those that deal out layers; those of torch, with 16 bits a weight.
LAYERED = ("llama.cpp", "ollama")
HALF_ONLY = ("transformers", "transformers-4bit", "vllm")


class Case:
    """A model in a type, on devices and a host, with an engine."""

    def __init__(
        self, model: PlannedModel, quant: QuantSizes, devices: Sequence[Device], host: Device, *, engine: str
    ) -> None:
        self.model, self.quant = model, quant
        self.sizes = model.sizes
        self.devices: list[DeviceNumbers] = [device.numbers for device in devices]
        is_own = engine == OWN and not devices
        self.host = host.engine_numbers if is_own else host.numbers
        self.fits: list[SpeedFit] = [fit_for(device) for device in devices]
        self.host_fit: SpeedFit | EngineFit = processor_fit(host) if is_own else fit_for(host)

    def with_quant(self, name: str) -> Case:
        """Return the same with another mixture."""
        other = copy(self)
        other.quant = self.model.quantize(name)
        return other

    def parts(self, setting: Setting) -> list[dict[str, Any]]:
        """Every part of what the engine needs, in bytes."""
        found: list[dict[str, Any]] = formulas.parts_of(
            self.sizes, self.quant, setting, self.placed(setting), PROGRAM_BYTES
        )
        return found

    def placed(self, setting: Setting) -> list[DeviceNumbers]:
        """Where the engine's parts lie: on the devices, or on the host as torch's device."""
        return [self.host] if setting.engine in HALF_ONLY and not self.devices else self.devices

    def fits_in(self, setting: Setting) -> bool:
        """Whether the devices and the host hold their parts."""
        return bool(formulas.fits_in(self.sizes, self.quant, setting, self.placed(setting), self.host, PROGRAM_BYTES))

    def verdict(self, setting: Setting) -> str:
        """Return "fits", "tight", "partly" or "no"."""
        where = (self.sizes, self.quant, setting, self.placed(setting), self.host)
        return str(formulas.verdict_of(*where, PROGRAM_BYTES))

    def most_device_layers(self, setting: Setting) -> int:
        """Most layers that the devices hold, the head counted as one."""
        return int(formulas.most_device_layers(self.sizes, self.quant, setting, self.devices, self.host, PROGRAM_BYTES))

    def largest_context(self, setting: Setting) -> int:
        """Largest context that fits when it is filled, in tokens; 0 if none."""
        return int(
            formulas.largest_context(self.sizes, self.quant, setting, self.placed(setting), self.host, PROGRAM_BYTES)
        )

    def working_fits(self, setting: Setting) -> Sequence[SpeedFit | EngineFit]:
        """Fits of all that holds weights.

        A sum of their times is off by no more than the one of its parts that is most off.
        """
        if setting.engine not in LAYERED or not self.devices:
            return self.fits[:1] or [self.host_fit]
        shares = formulas.device_weights(self.sizes, self.quant, setting, self.devices)
        return [fit for fit, share in zip([*self.fits, self.host_fit], shares, strict=True) if share["weights"]]
