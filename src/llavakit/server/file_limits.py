"""How many connections the system's bound on open files leaves room for."""

from __future__ import annotations

import contextlib

try:
    import resource
except ImportError:  # Windows, where connections do not count as files
    resource = None  # type: ignore[assignment]

__all__ = ["most_connections", "raise_file_limit"]

_ENOUGH_FILES = 16_384
_MAX_SPARE_FILES = 256  # for weights, caches and libraries
_DEFAULT_FILES = 1024


def raise_file_limit() -> None:
    """Let this process open as many files as it may: a shell's usual bound is made for programs without connections."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Return how many connections leave enough files for everything else: without, a model could not be loaded."""
    limit = _DEFAULT_FILES
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _ENOUGH_FILES if soft == resource.RLIM_INFINITY else min(soft, _ENOUGH_FILES)
    return limit - min(_MAX_SPARE_FILES, limit // 2)
