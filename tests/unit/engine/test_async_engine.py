"""What is taken on beside running answers is bounded, and what has ended counts no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from llavakit.core.errors import CapacityError, LlavakitError, OverloadedError
from llavakit.core.requests import EngineStats
from llavakit.core.types import FinishReason, SamplingParams, TokenEvent
from llavakit.engine.async_engine import AsyncEngine, EngineAnswer
from llavakit.engine.paged_engine import EngineEvent, PagedEngine


@dataclass(frozen=True)
class _Prompt:
    pixel_values: np.ndarray | None
    token_ids: tuple[int, ...] = (1, 2)


class _Engine:
    """Answers when it is told to."""

    has_chores = False

    def __init__(self) -> None:
        self.open: list[int] = []
        self.may_end = threading.Event()
        self._num_added = 0

    @property
    def has_work(self) -> bool:
        return bool(self.open)

    def add(self, _prompt: _Prompt, _params: SamplingParams, **_options: Any) -> int:
        self.open.append(self._num_added)
        self._num_added += 1
        return self.open[-1]

    def cancel(self, request_id: int) -> list[EngineEvent]:
        return self._end(request_id) if request_id in self.open else []

    def step(self) -> list[EngineEvent]:
        return [event for request_id in list(self.open) for event in self._end(request_id)] if self._may_end() else []

    def stats(self) -> EngineStats:
        return EngineStats()

    def _may_end(self) -> bool:
        return self.may_end.wait(0.001)

    def _end(self, request_id: int) -> list[EngineEvent]:
        self.open.remove(request_id)
        event = TokenEvent(request_idx=0, text="", token_id=None, logprob=None, finish_reason=FinishReason.STOP)
        return [EngineEvent(request_id=request_id, event=event, result=cast(Any, object()))]


_PICTURE = np.zeros((1, 3, 4, 4), dtype=np.float32)  # 192 bytes


def test_pictures_of_open_requests_are_bounded() -> None:
    asyncio.run(_ask_with_pictures())


async def _ask_with_pictures() -> None:
    fake = _Engine()
    engine = AsyncEngine(cast(PagedEngine, fake), max_open=100, max_pixel_bytes=400)

    async def ask(pixels: np.ndarray | None) -> Any:
        return await engine.submit(cast(Any, _Prompt(pixels)), SamplingParams())

    first, second = await ask(_PICTURE), await ask(_PICTURE)
    assert engine.stats().num_pixel_bytes == 2 * _PICTURE.nbytes
    with pytest.raises(OverloadedError, match="take 384 bytes, and with this one 576, where 400"):
        await ask(_PICTURE)
    text = await ask(None)  # brings none
    first.cancel()
    assert [event.finish_reason async for event in first] == [FinishReason.STOP]
    third = await ask(_PICTURE)
    fake.may_end.set()
    for answer in (second, text, third):
        assert [event.finish_reason async for event in answer] == [FinishReason.STOP]
    assert engine.stats().num_pixel_bytes == engine.num_open == 0
    alone = await ask(np.zeros((5, 3, 4, 4), dtype=np.float32))  # more than the bound, but nobody else is there
    assert [event.finish_reason async for event in alone] == [FinishReason.STOP]
    engine.close(grace_s=1.0)


class _BrokenEngine(_Engine):
    """Every step fails, and so does whatever ends a request, though the request is forgotten."""

    has_chores = True

    def step(self) -> list[EngineEvent]:
        raise RuntimeError("a step")

    def fail_all(self, _error: LlavakitError) -> list[EngineEvent]:
        self.open.clear()
        raise RuntimeError("an end")

    def cancel(self, request_id: int) -> list[EngineEvent]:
        self.open.remove(request_id)
        raise RuntimeError("a cancellation")

    def do_chore(self) -> None:
        self.has_chores = False
        raise RuntimeError("a chore")


def test_whatever_fails_the_thread_goes_on_and_every_client_gets_one_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavakit.engine.async_engine._CHORE_DELAY_S", 0.0)
    asyncio.run(asyncio.wait_for(_ask_a_broken_engine(), timeout=60))


async def _ask_a_broken_engine() -> None:
    fake = _BrokenEngine()
    engine = AsyncEngine(cast(PagedEngine, fake), max_open=100, max_pixel_bytes=400)
    for cancels in (False, True, False):
        answers = [await engine.submit(cast(Any, _Prompt(None)), SamplingParams()) for _ in range(2)]
        for answer in answers:
            if cancels:
                answer.cancel()
            with pytest.raises(CapacityError, match="nothing was lost but this answer"):
                [event async for event in answer]
        assert engine.num_open == 0
    await asyncio.to_thread(engine.close, grace_s=1.0)


class _Answering(_Engine):
    """Gives one token a step."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._left = num_steps

    def step(self) -> list[EngineEvent]:
        self._left -= 1
        return [event for request_id in list(self.open) for event in self._end(request_id)] if self._left == 0 else []


