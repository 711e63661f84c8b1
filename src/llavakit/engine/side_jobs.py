"""Work that nobody's next token may wait for: done a piece at a time, between two steps of the engine.

In: generators whose pieces are short. Out: what they return, in a future. They are done one after another, and while
requests are running the pieces take no more than half of the time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from llavakit.core.errors import LlavakitError

__all__ = ["SideJobs"]

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class _Job:
    pieces: Generator[None, None, Any]
    future: Future[Any]


class SideJobs:
    """The jobs of one engine; touched by its thread alone."""

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._next_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a job is left."""
        return bool(self._jobs)

    def add(self, pieces: Generator[None, None, _T], future: Future[_T]) -> None:
        """Take on a job; whoever cancels its future ends it before the next piece."""
        self._jobs.append(_Job(pieces, future))

    def advance(self, *, is_alone: bool) -> None:
        """Do one piece of the first job, if it is time for one: at once where nothing else is to be done."""
        self._drop_unwanted()
        if not self._jobs or (not is_alone and time.monotonic() < self._next_s):
            return
        job = self._jobs[0]
        started = time.monotonic()
        try:
            next(job.pieces)
        except StopIteration as end:
            self._jobs.popleft()
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(end.value)
        except Exception as error:  # raised again where the result is awaited
            self._jobs.popleft()
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        now = time.monotonic()
        self._next_s = now + (now - started)

    def fail_all(self, error: LlavakitError) -> None:
        """End every job with an error."""
        while self._jobs:
            job = self._jobs.popleft()
            job.pieces.close()
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _drop_unwanted(self) -> None:
        for job in [job for job in self._jobs if job.future.cancelled()]:
            self._jobs.remove(job)
            job.pieces.close()
