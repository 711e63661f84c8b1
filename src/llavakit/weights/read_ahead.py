"""Ask the system to bring files into its page cache while something else is done."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

__all__ = ["start_reading_ahead"]

_STEP_BYTES = 32 * 1024 * 1024


def start_reading_ahead(files: Sequence[Path], *, available_bytes: int | None) -> threading.Thread | None:
    """Start to read files ahead, one after the other.

    A mapped file is otherwise read where it is touched, in pieces of some 100 kB with a wait for each.

    Parameters
    ----------
    files : sequence of Path
        In the order in which they are needed. What cannot be read is left to whoever opens it.
    available_bytes : int, optional
        Memory that can be had. Files that do not fit are not read ahead: they would push themselves out.

    Returns
    -------
    Thread or None
        A daemon that ends by itself; None where the system has no such request or the files do not fit.
    """
    if not hasattr(os, "posix_fadvise") or available_bytes is None:
        return None
    try:
        num_bytes = sum(file.stat().st_size for file in files)
    except OSError:
        return None
    if num_bytes > available_bytes:
        return None
    thread = threading.Thread(target=_read_ahead, args=(tuple(files),), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read_ahead(files: tuple[Path, ...]) -> None:
    for path in files:
        with contextlib.suppress(OSError), path.open("rb") as file:
            for start in range(0, os.fstat(file.fileno()).st_size, _STEP_BYTES):
                os.posix_fadvise(file.fileno(), start, _STEP_BYTES, os.POSIX_FADV_WILLNEED)
