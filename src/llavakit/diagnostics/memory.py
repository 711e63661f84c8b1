"""What a process holds in memory, and how to make a file cold. Linux's /proc."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MemoryUse", "cached_share", "drop_page_cache", "read_memory"]

_KIB = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """Memory of this process, in bytes.

    Parameters
    ----------
    peak_resident : int
        High-water mark of resident pages since the process began. Pages of a mapped weight file count while they
        are resident, although the system can take them back and other processes share them.
    resident : int
        Resident now.
    proportional : int or None
        Resident now, pages shared by n processes counted as 1/n; None where the system does not say.
    anonymous : int
        Resident now and not backed by a file: what only this process has.
    file_backed : int
        Resident now and backed by a file: the mapped weights and libraries.
    """

    peak_resident: int
    resident: int
    proportional: int | None
    anonymous: int
    file_backed: int


def read_memory(root: Path = Path("/proc/self")) -> MemoryUse | None:
    """Return what this process holds; None where there is no ``/proc``."""
    status = _read_fields(root / "status")
    if "VmHWM" not in status:
        return None
    rollup = _read_fields(root / "smaps_rollup")
    return MemoryUse(
        peak_resident=status["VmHWM"],
        resident=status.get("VmRSS", 0),
        proportional=rollup.get("Pss"),
        anonymous=status.get("RssAnon", 0),
        file_backed=status.get("RssFile", 0) + status.get("RssShmem", 0),
    )


def drop_page_cache(files: Sequence[Path]) -> float | None:
    """Ask the system to forget the cached pages of files.

    Pages that any process has mapped and touched stay, so that the result is measured.

    Returns
    -------
    float or None
        Share of the files' bytes still cached afterwards; None where that cannot be told.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages not yet written cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(files)


def cached_share(files: Sequence[Path]) -> float | None:
    """Return the share of the files' bytes in the page cache, by ``mincore``; None where that cannot be told."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError):
        return None
    num_pages = num_cached = 0
    for path in files:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
            count = -(-size // mmap.PAGESIZE)
            flags = (ctypes.c_ubyte * count)()
            view = ctypes.c_char.from_buffer(mapped)
            status = mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), flags)
            del view
        if status:
            return None
        num_pages += count
        num_cached += int(np.count_nonzero(np.frombuffer(bytes(flags), dtype=np.uint8) & 1))
    return num_cached / num_pages if num_pages else 0.0


def _read_fields(path: Path) -> dict[str, int]:
    """Read lines such as ``VmHWM:  1234 kB`` as bytes."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields[name.strip()] = int(words[0]) * _KIB
    return fields
