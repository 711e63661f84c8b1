"""What a connection sends, in as few pieces as nobody notices.

Handing a piece to the system costs more of the event loop than what is in it: the system wakes the client for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

__all__ = ["PACE_S", "Outlet"]

PACE_S = 0.01
"""Between two pieces in the middle of a response. Nobody reads words that come faster one by one."""

_AT_ONCE = 2  # pieces of a response that wait for nothing: its head, and what comes first
_MAX_WAITING_BYTES = 16 * 1024


class Outlet:
    """A transport whose writes of one turn of the event loop leave together, and those of a stream every 10 ms at most.

    The head of a response, its first piece and its end leave in the turn they are written in; so does what is large.

    Parameters
    ----------
    transport : asyncio.Transport
        Everything but writing and closing is its own.
    loop : asyncio.AbstractEventLoop
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        # asyncio sets it only for sockets that were made with TCP's number, which those of a listener are not. Without
        # it the first word waits, on a connection that was used before, some 40 ms for the head to be acknowledged.
        found = transport.get_extra_info("socket")
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # of a client that has gone already
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._waiting: list[bytes] = []
        self._num_bytes = self._num_sent = 0  # that wait, and pieces of this response
        self._last_s = 0.0
        self._handle: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send soon."""
        if not data:
            return
        self._waiting.append(data)
        self._num_bytes += len(data)
        if self._num_bytes >= _MAX_WAITING_BYTES:
            self._flush()
        elif self._handle is None:
            rest_s = self._last_s + PACE_S - self._loop.time()
            if self._num_sent < _AT_ONCE or rest_s <= 0:
                self._handle = self._loop.call_soon(self._flush)
            else:
                self._handle = self._loop.call_later(rest_s, self._flush)

    def end_response(self) -> None:
        """Send what waits; what follows belongs to another response."""
        self._flush()
        self._num_sent = 0

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        self._transport.close()

    def drop(self) -> None:
        """Forget what waits: the connection is lost."""
        self._waiting.clear()
        self._flush()

    def _flush(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._waiting:
            self._transport.write(b"".join(self._waiting))
            self._waiting.clear()
            self._num_bytes = 0
            self._num_sent += 1
            self._last_s = self._loop.time()
