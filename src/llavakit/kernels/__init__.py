"""The native library, and what this machine can do."""

from llavakit.kernels.library import KernelLibrary, load_library
from llavakit.kernels.machine import MachineLimits, count_cpus, measure_machine

__all__ = ["KernelLibrary", "MachineLimits", "count_cpus", "load_library", "measure_machine"]
