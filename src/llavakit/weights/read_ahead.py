"""Bring files into the system's page cache while something else is done."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from llavakit.core.host_memory import read_available_bytes

__all__ = ["start_reading_ahead"]

_STEP_BYTES = 64 * 1024 * 1024


def start_reading_ahead(files: Sequence[Path]) -> threading.Thread | None:
    """Start to read files ahead, one after the other.

    A mapped file is otherwise read where it is touched, in pieces of some 100 kB with a wait for each.

    Parameters
    ----------
    files : sequence of Path
        In the order in which they are needed. What cannot be read is left to whoever opens it.

    Returns
    -------
    Thread or None
        A daemon that ends by itself; None where they do not fit into the memory that can be had, or nobody knows:
        files that do not fit would push themselves out.
    """
    available_bytes = read_available_bytes()
    if available_bytes is None:
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
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            try:
                _send_nowhere(file)
            except (AttributeError, OSError):  # a system that cannot, or to sockets only
                _read_whole(file)


def _send_nowhere(file: FileIO) -> None:
    """Read a file without copying it: pages are read for `/dev/null`, which takes them as they are.

    Asking for pages in advance (``POSIX_FADV_WILLNEED``) is not enough: of each request Linux reads no more than the
    device's own read-ahead, often 128 kB, and says nothing about the rest. Waiting for each piece also leaves the
    disk to whoever else needs it, such as an import.
    """
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        offset = 0
        while sent := os.sendfile(nowhere.fileno(), file.fileno(), offset, _STEP_BYTES):
            offset += sent


def _read_whole(file: FileIO) -> None:
    buffer = bytearray(_STEP_BYTES // 8)
    while file.readinto(buffer):
        pass
