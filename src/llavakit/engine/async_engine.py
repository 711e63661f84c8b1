"""The engine's own thread, and how coroutines talk to it.

Everything that touches the engine runs on one thread, between two steps: requests come in as calls through a queue,
events go out to the event loop they were asked from. Whoever goes away before the end takes nothing with them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from llavakit.core.errors import LlavakitError, OverloadedError, UnloadedError
from llavakit.core.requests import EngineStats
from llavakit.core.types import GenerationResult, SamplingParams, TokenEvent
from llavakit.engine.generation import EnginePrompt
from llavakit.engine.paged_engine import EngineEvent, PagedEngine, explain_failure
from llavakit.engine.sampler import TokenMask
from llavakit.engine.side_jobs import SideJobs

__all__ = ["AsyncEngine", "EngineAnswer"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
# Before the first chore, since a second question often follows at once, and between two of them.
_CHORE_DELAY_S, _CHORE_PAUSE_S = 1.0, 0.02
# At the end.
_MAX_CHORES_S = 5.0


class EngineAnswer:
    """An accepted request; `llavakit.core.requests.Answer`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: deque[EngineEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._result: GenerationResult | None = None
        self._is_ended = False
        self.request_id: int | None = None
        self.pixel_bytes = 0  # of its pictures, which wait for the vision tower

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield the events. Who stops listening before the end cancels the answer."""
        try:
            while not self._is_ended:
                while not self._events:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                event = self._events.popleft()
                self._take(event)
                if event.error is not None:
                    raise event.error
                if event.event is not None:
                    yield event.event
        finally:
            if not self._is_ended:
                self.cancel()

    @property
    def result(self) -> GenerationResult:
        """The whole answer; after the last event."""
        if self._result is None:
            raise RuntimeError("the answer is not finished yet")
        return self._result

    def cancel(self) -> None:
        """End the answer; its last event says that it was cancelled."""
        if self.request_id is not None and not self._is_ended:
            self._engine.cancel(self.request_id)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it was asked from."""
        return self._loop

    def receive(self, event: EngineEvent) -> None:
        """Take an event, on the event loop."""
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, event: EngineEvent) -> None:
        if event.result is not None:
            self._result = event.result
        self._is_ended = event.result is not None or event.error is not None


