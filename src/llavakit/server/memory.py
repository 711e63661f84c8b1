"""The C library's memory, in a process that is to run for weeks."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
from pathlib import Path

__all__ = ["freeze_modules", "give_back", "keep_giving_back", "read_resident_bytes", "use_one_heap"]

_EVERY_S = 60.0
_M_ARENA_MAX = -8  # malloc.h of the GNU C library


def use_one_heap() -> bool:
    """Let all threads take memory from one heap, where the C library is GNU's; return whether it is.

    By default each thread gets heaps of its own. Pictures are decoded by one thread, encoded by another and dropped by
    a third, and what one frees the others cannot use: with a full cache of pictures the server grew on by 30 MB in five
    minutes although nothing more was kept. Called before threads are started; one lock for all costs nothing here,
    since few of them allocate at the same time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    return False


def give_back() -> bool:
    """Give pages that nothing is in back to the system, also in the middle of the heap; return whether any were.

    The C library by itself gives back the heap's end alone. What is freed further down is used again, but each time
    that a little more is needed at once, the heap grows, and keeps its size: 8 MB in half an hour of small requests,
    while what was in use stayed the same.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        return bool(ctypes.CDLL(None).malloc_trim(0))
    return False


async def keep_giving_back() -> None:
    """Call `give_back` every minute, on another thread, until cancelled; the next picture gets its pages anew."""
    while True:
        await asyncio.sleep(_EVERY_S)
        await asyncio.to_thread(give_back)


def read_resident_bytes() -> int | None:
    """Memory of this process that is in use now, mapped files included; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def freeze_modules() -> None:
    """Leave everything that lives now out of garbage collection, which looks at all objects once in a while.

    Those of the imported libraries are by far the most. They live until the end anyway, and looking at them stopped
    every answer for a tenth of a second. Called before a model is loaded, so that one that is unloaded can go.
    """
    gc.freeze()
