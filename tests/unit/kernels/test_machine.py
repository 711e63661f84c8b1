"""The machine's limits: plausible, and honest about what this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from llavakit.core.errors import ConfigError
from llavakit.kernels import machine
from llavakit.kernels.library import Rate, load_library
from llavakit.kernels.machine import count_cpus, get_cpu_name, measure_machine


def test_measured_limits_are_those_of_this_machine() -> None:
    limits = measure_machine(0.3)
    assert limits.num_threads == count_cpus()
    assert limits.cpu_name
    assert limits.instruction_set == load_library().best.name.lower()
    assert 0.1 < limits.read_gb_per_s < 20_000
    assert limits.fp32_gflops > 0.1
    for value, rate in ((limits.bf16_gflops, Rate.BF16_DOT), (limits.int8_gops, Rate.INT8_DOT)):
        has_rate = load_library().measure_rate(rate, num_threads=1, seconds=0.01) is not None
        assert (value is not None) == has_rate


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 0.01, 1e9])
def test_seconds_out_of_range_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="seconds is"):
        measure_machine(seconds)


def test_limits_may_be_those_of_fewer_threads() -> None:
    assert measure_machine(0.2, num_threads=1).num_threads == 1
    with pytest.raises(ConfigError, match="num_threads is 0"):
        measure_machine(0.2, num_threads=0)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.usefixtures("many_cpus")
class TestCountCpus:
    def test_without_groups_the_affinity_mask_counts(self, tmp_path: Path) -> None:
        assert count_cpus(tmp_path) == 16

    @pytest.mark.parametrize(
        ("quota", "expected"),
        [
            ("max 100000", 16),
            ("150000 100000", 2),
            ("50000 100000", 1),
            ("99999999 100", 16),
            ("broken", 16),
            ("x y", 16),
        ],
    )
    def test_quota_of_version_2(self, tmp_path: Path, quota: str, expected: int) -> None:
        _write(tmp_path / "proc/self/cgroup", "0::/\n")
        _write(tmp_path / "sys/fs/cgroup/cpu.max", quota)
        assert count_cpus(tmp_path) == expected

    def test_quota_of_a_group_above_counts_as_well(self, tmp_path: Path) -> None:
        _write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
        _write(tmp_path / "sys/fs/cgroup/outer/inner/cpu.max", "800000 100000")
        _write(tmp_path / "sys/fs/cgroup/outer/cpu.max", "300000 100000")
        assert count_cpus(tmp_path) == 3

    def test_group_named_from_outside_the_container_falls_back_to_the_mount(self, tmp_path: Path) -> None:
        _write(tmp_path / "proc/self/cgroup", "0::/not/mounted/here\n")
        _write(tmp_path / "sys/fs/cgroup/cpu.max", "200000 100000")
        assert count_cpus(tmp_path) == 2

    @pytest.mark.parametrize(("quota", "expected"), [("400000", 4), ("-1", 16)])
    def test_quota_of_version_1(self, tmp_path: Path, quota: str, expected: int) -> None:
        _write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/job\n2:memory:/job\n")
        _write(tmp_path / "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", quota)
        _write(tmp_path / "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
        assert count_cpus(tmp_path) == expected


def test_affinity_mask_is_honoured() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_buffer_is_four_last_caches_within_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1 << 20
    monkeypatch.setattr(machine, "_read_last_cache_bytes", lambda: 128 * mib)
    monkeypatch.setattr(machine, "read_available_bytes", lambda: 1 << 40)
    assert machine.choose_buffer_bytes(2) == 512 * mib
    monkeypatch.setattr(machine, "read_available_bytes", lambda: 400 * mib)
    assert machine.choose_buffer_bytes(2) == 100 * mib
    monkeypatch.setattr(machine, "read_available_bytes", lambda: 1 * mib)
    assert machine.choose_buffer_bytes(2) == 16 * mib


def test_last_caches_are_counted_once_per_group_of_processors(tmp_path: Path) -> None:
    for cpu in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache"
        _write(folder / "index0/level", "1\n")
        _write(folder / "index0/size", "32K\n")
        _write(folder / "index0/shared_cpu_list", f"{cpu}\n")
        _write(folder / "index3/level", "3\n")
        _write(folder / "index3/size", "16384K\n")
        _write(folder / "index3/shared_cpu_list", "0-1\n" if cpu < 2 else "2-3\n")
    assert machine._read_last_cache_bytes(tmp_path) == 2 * 16384 * 1024
    assert machine._read_last_cache_bytes(tmp_path / "nothing") == 0


def test_processor_name_is_the_systems(tmp_path: Path) -> None:
    _write(tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU 9000\n")
    assert get_cpu_name(tmp_path) == "Some CPU 9000"
    assert get_cpu_name(tmp_path / "nothing")
