"""What was made before, up to so many bytes: the least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["BoundedCache"]


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value", bound=_Sized)


class BoundedCache(Generic[_Key, _Value]):
    """Least-recently-used store, bounded in bytes; threads may share it.

    The newest entry stays, even where it alone is over the bound.

    Parameters
    ----------
    max_bytes : int
        Of all values together, by their ``nbytes``.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[_Key, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> _Value | None:
        """Return what was put under a key, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: _Key, value: _Value) -> None:
        """Store a value, unless the key has one, and drop the least recently used ones beyond the bound."""
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = value
            self._num_bytes += value.nbytes
            while self._num_bytes > self.max_bytes and len(self._entries) > 1:
                _, dropped = self._entries.popitem(last=False)
                self._num_bytes -= dropped.nbytes

    @property
    def num_bytes(self) -> int:
        """Of all values."""
        return self._num_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
