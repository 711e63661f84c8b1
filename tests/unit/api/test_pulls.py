"""Fetching models for a server: shared, bounded, and beside everything else."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable

import pytest

from llavakit.api.host import Host, make_host
from llavakit.core.errors import DownloadError, OverloadedError
from llavakit.weights import store


class _Hub:
    """Stands in for the Hub: reports once, waits until it is told to go on, and reports again."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.fetched: list[str] = []
        self.error: Exception | None = None
        self.num_stopped = 0

    def pull(self, name: str, *, on_progress: store.OnProgress) -> None:
        self.fetched.append(name)
        on_progress(1, 2, "file")
        assert self.may_end.wait(30)
        try:
            on_progress(2, 2, "file")
        except OverloadedError:
            self.num_stopped += 1
            raise
        if self.error is not None:
            raise self.error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> _Hub:
    hub = _Hub()
    monkeypatch.setattr(store, "pull", hub.pull)
    return hub


def _run(hub: _Hub, use: Callable[[Host], Awaitable[None]]) -> None:
    async def run() -> None:
        unhandled: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        host = make_host("llava:tiny")
        try:
            await use(host)
        finally:
            hub.may_end.set()
            await host.close(grace_s=1)
        assert not unhandled

    asyncio.run(run())


async def _leave_early(host: Host, name: str) -> None:
    statuses = host.pull(name)
    assert await anext(statuses) == ("file", 1, 2)
    await statuses.aclose()  # type: ignore[attr-defined]


async def _all(host: Host, name: str) -> list[tuple[str, int, int]]:
    return [status async for status in host.pull(name)]


def test_who_asks_for_a_model_that_is_being_fetched_joins(hub: _Hub) -> None:
    async def use(host: Host) -> None:
        await _leave_early(host, "llava:7b")
        watching = [asyncio.create_task(_all(host, name)) for name in ("llava:7b", store.ALIASES["llava:7b"])]
        await asyncio.sleep(0.05)
        hub.may_end.set()
        assert await asyncio.gather(*watching) == [[("file", 1, 2), ("file", 2, 2)]] * 2
        assert hub.fetched == ["llava:7b"]
        await _all(host, "llava:7b")
        assert len(hub.fetched) == 2

    _run(hub, use)


def test_fetches_are_bounded_and_keep_no_thread_that_others_need(hub: _Hub) -> None:
    async def use(host: Host) -> None:
        num_threads = min(32, (os.cpu_count() or 1) + 4)  # of the event loop's pool
        refused = 0
        for idx in range(num_threads):
            try:
                await _leave_early(host, f"owner/model-{idx}")
            except OverloadedError as error:
                assert "owner/model-0" in str(error)
                refused += 1
        assert len(hub.fetched) == num_threads - refused == 2
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
        hub.may_end.set()
        await _all(host, "owner/model-0")
        await _all(host, "owner/model-1")
        await _all(host, "owner/another")

    _run(hub, use)


def test_a_failure_is_told_to_all_who_watch_and_to_nobody_else(hub: _Hub) -> None:
    async def use(host: Host) -> None:
        hub.error = DownloadError("the network is gone.")
        watching = [asyncio.create_task(_all(host, "owner/model")) for _ in range(2)]
        await _leave_early(host, "owner/other")
        hub.may_end.set()
        found = await asyncio.gather(*watching, return_exceptions=True)
        assert found == [hub.error] * 2
        hub.error = None
        assert await _all(host, "owner/model")

    _run(hub, use)


def test_a_server_that_stops_stops_its_fetches(hub: _Hub) -> None:
    async def use(host: Host) -> None:
        watching = asyncio.create_task(_all(host, "owner/model"))
        await asyncio.sleep(0.05)
        await host.close(grace_s=1)
        hub.may_end.set()
        with pytest.raises(OverloadedError, match="shutting down"):
            await watching
        assert hub.num_stopped == 1

    _run(hub, use)
