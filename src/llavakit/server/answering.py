"""Running answers for a dialect: all of them at once, or piece by piece; whoever goes away cancels theirs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llavakit.core.errors import ImageSourceError, LlavakitError, OverloadedError
from llavakit.core.requests import Answer, EngineClient, GenerateRequest
from llavakit.core.types import FinishReason, GenerationResult, TokenEvent
from llavakit.server.log_lines import log_fields
from llavakit.server.metrics import Metrics

__all__ = ["Job", "gather", "start", "stream"]


_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """Answers that were accepted, in the order of their choices."""

    engine: EngineClient
    answers: list[Answer]
    load_s: float
    started_s: float
    metrics: Metrics
    request_id: str = ""
    open: list[Answer] = field(default_factory=list)  # those that have not ended

    def cancel(self) -> None:
        """End what has not ended."""
        while self.open:
            self.open.pop().cancel()

    def close(self, answer: Answer) -> None:
        """Note that an answer has ended."""
        self.open = [other for other in self.open if other is not answer]

    @property
    def results(self) -> list[GenerationResult]:
        """All results, after the end."""
        return [answer.result for answer in self.answers]


async def start(
    engine: EngineClient, requests: Sequence[GenerateRequest], *, load_s: float, started_s: float, metrics: Metrics,
    request_id: str = "",
) -> Job:  # fmt: skip
    """Submit the requests of one HTTP request; all are accepted, or none."""
    answers: list[Answer] = []
    try:
        for request in requests:
            answers.append(await engine.submit(request))  # noqa: PERF401 - one after the other, and undone together
    except ImageSourceError as error:
        for answer in answers:
            answer.cancel()
        # Which addresses exist inside the server's network, and what answers there, is nobody's business.
        raise ImageSourceError(
            "a picture's address may not be fetched here, or cannot be. Send the picture itself."
        ) from error
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return Job(engine, answers, load_s, started_s, metrics, request_id, list(answers))


async def stream(job: Job) -> AsyncIterator[tuple[int, TokenEvent]]:
    """Yield events of all answers with the index of their choice, as they come."""
    if len(job.answers) == 1:
        async with aclosing(_watched(job, job.answers[0])) as events:  # type: ignore[type-var]
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, TokenEvent | BaseException | None]] = asyncio.Queue()

    async def forward(idx: int, answer: Answer) -> None:
        try:
            async for event in _watched(job, answer):
                queue.put_nowait((idx, event))
        except Exception as error:  # raised again where the events are read
            queue.put_nowait((idx, error))
        else:
            queue.put_nowait((idx, None))

    tasks = [asyncio.create_task(forward(idx, answer)) for idx, answer in enumerate(job.answers)]
    try:
        num_open = len(tasks)
        while num_open:
            idx, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield idx, item
    finally:
        for task in tasks:
            task.cancel()
        job.cancel()


async def gather(job: Job) -> list[GenerationResult]:
    """Wait for all answers."""
    async with aclosing(stream(job)) as events:  # type: ignore[type-var]
        async for _ in events:
            pass
    return job.results


async def _watched(job: Job, answer: Answer) -> AsyncIterator[TokenEvent]:
    """Yield an answer's events and take their times."""
    last_s = 0.0
    is_done = False
    try:
        async for event in answer:
            now_s = time.perf_counter()
            if last_s:
                job.metrics.observe("inter_token_latency_seconds", now_s - last_s)
            else:
                job.metrics.observe("time_to_first_token_seconds", now_s - job.started_s)
            last_s = now_s
            is_done = event.finish_reason is not None
            if event.finish_reason is FinishReason.CANCELLED:
                raise OverloadedError("the server is stopping and has ended the answer; ask again.", retry_after_s=5)
            if is_done:
                job.metrics.observe("e2e_request_latency_seconds", now_s - job.started_s)
                job.metrics.observe("request_queue_time_seconds", max(0.0, answer.result.timings.queue_s))
                log_fields(_LOG, {"request": job.request_id, "answer": _describe(answer.result)})
            yield event
    except LlavakitError:
        raise
    except Exception as error:
        _LOG.exception("request %s failed in its answer", job.request_id)
        raise LlavakitError("the answer failed inside the server.") from error
    finally:
        job.close(answer)
        if not is_done:
            answer.cancel()


def _describe(result: GenerationResult) -> dict[str, Any]:
    """Return timings for the log: no contents."""
    timings = result.timings
    return {
        "prompt_tokens": timings.num_prompt_tokens, "cached_tokens": timings.num_cached_tokens,
        "completion_tokens": len(result.token_ids), "images": timings.num_images,
        "images_encoded": timings.num_images_encoded, "queue_s": round(timings.queue_s, 4),
        "prefill_s": round(timings.prefill_s + timings.image_encode_s, 4), "decode_s": round(timings.decode_s, 4),
        "finish": result.finish_reason.value,
    }  # fmt: skip
