"""Models that are being fetched for a server: each by one thread, whoever asks for it, and few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor

from llavakit.core.errors import OverloadedError
from llavakit.weights import store

__all__ = ["Pulls"]

_MAX_AT_ONCE = 2
_RETRY_AFTER_S = 60

# File at work, bytes so far, bytes in all.
Status = tuple[str, int, int]


class _Pull:
    """A fetch that runs, and who watches it. All but `report` belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest: Status | None = None
        self._watchers: set[asyncio.Queue[Status | None]] = set()
        self.should_stop = False

    def report(self, done: int, total: int, file: str) -> None:
        """Take progress from the thread that fetches."""
        if self.should_stop:
            raise OverloadedError("the server is shutting down; what was fetched stays.", retry_after_s=5)
        self._loop.call_soon_threadsafe(self._tell, (file, done, total))

    def end(self) -> None:
        self._tell(None)

    async def watch(self) -> AsyncIterator[Status]:
        """Yield the latest status and all that follow, until the end."""
        queue: asyncio.Queue[Status | None] = asyncio.Queue()
        if self._latest is not None:
            queue.put_nowait(self._latest)
        self._watchers.add(queue)
        try:
            while (status := await queue.get()) is not None:
                yield status
        finally:
            self._watchers.discard(queue)

    def _tell(self, status: Status | None) -> None:
        self._latest = status
        for queue in self._watchers:
            queue.put_nowait(status)


class Pulls:
    """The fetches of a server.

    A fetch goes on to its end when those who asked for it have left: what it brought would stay in any case, and who
    asks again finds it further on. It has threads of its own, lest answers wait for it.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[_Pull, Future[store.ResolvedModel]]] = {}
        self._executor = ThreadPoolExecutor(_MAX_AT_ONCE, thread_name_prefix="pulling")

    async def watch(self, name: str) -> AsyncIterator[Status]:
        """Fetch a model, or join the fetch that runs; see `llavakit.core.requests.ModelHost.pull`.

        Raises
        ------
        OverloadedError
            If others are being fetched, as many as may be.
        StoreError
            If it cannot be fetched.
        """
        pull, work = self._running.get(name) or self._begin(name)
        async for status in pull.watch():
            yield status
        work.result()

    def close(self) -> None:
        """Stop all fetches at their next report."""
        for pull, _ in self._running.values():
            pull.should_stop = True
        self._executor.shutdown(wait=False)

    def _begin(self, name: str) -> tuple[_Pull, Future[store.ResolvedModel]]:
        if len(self._running) >= _MAX_AT_ONCE:
            raise OverloadedError(
                f"{' and '.join(self._running)} are being fetched, as many models as are at a time. Try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        pull = _Pull()
        work = self._executor.submit(store.pull, name, on_progress=pull.report)
        self._running[name] = pull, work
        asyncio.wrap_future(work).add_done_callback(lambda ended: self._end(name, ended))
        return self._running[name]

    def _end(self, name: str, ended: asyncio.Future[store.ResolvedModel]) -> None:
        ended.exception()  # those who watch raise it; where nobody does it is no unhandled error
        pull, _ = self._running.pop(name)
        pull.end()
