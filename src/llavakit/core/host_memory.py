"""How much memory this process may have: the machine's, and what its control groups leave of it. Linux's /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["HostMemory", "list_control_groups", "read_available_bytes", "read_host_memory"]

_KIB = 1024
# Version 1 writes "no limit" as a number that no machine has.
_NO_LIMIT_BYTES = 1 << 50


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """Memory in bytes; None where the system does not say.

    Attributes
    ----------
    total_bytes : int or None
        Of the machine.
    limit_bytes : int or None
        The least that a control group of this process allows; None without such a limit.
    available_bytes : int or None
        To be had now without swapping. Cached pages of files count, as the system gives them back.
    """

    total_bytes: int | None
    limit_bytes: int | None
    available_bytes: int | None


def read_host_memory(root: Path = Path("/")) -> HostMemory:
    """Read what there is.

    Parameters
    ----------
    root : Path, default "/"
        Where ``proc`` and ``sys`` lie; tests point it elsewhere.
    """
    machine = _read_numbers(root / "proc/meminfo")
    limits, available = [], [machine["MemAvailable"] * _KIB] if "MemAvailable" in machine else []
    for group in list_control_groups(root, "memory"):
        for limit_name, usage_name, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # version 1
        ):
            limit, usage = _read_number(group / limit_name), _read_number(group / usage_name)
            if limit is None or limit >= _NO_LIMIT_BYTES:
                continue
            limits.append(limit)
            cached = _read_numbers(group / "memory.stat")
            cached_bytes = sum(cached.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))
            available.append(max(0, limit - max(0, (usage or 0) - cached_bytes)))
    total = machine.get("MemTotal")
    return HostMemory(
        total_bytes=None if total is None else total * _KIB,
        limit_bytes=min(limits, default=None),
        available_bytes=min(available, default=None),
    )


def read_available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that can be had now without swapping; None where the system does not say."""
    return read_host_memory(root).available_bytes


def list_control_groups(root: Path, controller: str) -> list[Path]:
    """List the folders of this process's control groups, from its own up to the root of the hierarchy."""
    folders = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            mount = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        # Inside a container the path may name a group outside of it; its own limits then lie at the mount.
        group = mount / path.lstrip("/")
        while group != mount and mount in group.parents:
            folders.append(group)
            group = group.parent
        folders.append(mount)
    return folders


def _read_numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; what is anything else is left out."""
    numbers = {}
    for line in _read_text(path).splitlines():
        words = line.split()
        if len(words) in (2, 3) and words[1].isdigit():
            numbers[words[0].rstrip(":")] = int(words[1])
    return numbers


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
