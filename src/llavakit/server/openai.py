"""OpenAI's dialect: chat completions, completions, responses, models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from llavakit.core.errors import LlavakitError, UnloadedError
from llavakit.core.requests import GenerateRequest, ModelInfo
from llavakit.core.types import GenerationResult
from llavakit.server import schemas
from llavakit.server.answering import Job, gather, start, stream
from llavakit.server.context import Context, new_id, read, streaming, until_gone
from llavakit.server.failures import body_of
from llavakit.server.framing import (
    DONE,
    TextFrame,
    chat_chunk,
    chat_logprobs,
    event_logprobs,
    finish_name,
    sse,
    usage_of,
)
from llavakit.server.requests import from_chat, from_completion, from_responses

__all__ = ["begin", "body_schema", "make_router"]

_MAX_ATTEMPTS = 5  # to ask a model that others let go of


def make_router(context: Context) -> APIRouter:
    """Return the routes under ``/v1``."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/chat/completions", openapi_extra=body_schema(schemas.ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        body = await read(request, schemas.ChatRequest, context)
        job = await begin(context, request, body.model, from_chat(body, context.limits(request)))
        if body.stream:
            return streaming(_stream_chat(job, with_usage=_wants_usage(body)), is_ollama=False, job=job)
        engine, results = job.engine, await until_gone(request, gather(job))
        choices = [
            {
                "index": idx, "finish_reason": finish_name(result.finish_reason),
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": chat_logprobs(list(result.logprobs), engine) if result.logprobs is not None else None,
            }
            for idx, result in enumerate(results)
        ]  # fmt: skip
        return JSONResponse(
            {"id": new_id("chatcmpl"), "object": "chat.completion", "created": int(time.time()), "model": engine.name,
             "choices": choices, "usage": usage_of(results), "llavakit": timings_of(results[0])}
        )  # fmt: skip

    @router.post("/completions", openapi_extra=body_schema(schemas.CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue a text as it stands."""
        body = await read(request, schemas.CompletionRequest, context)
        job = await begin(context, request, body.model, from_completion(body, context.limits(request)))
        num_prompts = 1 if isinstance(body.prompt, str) else len(body.prompt)
        if body.stream:
            chunks = _stream_completion(job, with_usage=_wants_usage(body), num_prompts=num_prompts)
            return streaming(chunks, is_ollama=False, job=job)
        results = await until_gone(request, gather(job))
        choices = [
            {"index": idx, "text": r.text, "finish_reason": finish_name(r.finish_reason), "logprobs": None}
            for idx, r in enumerate(results)
        ]
        return JSONResponse({"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()),
                             "model": job.engine.name, "choices": choices,
                             "usage": usage_of(results, num_prompts=num_prompts)})  # fmt: skip

    @router.post("/responses", openapi_extra=body_schema(schemas.ResponsesRequest))
    async def responses(request: Request) -> Response:
        """Answer an input of texts and pictures."""
        body = await read(request, schemas.ResponsesRequest, context)
        job = await begin(context, request, body.model, [from_responses(body, context.limits(request))])
        frame = _ResponseFrame(job.engine.name, body)
        if body.stream:
            return streaming(_stream_response(job, frame), is_ollama=False, job=job)
        (result,) = await until_gone(request, gather(job))
        return JSONResponse(frame.response(result))

    @router.get("/models")
    @router.head("/models", include_in_schema=False)
    def models() -> dict[str, Any]:
        """List the models of this machine."""
        return {"object": "list", "data": [_model(info) for info in context.host.list_models()]}

    @router.get("/models/{name:path}")
    @router.head("/models/{name:path}", include_in_schema=False)
    def model(name: str) -> dict[str, Any]:
        """Describe one model."""
        return _model(context.host.describe(name))

    return router


async def begin(
    context: Context, request: Request, model: str | None, asked: list[GenerateRequest], *, keep_s: float | None = None
) -> Job:
    """Open the model and submit the requests, unless the client goes away before.

    Where somebody else lets go of the model meanwhile, it is loaded again.
    """
    for attempt in range(_MAX_ATTEMPTS):
        engine, load_s, started_s = await context.open(model, keep_alive_s=keep_s)
        starting = start(
            engine, asked, load_s=load_s, started_s=started_s, metrics=context.metrics,
            request_id=request.state.request_id,
        )  # fmt: skip
        try:
            job: Job = await until_gone(request, starting)
        except UnloadedError:
            if attempt == _MAX_ATTEMPTS - 1:
                raise
        else:
            return job
    raise AssertionError("the last attempt returns or raises")


def _wants_usage(body: schemas.ChatRequest | schemas.CompletionRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that the route reads itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(kind)}}}}


def _inline(kind: type[BaseModel]) -> dict[str, Any]:
    """Return a schema with its parts written where they are used."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(parts[value["$ref"].rsplit("/", 1)[1]])
            return {key: resolve(item) for key, item in value.items()}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def timings_of(result: GenerationResult) -> dict[str, Any]:
    """Where the time of an answer went, for those who want to know."""
    timings = result.timings
    return {
        "queue_s": timings.queue_s, "image_encode_s": timings.image_encode_s, "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s, "tokens_per_s": timings.decode_tokens_per_s,
        "cached_tokens": timings.num_cached_tokens, "images_encoded": timings.num_images_encoded,
    }  # fmt: skip


def _model(info: ModelInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": int(info.modified_at_s), "owned_by": "llavakit"}


async def _stream_chat(job: Job, *, with_usage: bool) -> AsyncIterator[bytes]:
    answer_id, model, created_s = new_id("chatcmpl"), job.engine.name, int(time.time())

    def chunk(idx: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        return sse(chat_chunk(answer_id, model, created_s, idx=idx, delta=delta, finish=finish, logprobs=logprobs))

    def frame(idx: int) -> TextFrame:
        return TextFrame(lambda text: chunk(idx, {"content": text}))

    frames = [frame(idx) for idx in range(len(job.answers))]
    # Sending a piece costs more than what is in it: the roles go with the first text, the last text with the end.
    ready = b"".join(chunk(idx, {"role": "assistant", "content": ""}) for idx in range(len(job.answers)))
    num_open = len(job.answers)
    try:
        async with aclosing(stream(job)) as events:  # type: ignore[type-var]
            async for idx, event in events:
                if entries := event_logprobs(event):
                    ready += chunk(idx, {"content": event.text}, logprobs=chat_logprobs(entries, job.engine))
                elif event.text:
                    ready += frames[idx].fill(event.text)
                if event.finish_reason is not None:
                    ready += chunk(idx, {}, finish_name(event.finish_reason))
                    num_open -= 1
                if ready and num_open:
                    yield ready
                    ready = b""
        if with_usage:
            usage = {"usage": usage_of(job.results), "llavakit": timings_of(job.results[0])}
            head = chat_chunk(answer_id, model, created_s, idx=0, delta={}, finish=None)
            ready += sse({**head, "choices": [], **usage})
    except LlavakitError as error:
        yield ready + sse(body_of(error, is_ollama=False))
        return
    yield ready + DONE


async def _stream_completion(job: Job, *, with_usage: bool, num_prompts: int) -> AsyncIterator[bytes]:
    head = {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": job.engine.name}
    try:
        async with aclosing(stream(job)) as events:  # type: ignore[type-var]
            async for idx, event in events:
                finish = finish_name(event.finish_reason)
                choice = {"index": idx, "text": event.text, "finish_reason": finish, "logprobs": None}
                yield sse({**head, "choices": [choice]})
        if with_usage:
            yield sse({**head, "choices": [], "usage": usage_of(job.results, num_prompts=num_prompts)})
    except LlavakitError as error:
        yield sse(body_of(error, is_ollama=False))
        return
    yield DONE


class _ResponseFrame:
    """The objects of ``/v1/responses``, which name each other."""

    def __init__(self, model: str, body: schemas.ResponsesRequest) -> None:
        self.response_id = new_id("resp").replace("-", "_")
        self.message_id = new_id("msg").replace("-", "_")
        self._created_s = int(time.time())
        self._model = model
        self._body = body

    def response(self, result: GenerationResult | None) -> dict[str, Any]:
        """Return the response; without a result one that has begun."""
        body, status = self._body, self.status(result)
        text = body.text or schemas.TextSettings()
        return {
            "id": self.response_id, "object": "response", "created_at": self._created_s, "model": self._model,
            "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "metadata": {},
            "parallel_tool_calls": False, "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": body.truncation,
            "text": {"format": {"type": "text"} if text.format is None else text.format.model_dump(
                by_alias=True, exclude_unset=True)},
            "tool_choice": "none", "tools": [], "background": False, "previous_response_id": None, "store": False,
            "output": [] if result is None else [self.message(result.text, status)],
            "usage": None if result is None else self._usage(result),
        }  # fmt: skip

    @staticmethod
    def status(result: GenerationResult | None) -> str:
        """Say how far the answer is."""
        if result is None:
            return "in_progress"
        return "incomplete" if finish_name(result.finish_reason) == "length" else "completed"

    def message(self, text: str | None, status: str) -> dict[str, Any]:
        """Return the one message of the output."""
        content = [] if text is None else [self.part(text)]
        return {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """Its one part."""
        return {"type": "output_text", "text": text, "annotations": []}

    @staticmethod
    def _usage(result: GenerationResult) -> dict[str, Any]:
        usage = usage_of([result])
        return {
            "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip


async def _stream_response(job: Job, frame: _ResponseFrame) -> AsyncIterator[bytes]:
    number = 0
    place = {"item_id": frame.message_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **content: Any) -> bytes:
        nonlocal number
        number += 1
        return sse({"type": kind, "sequence_number": number - 1, **content}, event=kind)

    try:
        yield event("response.created", response=frame.response(None))
        yield event("response.in_progress", response=frame.response(None))
        yield event("response.output_item.added", output_index=0, item=frame.message(None, "in_progress"))
        yield event("response.content_part.added", part=frame.part(""), **place)
        async with aclosing(stream(job)) as events:  # type: ignore[type-var]
            async for _, piece in events:
                if piece.text:
                    yield event("response.output_text.delta", delta=piece.text, logprobs=[], **place)
        (result,) = job.results
        yield event("response.output_text.done", text=result.text, logprobs=[], **place)
        yield event("response.content_part.done", part=frame.part(result.text), **place)
        item = frame.message(result.text, frame.status(result))
        yield event("response.output_item.done", output_index=0, item=item)
        response = frame.response(result)
        yield event(f"response.{response['status']}", response=response)
    except LlavakitError as error:
        failure = body_of(error, is_ollama=False)["error"]
        yield event("error", message=failure["message"], code=failure["code"], param=None)
