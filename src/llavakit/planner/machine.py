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
from llavakit.planner.devices import Device, find_device, list_reported

__all__ = ["Machine", "assumed_host", "detect_machine", "generic_host", "measured_host"]

_MIB = 1024**2
_GIB = 1024**3
_TOOL_SECONDS = 5.0
# Nominal bandwidth of an ordinary desktop, where nothing better is known.
_DEFAULT_BANDWIDTH_GB_S = 51.2
_DESKTOP_GIB = 32.0
# Of the nominal memory, that error correction, the driver and the system may keep: less than between two sizes.
_HELD_BACK = 0.12


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
    gpus = _nvidia_gpus(command, memory.total_bytes, notes) + _apple_gpus(command, notes)
    limit = memory.limit_bytes
    if limit is not None and limit < total:
        notes.append(f"a control group limits this process to {limit / 1e9:.1f} GB of the machine's {total / 1e9:.1f}")
        total = limit
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


def _nvidia_gpus(command: object, total_bytes: int | None, notes: list[str]) -> list[Device]:
    if not callable(command):
        return []
    query = "--query-gpu=name,memory.total,power.default_limit"
    text = command(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    gpus = []
    for line in (text or "").splitlines():
        words = [word.strip() for word in line.rsplit(",", 2)]
        if len(words) < 3:
            continue
        name, memory, watts = words[0], _number(words[1]), _number(words[2])
        device = _reported_gpu(name, None if memory is None else memory * _MIB / _GIB, total_bytes, notes)
        if device is not None:
            gpus.append(device if watts is None else replace(device, watts=watts))
    return gpus


def _number(text: str) -> float | None:
    """Read a number of nvidia-smi, which writes ``[N/A]`` where there is none."""
    return float(text) if text.replace(".", "", 1).isdigit() else None


def _reported_gpu(name: str, memory_gib: float | None, total_bytes: int | None, notes: list[str]) -> Device | None:
    """Find a GPU as its driver reports it."""
    rows = list_reported(name)
    device = _without_memory(name, rows, total_bytes, notes) if memory_gib is None else _of_memory(rows, memory_gib)
    if device is None:
        size = "of unknown memory" if memory_gib is None else f"with {memory_gib:.1f} GiB"
        notes.append(
            f"the GPU {name!r} {size} is not in the table and is left out; describe it with --memory-gb and "
            "--bandwidth-gb-s"
        )
    return device


def _without_memory(name: str, rows: Sequence[Device], total_bytes: int | None, notes: list[str]) -> Device | None:
    """Find a GPU of which no memory is reported, as of chips that share the machine's."""
    if total_bytes is not None and any(row.is_shared for row in rows):
        device = _of_memory(rows, total_bytes / _GIB)
        source = f"it shares the machine's {total_bytes / 1e9:.1f} GB"
    else:
        device = rows[0] if len(rows) == 1 else None
        source = "that of the table is assumed"
    if device is not None:
        notes.append(f"nvidia-smi gives no memory of the GPU {name!r}, taken for {device.name}; {source}")
    return device


def _of_memory(rows: Sequence[Device], memory_gib: float) -> Device | None:
    """Return the row that was sold with about this memory, with just this much; one of another size is another GPU."""
    closest = min(rows, key=lambda row: abs(row.memory_gib - memory_gib), default=None)
    if closest is None or abs(closest.memory_gib - memory_gib) > _HELD_BACK * closest.memory_gib:
        return None
    return replace(closest, memory_gib=memory_gib)


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
