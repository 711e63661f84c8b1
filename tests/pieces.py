"""Work that is done a piece at a time, done in one go."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

__all__ = ["exhaust"]

_T = TypeVar("_T")


def exhaust(pieces: Generator[None, None, _T]) -> _T:
    """Do all pieces, and return what the last one gives."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            found: _T = end.value
            return found
