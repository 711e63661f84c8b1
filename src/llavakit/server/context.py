"""What every route needs: the models, the settings, the numbers, and a request's body within its bounds."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from llavakit.core.errors import LlavakitError, PromptError, RefusedError, UnsupportedFieldError
from llavakit.core.requests import EngineClient, ModelHost
from llavakit.server.answering import Job
from llavakit.server.bodies import Bodies, HeldBody
from llavakit.server.failures import body_of, headers_of, status_of
from llavakit.server.metrics import Metrics
from llavakit.server.requests import Limits
from llavakit.server.security import parse_json
from llavakit.server.settings import ServerSettings

__all__ = ["Context", "failure_response", "new_id", "read", "streaming"]

_Body = TypeVar("_Body", bound=BaseModel)
_FIELD = re.compile(r"[a-z][a-z0-9_]*")
_KINDS = {"bool", "float", "int", "str"}
_SMALL_BYTES = 1 << 20
_MAX_PAUSE_S = 30.0  # of a body that arrives
_MIN_BYTES_PER_S = 4096.0  # of a body, after that time
_LOOK_EVERY_S = 0.1  # whether a client is still there


@dataclass(eq=False)
class Context:
    """The parts of a running server."""

    host: ModelHost
    settings: ServerSettings
    metrics: Metrics
    bodies: Bodies
    is_loaded: bool = False  # the model of the start; unloading it when nobody asks is no reason to send people away
    is_draining: bool = False

    def limits(self, request: Request) -> Limits:
        """Say what this request may bring."""
        return Limits(
            max_images=self.settings.max_images, allow_urls=self.settings.allow_urls,
            tenant=getattr(request.state, "tenant", ""),
        )  # fmt: skip

    async def open(self, name: str | None, *, keep_alive_s: float | None = None) -> tuple[EngineClient, float, float]:
        """Return the engine of a model, the seconds its loading took, and when this request began."""
        started_s = time.perf_counter()
        engine, load_s = await self.host.open(name, keep_alive_s=keep_alive_s)
        return engine, load_s, started_s


async def read(request: Request, kind: type[_Body], context: Context) -> _Body:
    """Read, bound, parse and check a request's body.

    Raises
    ------
    RefusedError
        If it is too large.
    OverloadedError
        If all bodies together are.
    PromptError, UnsupportedFieldError
        If it is no JSON, lacks something, or has a field or value that is not done here.
    """
    body = await _read_bytes(request, context.settings.max_body_mib << 20, request.state.body)
    if len(body) < _SMALL_BYTES:
        return _parse(body, kind)
    return await asyncio.to_thread(_parse, body, kind)


def _parse(body: bytes, kind: type[_Body]) -> _Body:
    try:
        return kind.model_validate(parse_json(body))
    except ValidationError as error:
        raise _explain(error) from error


async def _read_bytes(request: Request, limit: int, held: HeldBody) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError("compressed bodies are not taken; send it as it is.", status=415, code="request")
    body = bytearray()
    chunks = request.stream()
    started_s = time.perf_counter()
    try:
        while True:
            async with asyncio.timeout(_MAX_PAUSE_S):
                chunk = await anext(chunks, None)
            if chunk is None:
                return bytes(body)
            late_s = time.perf_counter() - started_s - _MAX_PAUSE_S
            if late_s > 0 and len(body) < _MIN_BYTES_PER_S * late_s:
                raise RefusedError(
                    f"the body comes at less than {_MIN_BYTES_PER_S:g} bytes a second. Send a smaller one.",
                    status=408, code="request",
                )  # fmt: skip
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            held.add(len(chunk))
            body += chunk
    except TimeoutError as error:
        raise RefusedError(
            f"nothing of the body came for {_MAX_PAUSE_S:g} s. Send it again.", status=408, code="request"
        ) from error
    except ClientDisconnect as error:
        raise RefusedError("the client went away.", status=499, code="request") from error


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        f"the body is larger than {limit} bytes, the limit here. Send smaller pictures.", status=413, code="request"
    )


def _explain(error: ValidationError) -> LlavakitError:
    """Say what is wrong with the first bad field, without repeating its content."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a field that may be this or that each has its errors; the one that came furthest is what was meant.
    first = max(found, key=lambda e: (e["type"] == "extra_forbidden", len(_path(e))))
    where = ".".join(_path(first))[:200] or "the body"
    explained: LlavakitError
    if first["type"] == "extra_forbidden":
        explained = UnsupportedFieldError(f"the field {where!r} is not done here. Leave it out.")
    else:
        explained = PromptError(f"the field {where!r} cannot be used: {first['msg'][:300]}.")
    explained.param = where if first["loc"] else None
    return explained


def _path(error: ErrorDetails) -> list[str]:
    """Return the names and numbers that lead to a field, without pydantic's own names of what it may be."""
    location, last = error["loc"], len(error["loc"]) - 1
    return [
        str(part)
        for idx, part in enumerate(location)
        if isinstance(part, int)
        or (idx == last and error["type"] == "extra_forbidden")  # any name that a client has thought of
        or (_FIELD.fullmatch(part) and part not in _KINDS)
    ]


def failure_response(error: LlavakitError, *, is_ollama: bool) -> JSONResponse:
    """Return the answer to a request that is refused or failed."""
    return JSONResponse(body_of(error, is_ollama=is_ollama), status_code=status_of(error), headers=headers_of(error))


class _Stream(StreamingResponse):
    """Cancels what is left of its answers at its end: an iterator that was never begun cannot."""

    job: Job | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.job is not None:
                self.job.cancel()


def streaming(chunks: AsyncIterator[bytes], *, is_ollama: bool, job: Job | None = None) -> StreamingResponse:
    """Send pieces as they come; where the client goes away, the answers are cancelled."""
    media_type = "application/x-ndjson" if is_ollama else "text/event-stream"
    response = _Stream(chunks, media_type=media_type, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.job = job
    return response


def new_id(prefix: str) -> str:
    """Return an id that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex[:24]}"


async def until_gone(request: Request, work: Any) -> Any:
    """Await work, and cancel it when the client goes away first."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
            # What has ended meanwhile is given on: its answers are cancelled where they would be sent.
            if await request.is_disconnected() and not task.done():
                raise RefusedError("the client went away.", status=499, code="request")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
