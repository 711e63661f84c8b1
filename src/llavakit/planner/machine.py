"""The machine at hand: its memory, its processor, its GPUs. Nothing is loaded and nothing is measured.

What cannot be told is None, and the caller says so; a machine without ``/proc``, without GPUs or without NVIDIA's tools
is no error.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llavakit.core.errors import ConfigError
from llavakit.core.host_memory import read_host_memory
from llavakit.kernels.machine import MachineLimits, count_cpus, get_cpu_name
from llavakit.planner.devices import Device, find_device

__all__ = ["Machine", "assumed_host", "detect_machine", "generic_host", "measured_host"]

_MIB = 1024**2
_GIB = 1024**3
_TOOL_SECONDS = 5.0
# Nominal bandwidth of an ordinary desktop, where nothing better is known.
_DEFAULT_BANDWIDTH_GB_S = 51.2
_DESKTOP_GIB = 32.0


@dataclass(frozen=True)
class Machine:
    """A computer.

    Attributes
    ----------
    host : Device
        Its processor and memory, as a device.
    gpus : tuple of Device
    available_bytes : int or None
        Memory to be had now without swapping.
    notes : tuple of str
        What was assumed.
    """

    host: Device
    gpus: tuple[Device, ...]
    available_bytes: int | None
    notes: tuple[str, ...]


def generic_host(memory_gib: float = _DESKTOP_GIB) -> Device:
    """Return an ordinary desktop."""
    return replace(find_device("CPU: dual-channel DDR5-5600 desktop"), memory_gib=memory_gib)


def assumed_host(devices: Sequence[Device]) -> Device:
    """Return the computer that is assumed around devices, where none is described.

    A processor is its own. A chip that shares its memory with its processor has that memory and no other; how fast the
    processor is, is not known: as fast as a desktop's is assumed, but no faster than the memory. Around cards stands a
    desktop of 32 GiB, or of as much as the largest card has.
    """
    shared = next((device for device in devices if device.is_shared), None)
    if shared is None:
        return generic_host(max([_DESKTOP_GIB, *(device.memory_gib for device in devices)]))
    if shared.backend == "cpu":
        return shared
    desktop = generic_host(shared.memory_gib)
    return replace(
        desktop,
        name=f"processor of {shared.name}",
        bandwidth_gb_s=min(desktop.bandwidth_gb_s, shared.bandwidth_gb_s),
    )


def detect_machine(*, root: Path = Path("/"), run: object = None) -> Machine:
    """Look at this machine.

    Parameters
    ----------
    root : Path, default "/"
        Where ``proc`` and ``sys`` lie; tests point it elsewhere.
    run : callable, optional
        Stands in for a command's output: takes its words, returns text or None.
    """
    command = run if callable(run) else _output_of
    notes: list[str] = []
    memory = read_host_memory(root)
    total = memory.total_bytes if memory.total_bytes is not None else _apple_memory(command)
    if total is None:
        total = 8 * _GIB
        notes.append("the size of the memory could not be read; 8 GB is assumed")
    limit = memory.limit_bytes
    if limit is not None and limit < total:
        notes.append(f"a control group limits this process to {limit / 1e9:.1f} GB of the machine's {total / 1e9:.1f}")
        total = limit
    gpus = _nvidia_gpus(command, notes) + _apple_gpus(command, notes)
    host = replace(
        generic_host(total / _GIB),
        name=get_cpu_name(),
        bandwidth_gb_s=_DEFAULT_BANDWIDTH_GB_S,
        note="bandwidth and arithmetic rate are assumed; `llavakit plan --verify` measures them",
    )
    return Machine(host, tuple(gpus), memory.available_bytes, tuple(notes))


def measured_host(host: Device, limits: MachineLimits) -> Device:
    """Return a processor with its measured bandwidth and rates in place of nominal ones."""
    integers = limits.int8_gops if limits.int8_gops is not None else limits.fp32_gflops
    half = limits.fp32_gflops if limits.int8_gops is None else limits.int8_gops / 2
    return replace(
        host, bandwidth_gb_s=limits.read_gb_per_s, half_tflops=half / 1000, int8_tops=integers / 1000,
        shader_tflops=limits.fp32_gflops / 1000, instruction_set=limits.instruction_set, is_measured=True,
        note="bandwidth and arithmetic rates were measured",
    )  # fmt: skip


def _output_of(words: list[str]) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _nvidia_gpus(command: object, notes: list[str]) -> list[Device]:
    if not callable(command):
        return []
    text = command(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
    gpus = []
    for line in (text or "").splitlines():
        name, _, memory = (part.strip() for part in line.rpartition(","))
        if not name or not memory.replace(".", "", 1).isdigit():
            continue
        memory_gib = float(memory) * _MIB / _GIB
        try:
            gpus.append(replace(_closest(name, memory_gib), memory_gib=memory_gib))
        except ConfigError:
            notes.append(f"the GPU {name!r} is not in the table and is left out; describe it with --memory-gb")
    return gpus


def _closest(name: str, memory_gib: float) -> Device:
    """Find a card by the driver's name, which leaves out the memory size where a card was sold with several."""
    try:
        return find_device(f"{name} {round(memory_gib)}GB")
    except ConfigError:
        return find_device(name)


def _apple_memory(command: object) -> int | None:
    if platform.system() != "Darwin" or not callable(command):
        return None
    text = (command(["sysctl", "-n", "hw.memsize"]) or "").strip()
    return int(text) if text.isdigit() else None


def _apple_gpus(command: object, notes: list[str]) -> list[Device]:
    if platform.system() != "Darwin" or not callable(command):
        return []
    brand = (command(["sysctl", "-n", "machdep.cpu.brand_string"]) or "").strip()
    cores = command(
        ["sh", "-c", "ioreg -rc AGXAccelerator | grep -o '\"gpu-core-count\" = [0-9]*' | grep -o '[0-9]*$'"]
    )
    name = f"{brand} ({cores.strip()}-core GPU)" if cores and cores.strip().isdigit() else brand
    memory = command(["sysctl", "-n", "hw.memsize"])
    try:
        device = find_device(name)
    except ConfigError:
        notes.append(f"the chip {brand!r} is not in the table")
        return []
    return [replace(device, memory_gib=int(memory) / _GIB)] if memory and memory.strip().isdigit() else [device]


def describe_host() -> str:
    """Return processor, cores and system in one line."""
    return f"{get_cpu_name()}, {count_cpus()} cores, {platform.system()} {os.uname().release.split('-')[0]}"
