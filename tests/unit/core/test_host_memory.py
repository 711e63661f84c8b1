"""Memory as the system and its control groups give it, both versions, whatever they leave out."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavakit.core.host_memory import HostMemory, read_available_bytes, read_host_memory

_KIB = 1024


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path / "proc/meminfo", "MemTotal: 1000 kB\nMemFree: many kB\nMemAvailable: 900 kB\n: 1 kB\nrubbish\n")
    return tmp_path


def test_a_system_without_proc_says_nothing(tmp_path: Path) -> None:
    assert read_host_memory(tmp_path) == HostMemory(total_bytes=None, limit_bytes=None, available_bytes=None)


def test_a_machine_without_groups(root: Path) -> None:
    expected = HostMemory(total_bytes=1000 * _KIB, limit_bytes=None, available_bytes=900 * _KIB)
    assert read_host_memory(root) == expected
    assert read_available_bytes(root) == 900 * _KIB


def test_a_limit_leaves_what_is_not_used(root: Path) -> None:
    _write(root / "proc/self/cgroup", "0::/\n")
    _write(root / "sys/fs/cgroup/memory.max", "500000")
    _write(root / "sys/fs/cgroup/memory.current", "200000")
    assert read_host_memory(root).limit_bytes == 500000
    assert read_available_bytes(root) == 300000
    _write(root / "sys/fs/cgroup/memory.max", "max")
    assert read_host_memory(root).limit_bytes is None
    assert read_available_bytes(root) == 900 * _KIB


def test_cached_files_of_a_group_can_be_had(root: Path) -> None:
    """A group that has read a model is full of its pages, which the system gives back."""
    _write(root / "proc/self/cgroup", "0::/\n")
    _write(root / "sys/fs/cgroup/memory.max", "500000")
    _write(root / "sys/fs/cgroup/memory.current", "490000")
    _write(root / "sys/fs/cgroup/memory.stat", "anon 90000\ninactive_file 250000\nactive_file 150000\nfile 400000\n")
    assert read_available_bytes(root) == 410000


def test_the_tightest_group_above_counts(root: Path) -> None:
    _write(root / "proc/self/cgroup", "0::/outer/inner\n")
    for name, limit in (("outer/inner", "800000"), ("outer", "300000")):
        _write(root / f"sys/fs/cgroup/{name}/memory.max", limit)
        _write(root / f"sys/fs/cgroup/{name}/memory.current", "100000")
    assert read_host_memory(root).limit_bytes == 300000
    assert read_available_bytes(root) == 200000


def test_version_1(root: Path) -> None:
    _write(root / "proc/self/cgroup", "4:cpu,cpuacct:/job\n2:memory:/job\n")
    group = root / "sys/fs/cgroup/memory/job"
    _write(group / "memory.limit_in_bytes", "9223372036854771712")
    assert read_host_memory(root).limit_bytes is None
    _write(group / "memory.limit_in_bytes", "600000")
    _write(group / "memory.usage_in_bytes", "500000")
    _write(group / "memory.stat", "total_inactive_file 100000\ntotal_active_file 50000\ninactive_file 1\n")
    assert read_available_bytes(root) == 250000
