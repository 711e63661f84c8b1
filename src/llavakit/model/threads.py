"""What torch and the native library share: the processors, and memory for what lies between products.

By default torch's threads stay awake for some milliseconds after each operation, waiting for the next. A second set of
threads would have to share the processors with them, and both would be half as fast. Where they wait briefly
(`llavakit.core.waiting`), the library has threads of its own, which nobody has to wait for.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from llavakit.core.waiting import torch_waits_briefly
from llavakit.kernels.library import KernelLibrary, load_library
from llavakit.kernels.machine import count_cpus

__all__ = ["count_threads", "keep_freed_memory", "load_shared_library", "prefer_large_pages"]

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 << 20


@functools.cache
def load_shared_library() -> KernelLibrary:
    """Load the native library, and let it compute on torch's threads where these are GNU OpenMP's and wait long.

    Raises
    ------
    MissingDependencyError
        If the library is absent, cannot be loaded, or belongs to another release.
    """
    library = load_library()
    if (
        not torch_waits_briefly()
        and "OpenMP" in torch.__config__.parallel_info()
        and (team := _find_team()) is not None
    ):
        library.set_team(team)
    return library


def prefer_large_pages() -> None:
    """Let torch ask for pages of 2 MiB for large tensors, where the system gives them on request.

    The activations of 776 positions between two products of the 7B take 34 MB, which the C library fetches from the
    system anew each time: 8,000 faults of 4 KiB pages, a sixth of a long prompt's time in all. torch reads the variable
    at its first tensor, so this comes before a model is filled; whoever has set it is left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> bool:
    """Let the C library keep up to 128 MiB that were freed, where it is GNU's; return whether it does.

    What lies between products is allocated and freed hundreds of times a second. By default blocks of 128 KiB and more
    come from the system anew each time, zeroed page by page: 20,000 to 50,000 faults for one picture of the 7B. Blocks
    of 32 MiB and more still do.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another system, another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def count_threads() -> int:
    """As many threads as torch uses, but never more than there are processors for this process."""
    return min(torch.get_num_threads(), _num_cpus())


@functools.cache
def _num_cpus() -> int:
    return count_cpus()


def _find_team() -> ctypes._NamedFuncPointer | None:
    """Find ``GOMP_parallel`` as torch calls it; other packages may have loaded another copy of its library."""
    core = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:  # a look-up in a loaded library searches the libraries it depends on, and no others
        return ctypes.CDLL(str(core), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):  # no Linux, or other threads than GNU OpenMP's
        return None