class AsyncEngine:
    """Runs a `PagedEngine` on a thread of its own.

    Parameters
    ----------
    engine : PagedEngine
        Nobody else may touch it from now on.
    max_open : int
        Accepted requests and side jobs that have not ended; one more is refused.
    max_pixel_bytes : int
        Of their prepared pictures; one more is refused, unless it belongs to the only one.
    name : str
        Of the thread.
    """

    def __init__(self, engine: PagedEngine, *, max_open: int, max_pixel_bytes: int, name: str = "engine") -> None:
        self._engine = engine
        self._max_open = max_open
        self._max_pixel_bytes = max_pixel_bytes
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._answers: dict[int, EngineAnswer] = {}
        self._side_jobs = SideJobs()
        self._num_open = self._pixel_bytes = 0  # touched on the event loops only under the lock
        self._lock = threading.Lock()
        self._is_closing = False
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def submit(
        self,
        prompt: EnginePrompt,
        params: SamplingParams,
        *,
        tenant: str = "",
        mask: TokenMask | None = None,
        max_context_tokens: int | None = None,
    ) -> EngineAnswer:
        """Queue a prepared request; parameters and errors as of `PagedEngine.add`.

        Raises
        ------
        OverloadedError
            If too many requests are open or their pictures take too much memory, or the engine is closing.
        """
        answer = EngineAnswer(self)
        answer.pixel_bytes = prompt.pixel_values.nbytes if prompt.pixel_values is not None else 0
        self._reserve(answer.pixel_bytes)

        def add() -> int:
            request_id = self._engine.add(
                prompt, params, tenant=tenant, mask=mask, max_context_tokens=max_context_tokens
            )
            answer.request_id = request_id
            self._answers[request_id] = answer
            return request_id

        future = self.call(add)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: self._forget_unwanted(answer, done))
            raise
        except BaseException:
            self._release(answer.pixel_bytes)
            raise
        return answer

    async def do_beside(self, pieces: Generator[None, None, _T], *, pixel_bytes: int) -> _T:
        """Do a job on the engine's thread, piece by piece between its steps, and return what the generator returns.

        Raises
        ------
        OverloadedError
            If too much is open already, pictures of ``pixel_bytes`` are too many, or the engine is closing.
        """
        self._reserve(pixel_bytes)
        try:
            future: Future[_T] = Future()
            self._post(lambda: self._side_jobs.add(pieces, future))
            return await asyncio.wrap_future(future)
        finally:
            self._release(pixel_bytes)

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; unknown numbers are ignored."""
        with self._lock:
            if not self._has_ended:
                self._calls.put(lambda: self._cancel_now(request_id))

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run a function on the engine's thread, between two steps.

        Raises
        ------
        OverloadedError
            If the engine has been closed.
        """
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # raised again where the result is awaited
                future.set_exception(error)

        self._post(run)
        return future

    def _post(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._has_ended:  # nobody would ever make the call
                raise UnloadedError("the model has been unloaded; try again in a moment.", retry_after_s=2)
            self._calls.put(call)

    @property
    def num_open(self) -> int:
        """Requests and side jobs that were accepted and have not ended."""
        return self._num_open

    def stats(self) -> EngineStats:
        """Say what the engine is doing; counts may be a step old."""
        return replace(self._engine.stats(), num_pixel_bytes=self._pixel_bytes, max_pixel_bytes=self._max_pixel_bytes)

    def close(self, *, grace_s: float) -> None:
        """Refuse new requests, wait ``grace_s`` seconds for those that run, cancel the rest, and end the thread."""
        with self._lock:
            self._is_closing = True
        self._calls.put(lambda: None)
        self._thread.join(timeout=None if math.isinf(grace_s) else grace_s)
        if self._thread.is_alive():
            self._calls.put(self._cancel_all)
            self._thread.join()

    def _reserve(self, pixel_bytes: int) -> None:
        with self._lock:
            if self._is_closing:
                raise UnloadedError("the model is being unloaded; try again in a moment.", retry_after_s=2)
            if self._num_open >= self._max_open:
                raise OverloadedError(
                    f"{self._num_open} requests are running or waiting, which is as many as are taken here. "
                    "Try again later, or start the server with a longer queue.",
                    retry_after_s=max(1, self._num_open // 4),
                )
            needed = self._pixel_bytes + pixel_bytes
            if self._num_open and pixel_bytes and needed > self._max_pixel_bytes:
                raise OverloadedError(
                    f"the pictures of {self._num_open} requests take {self._pixel_bytes} bytes, and with this one "
                    f"{needed}, where {self._max_pixel_bytes} are set aside for them. Try again later.",
                    retry_after_s=max(1, self._num_open // 4),
                )
            self._num_open += 1
            self._pixel_bytes = needed

    def _release(self, pixel_bytes: int) -> None:
        with self._lock:
            self._num_open -= 1
            self._pixel_bytes -= pixel_bytes

    def _forget_unwanted(self, answer: EngineAnswer, future: Future[int]) -> None:
        """Whoever asked went away while the request was on its way in."""
        if future.cancelled() or future.exception() is not None:
            self._release(answer.pixel_bytes)
        else:
            self.cancel(future.result())

    # On the engine's thread.

    def _run(self) -> None:
        while True:
            self._make_calls()
            if not self._has_work:
                if self._end():
                    self._finish_chores()
                    return
                continue
            if self._engine.has_work:
                self._step()
            self._side_jobs.advance(is_alone=not self._engine.has_work)

    @property
    def _has_work(self) -> bool:
        return self._engine.has_work or self._side_jobs.has_work

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            events = self._fail_all(explain_failure(error))
        self._deliver(events)

    def _fail_all(self, error: LlavakitError) -> list[EngineEvent]:
        """End every request, also those that the engine has lost."""
        try:
            events = self._engine.fail_all(error)
        except Exception:
            _LOG.exception("the engine could not end its requests")
            events = []
        ended = {event.request_id for event in events if event.result is not None or event.error is not None}
        lost = [request_id for request_id in self._answers if request_id not in ended]
        return [*events, *(EngineEvent(request_id=request_id, error=error) for request_id in lost)]

    def _end(self) -> bool:
        """Whether the thread is to end; from then on no call is taken."""
        with self._lock:
            self._has_ended = self._is_closing and self._calls.empty()
            return self._has_ended

    def _make_calls(self) -> None:
        """Make the calls that wait; wait for one when there is nothing else to do."""
        if not self._has_work and not (self._is_closing and self._calls.empty()):
            self._wait_for_call()()
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call()

    def _wait_for_call(self) -> Callable[[], object]:
        """Wait for the next call, and do meanwhile what nobody waits for."""
        pause_s = _CHORE_DELAY_S
        while self._engine.has_chores:
            try:
                return self._calls.get(timeout=pause_s)
            except queue.Empty:
                self._do_chore()
                pause_s = _CHORE_PAUSE_S
        return self._calls.get()

    def _do_chore(self) -> None:
        try:
            self._engine.do_chore()
        except Exception:
            _LOG.exception("a block of a picture could not be put on the disk")

    def _finish_chores(self) -> None:
        deadline_s = time.monotonic() + _MAX_CHORES_S
        while self._engine.has_chores and time.monotonic() < deadline_s:
            self._do_chore()
            time.sleep(_CHORE_PAUSE_S / 10)

    def _deliver(self, events: list[EngineEvent]) -> None:
        """Hand events over to the loops they were asked from: each is woken once for all of a step.

        Answers that end come first: whoever has one may be about to ask the next, and its place is free.
        """
        ended = {event.request_id for event in events if event.result is not None or event.error is not None}
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[EngineAnswer, EngineEvent]]] = {}
        for event in sorted(events, key=lambda event: event.request_id not in ended):
            answer = self._answers.get(event.request_id)
            if answer is not None and (event.result is not None or event.error is not None):
                del self._answers[event.request_id]
                self._release(answer.pixel_bytes)
            if answer is not None:
                by_loop.setdefault(answer.loop, []).append((answer, event))
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, pairs)
            except RuntimeError:  # the loop has ended, and everybody on it
                _LOG.debug("%d events of a closed loop were dropped", len(pairs))

    def _cancel_all(self) -> None:
        for request_id in list(self._answers):
            self._cancel_now(request_id)
        self._side_jobs.fail_all(UnloadedError("the model has been unloaded; try again in a moment.", retry_after_s=2))

    def _cancel_now(self, request_id: int) -> None:
        try:
            events = self._engine.cancel(request_id)
        except Exception as error:
            events = [EngineEvent(request_id=request_id, error=explain_failure(error))]
        self._deliver(events)


def _hand_over(pairs: list[tuple[EngineAnswer, EngineEvent]]) -> None:
    for answer, event in pairs:
        answer.receive(event)