class _Talking(_Engine):
    """Gives the first request a word for every step, and the second one its last two, when both are there."""

    def step(self) -> list[EngineEvent]:
        if len(self.open) < 2:
            return []
        first, second = self.open
        word = TokenEvent(request_idx=0, text="a", token_id=5, logprob=None, finish_reason=None)
        words = [EngineEvent(request_id=asked, event=word, result=None) for asked in (first, second)]
        return [*words, *self._end(second)]


def test_who_has_the_last_word_is_told_first_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        EngineAnswer, "receive", lambda _answer, event: told.append((event.request_id, event.result is not None))
    )

    async def run() -> None:
        engine = AsyncEngine(cast(PagedEngine, _Talking()), max_open=9, max_pixel_bytes=1000)
        first = await engine.submit(cast(Any, _Prompt(None)), SamplingParams())
        await engine.submit(cast(Any, _Prompt(None)), SamplingParams())
        while len(told) < 3:
            await asyncio.sleep(0)
        assert told[:3] == [(1, False), (1, True), (0, False)]
        first.cancel()
        await asyncio.to_thread(engine.close, grace_s=5)

    asyncio.run(asyncio.wait_for(run(), 60))


def _pieces(done: list[int], num_pieces: int) -> Generator[None, None, str]:
    try:
        for idx in range(num_pieces):
            done.append(idx)
            yield
    finally:
        done.append(-1)
    return "whole"


def test_an_answer_does_not_wait_for_a_job_beside_it() -> None:
    async def run() -> None:
        engine = AsyncEngine(cast(PagedEngine, _Answering(50)), max_open=9, max_pixel_bytes=1000)
        has_begun, may_end = threading.Event(), threading.Event()

        def pieces() -> Generator[None, None, str]:
            while not may_end.is_set():
                has_begun.set()
                yield
            return "whole"

        job = asyncio.create_task(engine.do_beside(pieces(), pixel_bytes=0))
        while not has_begun.is_set():
            await asyncio.sleep(0)
        answer = await engine.submit(cast(Any, _Prompt(None)), SamplingParams())
        assert [event.finish_reason async for event in answer] == [FinishReason.STOP]
        may_end.set()
        assert await job == "whole"
        engine.close(grace_s=5)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_jobs_are_counted_and_end_with_whoever_asked_or_with_the_engine() -> None:
    async def run() -> None:
        fake = _Engine()
        engine = AsyncEngine(cast(PagedEngine, fake), max_open=2, max_pixel_bytes=400)
        running: list[int] = []
        first = asyncio.create_task(engine.do_beside(_pieces(running, 10**9), pixel_bytes=_PICTURE.nbytes))
        second = asyncio.create_task(engine.do_beside(_pieces([], 10**9), pixel_bytes=_PICTURE.nbytes))
        while not running:
            await asyncio.sleep(0)
        assert engine.num_open == 2
        assert engine.stats().num_pixel_bytes == 2 * _PICTURE.nbytes
        with pytest.raises(OverloadedError, match="2 requests are running or waiting"):
            await engine.do_beside(_pieces([], 1), pixel_bytes=0)
        first.cancel()
        while running[-1] != -1:
            await asyncio.sleep(0)
        assert engine.num_open == 1
        await asyncio.to_thread(engine.close, grace_s=0.0)
        with pytest.raises(OverloadedError, match="unloaded"):
            await second
        assert (engine.num_open, engine.stats().num_pixel_bytes) == (0, 0)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_job_that_fails_says_why_and_the_next_one_is_done() -> None:
    def failing() -> Generator[None, None, str]:
        yield
        raise CapacityError("no room")

    async def run() -> None:
        engine = AsyncEngine(cast(PagedEngine, _Engine()), max_open=9, max_pixel_bytes=1000)
        failed, other = (engine.do_beside(pieces, pixel_bytes=0) for pieces in (failing(), _pieces([], 3)))
        outcomes = await asyncio.gather(failed, other, return_exceptions=True)
        assert isinstance(outcomes[0], CapacityError)
        assert outcomes[1] == "whole"
        engine.close(grace_s=5)

    asyncio.run(asyncio.wait_for(run(), 60))
