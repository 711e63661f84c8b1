"""A server that stops in good order: no new requests, answers end or are ended with an error of their dialect."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable

import uvicorn

__all__ = ["DrainingServer"]

_SPARE_S = 5  # after the grace period, for the last lines to be sent


class DrainingServer(uvicorn.Server):
    """Drains the models while it waits for its connections, so that what is cut short says so.

    Parameters
    ----------
    config : uvicorn.Config
    drain : callable
        Takes the grace period in seconds; cancels after it what still runs.
    grace_s : float
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[float], Awaitable[None]], *, grace_s: float) -> None:
        config.timeout_graceful_shutdown = math.ceil(grace_s) + _SPARE_S
        super().__init__(config)
        self._drain = drain
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, and end the application."""
        draining = asyncio.ensure_future(self._drain(self._grace_s))
        await super().shutdown(sockets)
        await draining
