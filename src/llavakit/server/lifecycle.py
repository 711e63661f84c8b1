"""A server that stops in good order: no new requests, answers end or are ended with an error of their dialect."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import FastAPI

from llavakit.server.parsing import BoundedHttp

__all__ = ["DrainingServer", "make_config"]

_SPARE_S = 5  # after the grace period, for the last lines to be sent


def make_config(app: FastAPI) -> uvicorn.Config:
    """Say how the application is served."""
    return uvicorn.Config(
        app, http=BoundedHttp, ws="none", log_config=None, access_log=False, lifespan="on", server_header=False,
        timeout_keep_alive=30,
    )  # fmt: skip


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
