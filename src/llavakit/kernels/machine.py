"""What this machine can do: memory reads and arithmetic per second, measured.

In: how long to measure. Out: `MachineLimits`, the yardstick of ``llavakit bench``. Guaranteed: only the
processors and the memory this process may use count (affinity mask, control groups). A limit is the best of
several attempts, since a neighbour on the machine can only make it lower. It does not measure GPUs.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from llavakit.core.errors import ConfigError
from llavakit.core.host_memory import list_control_groups, read_available_bytes
from llavakit.kernels.library import KernelLibrary, Rate, load_library

__all__ = ["MAX_THREADS", "MachineLimits", "choose_buffer_bytes", "count_cpus", "get_cpu_name", "measure_machine"]

MAX_THREADS = 1024
"""Of the native library."""

_MIB = 1 << 20
# The buffer is four times the last cache, so that at most a quarter of the reads can hit it, within these.
_MIN_BUFFER_BYTES, _MAX_BUFFER_BYTES = 512 * _MIB, 2048 * _MIB
_NUM_STREAMS = (1, 2)
_NUM_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineLimits:
    """What the processor of this machine can do at most.

    Parameters
    ----------
    read_gb_per_s : float
        Streaming reads from memory, 10^9 bytes per second, all threads together.
    fp32_gflops : float
        float32 multiply-adds, two operations each.
    bf16_gflops : float or None
        bfloat16 dot products; None where the processor has no such instruction.
    int8_gops : float or None
        Products of int8 and their sums: in 32 bits where one instruction adds up four, otherwise in 16; None where the
        processor has neither.
    num_threads : int
        Threads of the fastest arithmetic: the processors this process may use.
    cpu_name : str
    instruction_set : str
    """

    read_gb_per_s: float
    fp32_gflops: float
    bf16_gflops: float | None
    int8_gops: float | None
    num_threads: int
    cpu_name: str
    instruction_set: str


def measure_machine(seconds: float = 2.0, *, num_threads: int | None = None) -> MachineLimits:
    """Measure the limits of this machine.

    Parameters
    ----------
    seconds : float, default 2.0
        Roughly how long to take; at least 0.1. Longer runs are steadier on a busy machine.
    num_threads : int, optional
        Those of the work that is to be compared; by default all that this process may use.

    Returns
    -------
    MachineLimits

    Raises
    ------
    MissingDependencyError
        If the native library is absent.
    ConfigError
        If `seconds` or `num_threads` is out of range.
    CapacityError
        If memory or a thread is not to be had.
    """
    if not (math.isfinite(seconds) and 0.1 <= seconds <= 600.0):
        raise ConfigError(f"seconds is {seconds}; it must be between 0.1 and 600.")
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads is {num_threads}; it must be at least 1.")
    library = load_library()
    num_threads = num_threads or count_cpus()
    rates = {rate: _measure_rate(library, rate, num_threads, seconds / 6) for rate in Rate}
    fp32_gflops = rates[Rate.FP32_FMA]
    assert fp32_gflops is not None  # noqa: S101 - every instruction set has float32
    return MachineLimits(
        read_gb_per_s=_measure_read(library, num_threads, seconds / 2),
        fp32_gflops=fp32_gflops,
        bf16_gflops=rates[Rate.BF16_DOT],
        int8_gops=rates[Rate.INT8_DOT],
        num_threads=num_threads,
        cpu_name=get_cpu_name(),
        instruction_set=library.best.name.lower(),
    )


def _measure_rate(library: KernelLibrary, rate: Rate, num_threads: int, seconds: float) -> float | None:
    # A processor may run its widest vectors slower, so every level that has the instruction is tried.
    levels = library.supported
    slice_s = seconds / (_NUM_ATTEMPTS * len(levels))
    found = [
        library.measure_rate(rate, num_threads=num_threads, seconds=slice_s, level=level)
        for level in levels
        for _ in range(_NUM_ATTEMPTS)
    ]
    return max((value for value in found if value is not None), default=None)


def _measure_read(library: KernelLibrary, num_threads: int, seconds: float) -> float:
    num_bytes = choose_buffer_bytes(num_threads)
    # Memory may be full before all threads read, and too many walkers disturb each other.
    counts = sorted({1, max(1, num_threads // 2), num_threads})
    slice_s = seconds / (len(counts) * len(_NUM_STREAMS))
    return max(
        library.measure_read(num_bytes=num_bytes, num_threads=count, num_streams=num_streams, seconds=slice_s)
        for count in counts
        for num_streams in _NUM_STREAMS
    )


def choose_buffer_bytes(num_threads: int, *, least_bytes: int = _MIN_BUFFER_BYTES) -> int:
    """Return the size of a buffer whose reads are memory's: four times the last cache, if there is as much memory."""
    wanted = min(max(4 * _read_last_cache_bytes(), least_bytes), _MAX_BUFFER_BYTES)
    available = read_available_bytes()
    if available is not None:
        wanted = min(wanted, available // 4)
    return max(wanted, 8 * _MIB * num_threads)


def count_cpus(root: Path = Path("/")) -> int:
    """Count the processors this process may use.

    Parameters
    ----------
    root : Path, default "/"
        Where ``proc`` and ``sys`` lie; tests point it elsewhere.

    Returns
    -------
    int
        The smaller of the affinity mask and the control group's quota (a fraction counts as one), at least 1.
    """
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in list_control_groups(root, "cpu"):
        quota = _read_quota(folder)
        if quota is not None:
            num_cpus = min(num_cpus, max(1, math.ceil(quota)))
    return num_cpus


def _read_quota(folder: Path) -> float | None:
    words = _read_words(folder / "cpu.max")  # version 2: "max 100000" or "150000 100000"
    if not words:
        words = _read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us")  # version 1
    if len(words) != 2:
        return None
    try:
        quota_us, period_us = int(words[0]), int(words[1])
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _read_last_cache_bytes(root: Path = Path("/")) -> int:
    """Return the size of all last-level caches together; 0 when the system does not say."""
    sizes: dict[str, tuple[int, int]] = {}
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*")):
        level, size = _read_text(folder / "level").strip(), _read_text(folder / "size").strip()
        shared = _read_text(folder / "shared_cpu_list").strip()
        if level.isdigit() and size.endswith("K") and size[:-1].isdigit():
            sizes[f"{level}:{shared}"] = (int(level), int(size[:-1]) * 1024)
    last_level = max((level for level, _ in sizes.values()), default=0)
    return sum(size for level, size in sizes.values() if level == last_level)


def get_cpu_name(root: Path = Path("/")) -> str:
    """Return the processor's name as the system gives it."""
    for line in _read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_words(path: Path) -> list[str]:
    return _read_text(path).split()
