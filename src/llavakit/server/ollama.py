"""Ollama's dialect: chat, generate, and the models behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from llavakit.core.errors import LlavakitError, PromptError, RefusedError
from llavakit.core.requests import GenerateRequest, ModelInfo
from llavakit.core.version import __version__
from llavakit.server import schemas
from llavakit.server.answering import Job, gather, stream
from llavakit.server.context import Context, read, streaming, until_gone
from llavakit.server.failures import body_of
from llavakit.server.framing import event_logprobs, ndjson, ollama_final, ollama_logprobs, timestamp
from llavakit.server.openai import begin, body_schema
from llavakit.server.requests import from_ollama_chat, from_ollama_generate, keep_alive_s

__all__ = ["make_router"]

_LAST_DAY = datetime(9999, 12, 31, tzinfo=UTC)
# What this server does not do, and what to do instead.
_ABSENT = {
    "create": "models are not made here; convert one with `llavakit convert` and start the server with it.",
    "push": "models are not uploaded from here.",
    "copy": "models have one name here; a copy would be another name for the same files.",
    "embed": "LLaVA-1.5 gives no embeddings; use a model that was trained for them.",
    "embeddings": "LLaVA-1.5 gives no embeddings; use a model that was trained for them.",
    "me": "there are no accounts here.",
    "signout": "there are no accounts here.",
}


def make_router(context: Context) -> APIRouter:
    """Return the routes under ``/api``."""
    router = APIRouter(prefix="/api", tags=["Ollama"])

    @router.post("/chat", openapi_extra=body_schema(schemas.OllamaChat))
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        body = await read(request, schemas.OllamaChat, context)
        if not body.messages:
            return await _load_or_unload(context, body, "message")
        return await _answer(context, request, body, from_ollama_chat(body, context.limits(request)), "message")

    @router.post("/generate", openapi_extra=body_schema(schemas.OllamaGenerate))
    async def generate(request: Request) -> Response:
        """Answer a question, or continue a text."""
        body = await read(request, schemas.OllamaGenerate, context)
        if not body.prompt and not body.images:
            return await _load_or_unload(context, body, "response")
        return await _answer(context, request, body, from_ollama_generate(body, context.limits(request)), "response")

    @router.get("/tags")
    @router.head("/tags", include_in_schema=False)
    def tags() -> dict[str, Any]:
        """List the models of this machine."""
        return {"models": [_summary(info) for info in context.host.list_models()]}

    @router.get("/ps")
    def running() -> dict[str, Any]:
        """List the models in memory."""
        models = [
            {
                **_summary(entry.info), "expires_at": _date_of(entry.expires_at_s).isoformat(), "size_vram": 0,
                "size": entry.num_bytes, "context_length": entry.max_context_tokens,
            }
            for entry in context.host.loaded()
        ]  # fmt: skip
        return {"models": models}

    @router.post("/show", openapi_extra=body_schema(schemas.OllamaName))
    async def show(request: Request) -> dict[str, Any]:
        """Describe one model."""
        body = await read(request, schemas.OllamaName, context)
        info = context.host.describe(_named(body))
        return {
            "license": info.license_text, "modelfile": f"FROM {info.name}\n", "parameters": "",
            "template": info.template, "details": _details(info), "model_info": dict(info.details),
            "capabilities": ["completion", "vision"], "modified_at": _when(info.modified_at_s),
        }  # fmt: skip

    @router.get("/version")
    @router.head("/version", include_in_schema=False)
    def version() -> dict[str, str]:
        """Say which llavakit this is."""
        return {"version": __version__}

    @router.post("/pull", openapi_extra=body_schema(schemas.OllamaName))
    async def pull(request: Request) -> Response:
        """Fetch a model from the Hub."""
        body = await read(request, schemas.OllamaName, context)
        name = _named(body)
        if body.stream:
            return streaming(_pull(context, name), is_ollama=True)
        async for _ in context.host.pull(name):
            pass
        return JSONResponse({"status": "success"})

    @router.delete("/delete", openapi_extra=body_schema(schemas.OllamaName))
    async def delete(request: Request) -> Response:
        """Remove a model from the store."""
        body = await read(request, schemas.OllamaName, context)
        await context.host.remove(_named(body))
        return PlainTextResponse("")

    for name, reason in _ABSENT.items():
        router.add_api_route(f"/{name}", _refuse(reason), methods=["POST"], summary=f"Not done here: {reason}")
    for method in ("POST", "HEAD"):
        router.add_api_route("/blobs/{digest}", _refuse(_ABSENT["create"]), methods=[method])
    return router


def _refuse(reason: str) -> Any:
    async def refuse() -> None:
        raise RefusedError(reason, status=501, code="unsupported-field")

    return refuse


async def _answer(context: Context, request: Request, body: Any, asked: GenerateRequest, field: str) -> Response:
    job = await begin(context, request, body.model, [asked], keep_s=keep_alive_s(body.keep_alive))
    if body.stream:
        return streaming(_stream(job, body.model, field), is_ollama=True, job=job)
    (result,) = await until_gone(request, gather(job))
    content: dict[str, Any] = {
        "model": body.model, "created_at": timestamp(), **_piece(field, result.text),
        **ollama_final(result, load_s=job.load_s, started_s=job.started_s),
    }  # fmt: skip
    if result.logprobs is not None:
        content["logprobs"] = ollama_logprobs(list(result.logprobs), job.engine)
    return JSONResponse(content)


async def _stream(job: Job, model: str, field: str) -> AsyncIterator[bytes]:
    try:
        async with aclosing(stream(job)) as events:  # type: ignore[type-var]
            async for _, event in events:
                entries = event_logprobs(event)
                content = {"model": model, "created_at": timestamp(), **_piece(field, event.text), "done": False}
                if entries:
                    content["logprobs"] = ollama_logprobs(entries, job.engine)
                if event.text or entries:
                    yield ndjson(content)
        (result,) = job.results
        final = ollama_final(result, load_s=job.load_s, started_s=job.started_s)
        yield ndjson({"model": model, "created_at": timestamp(), **_piece(field, ""), **final})
    except LlavakitError as error:
        yield ndjson(body_of(error, is_ollama=True))


def _piece(field: str, text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}} if field == "message" else {"response": text}


async def _load_or_unload(context: Context, body: Any, field: str) -> Response:
    """Load a model for an empty request, or with ``keep_alive`` 0 let go of it."""
    keep_s = keep_alive_s(body.keep_alive)
    if keep_s == 0:
        context.host.describe(body.model)  # or an error that says that there is none
        await context.host.unload(body.model)
        reason = "unload"
    else:
        await context.open(body.model, keep_alive_s=keep_s)
        reason = "load"
    return JSONResponse({"model": body.model, "created_at": timestamp(), **_piece(field, ""), "done": True,
                         "done_reason": reason})  # fmt: skip


async def _pull(context: Context, name: str) -> AsyncIterator[bytes]:
    try:
        yield ndjson({"status": "pulling manifest"})
        async for file, done, total in context.host.pull(name):
            yield ndjson({"status": f"pulling {file}", "digest": file, "total": total, "completed": done})
        yield ndjson({"status": "success"})
    except LlavakitError as error:
        yield ndjson(body_of(error, is_ollama=True))


def _named(body: schemas.OllamaName) -> str:
    name = body.model or body.name
    if not name:
        raise PromptError("the request names no model.")
    return name


def _summary(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name, "model": info.name, "modified_at": _when(info.modified_at_s), "size": info.num_bytes,
        "digest": info.digest, "details": _details(info), "capabilities": ["completion", "vision"],
    }  # fmt: skip


def _details(info: ModelInfo) -> dict[str, Any]:
    count = info.num_parameters
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
    return {
        "parent_model": "", "format": info.format, "family": "llava", "families": ["llama", "clip"],
        "parameter_size": size, "quantization_level": info.storage_type.upper(),
        "context_length": info.max_context_tokens, "embedding_length": info.hidden_size,
    }  # fmt: skip


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _date_of(seconds: float | None) -> datetime:
    """Return when a model goes: the last day of the calendar where it stays, or stays longer than calendars go."""
    try:
        return _LAST_DAY if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return _LAST_DAY
