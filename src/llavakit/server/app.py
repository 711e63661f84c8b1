"""The application: each request passes the gate, each error gets its dialect's body, each answer a line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llavakit.core.errors import ConfigError, LlavakitError, OverloadedError, PromptError, RefusedError
from llavakit.core.requests import AttentionMap, ModelHost
from llavakit.core.version import __version__
from llavakit.processing.sources import SourcePolicy
from llavakit.server import ollama, openai, schemas
from llavakit.server.bodies import Bodies
from llavakit.server.context import Context, failure_response, read, until_gone
from llavakit.server.failures import status_of
from llavakit.server.log_lines import log_fields
from llavakit.server.memory import keep_giving_back
from llavakit.server.metrics import Metrics
from llavakit.server.openai import body_schema
from llavakit.server.requests import from_chat
from llavakit.server.security import Gate
from llavakit.server.settings import ServerSettings

__all__ = ["create_app"]

_LOG = logging.getLogger(__name__)
_PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}( ?, ?[A-Za-z0-9-]{1,64}){0,63}")
_OLLAMA_GREETING = "Ollama is running"


class AttentionRequest(BaseModel):
    """``POST /api/llavakit/attention``: a conversation, and the answer whose attention is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, max_length=512)
    messages: list[schemas.ChatMessage] = Field(min_length=1, max_length=4096)
    answer: str = Field(min_length=1, max_length=100_000)
    preset: Literal["original", "hf"] | None = None


def create_app(
    host: ModelHost,
    settings: ServerSettings,
    *,
    default_model: str | None = None,
    on_ready: Callable[[], None] | None = None,
) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    host : ModelHost
        Closed when the application ends.
    settings : ServerSettings
    default_model : str, optional
        Loaded when the application starts; none is loaded without. Where that fails the application does not start, and
        ``app.state.failure`` says why.
    on_ready : callable, optional
        Called when requests are taken.
    """
    max_bodies_mib = max(settings.max_bodies_mib, settings.max_body_mib)
    context = Context(host, settings, Metrics(), Bodies(max_bodies_mib << 20))

    @asynccontextmanager
    async def live(_app: FastAPI) -> AsyncIterator[None]:
        if default_model is not None:
            try:
                await host.open(default_model)
            except LlavakitError as error:
                app.state.failure = error
                raise
        context.is_loaded = True
        if on_ready is not None:
            on_ready()
        giving_back = asyncio.create_task(keep_giving_back())
        yield
        giving_back.cancel()
        context.is_draining = True
        await host.close(grace_s=settings.grace_s)

    app = FastAPI(title="llavakit", version=__version__, lifespan=live, docs_url=None, redoc_url=None)
    app.state.context, app.state.failure = context, None
    app.include_router(openai.make_router(context))
    app.include_router(ollama.make_router(context))
    app.include_router(_own_router(context))
    _add_page(app, settings)

    async def refuse(request: Request, error: Exception) -> Response:
        is_ollama = request.url.path.startswith("/api/") and not request.url.path.startswith("/api/llavakit/")
        if isinstance(error, LlavakitError):
            if status_of(error) >= 500 and not isinstance(error, OverloadedError | RefusedError):
                _LOG.error("request %s failed: %s: %s", getattr(request.state, "request_id", "?"), error.code, error)
            return failure_response(error, is_ollama=is_ollama)
        if isinstance(error, HTTPException):
            refused = RefusedError(
                f"{request.method} {request.url.path[:200]}: {error.detail}.", status=error.status_code, code="request"
            )
            response = failure_response(refused, is_ollama=is_ollama)
            response.headers.update(error.headers or {})  # of a method that is not taken: those that are
            return response
        _LOG.error("request %s failed", getattr(request.state, "request_id", "?"), exc_info=error)
        return failure_response(LlavakitError("failed"), is_ollama=is_ollama)

    app.add_exception_handler(LlavakitError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(Exception, refuse)
    app.add_middleware(_Entrance, context=context)
    return app


def _own_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["llavakit"])

    @router.get("/health")
    @router.head("/health", include_in_schema=False)
    @router.get("/health/ready")
    @router.head("/health/ready", include_in_schema=False)
    def ready() -> Response:
        """Say whether requests are taken. A model that was unloaded because nobody asked is loaded by the next one."""
        is_ready = context.is_loaded and not context.is_draining
        return JSONResponse({"status": "ok" if is_ready else "loading"}, status_code=200 if is_ready else 503)

    @router.get("/health/live")
    @router.head("/health/live", include_in_schema=False)
    def alive() -> dict[str, str]:
        """Say that the process runs."""
        return {"status": "ok"}

    @router.get("/metrics")
    def metrics() -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(
            context.metrics.render(context.host.engines(), context.bodies),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    @router.get("/api/llavakit/info")
    def info() -> dict[str, Any]:
        """Tell the page what it needs to know."""
        settings = context.settings
        engines = context.host.engines()
        return {
            "version": __version__, "model": settings.model,
            "presets": list(engines[0].preset_names) if engines else ["original", "hf"],
            "max_body_bytes": settings.max_body_mib << 20, "max_images": settings.max_images,
            "max_image_bytes": (settings.max_body_mib << 20) * 3 // 4 // 2, "max_image_pixels": SourcePolicy.max_pixels,
            "url_pictures": settings.allow_urls, "has_planner": bool(settings.planner_dir),
            "needs_key": bool(settings.api_keys),
        }  # fmt: skip

    @router.post("/api/llavakit/attention", openapi_extra=body_schema(AttentionRequest))
    async def attention(request: Request) -> Response:
        """Where an answer attended in its pictures."""
        body = await read(request, AttentionRequest, context)
        chat = schemas.ChatRequest.model_validate({
            "model": body.model, "messages": [m.model_dump() for m in body.messages], "preset": body.preset,
        })  # fmt: skip
        (asked,) = from_chat(chat, context.limits(request))
        if not any(message.images for message in asked.messages):
            raise PromptError("attention is shown over pictures, and the conversation has none.")
        engine, _, _ = await context.open(body.model)
        seen = await until_gone(request, engine.attend(asked, body.answer))
        return Response(await asyncio.to_thread(_attention_json, seen), media_type="application/json")

    return router


def _attention_json(seen: AttentionMap) -> str:
    """Write row by row: the encoder lets no other thread run while it writes one value, however large."""
    texts = json.dumps(seen.texts, ensure_ascii=False)
    rows = ",".join(json.dumps(row, allow_nan=False, separators=(",", ":")) for row in seen.weights)
    return f'{{"texts":{texts},"weights":[{rows}],"patches_per_side":{seen.patches_per_side}}}'


def _add_page(app: FastAPI, settings: ServerSettings) -> None:
    folder = Path(str(files("llavakit.server") / "static"))

    async def page(request: Request) -> Response:
        return _page(request, folder)

    app.router.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)

    async def asset(path: str) -> Response:
        return _file(folder, path)

    app.router.add_api_route("/static/{path:path}", asset, methods=["GET", "HEAD"], include_in_schema=False)
    if settings.planner_dir:
        planner = Path(settings.planner_dir)
        if not planner.is_dir():
            raise ConfigError(f"planner_dir {settings.planner_dir!r} is no folder; write it with llavakit plan --html.")

        async def planner_page(path: str = "") -> Response:
            return _file(planner, path or "index.html")

        app.router.add_api_route("/planner/{path:path}", planner_page, methods=["GET", "HEAD"], include_in_schema=False)


def _page(request: Request, folder: Path) -> Response:
    """Return the page to browsers, and to Ollama's clients what they look for."""
    if "text/html" in request.headers.get("accept", "") and (folder / "index.html").is_file():
        return _file(folder, "index.html")
    return PlainTextResponse(_OLLAMA_GREETING)


def _file(folder: Path, name: str) -> Response:
    """Return a file inside a folder, and nothing outside of it, whatever links and dots say."""
    try:
        path = (folder / name).resolve()
        is_inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):
        is_inside = False
    if not is_inside:
        raise HTTPException(404, "not found")
    return FileResponse(path, headers={"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff",
                                       "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"})  # fmt: skip


class _Entrance:
    """The gate, the request id, the count and the log line, around the whole application."""

    def __init__(self, app: ASGIApp, *, context: Context) -> None:
        self._app = app
        self._context = context
        self._gate = Gate(context.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, _without_traceback(send, scope))
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, request_id, started_s = scope["path"], uuid.uuid4().hex[:16], time.perf_counter()
        held = self._context.bodies.hold()
        scope.setdefault("state", {}).update(request_id=request_id, body=held)
        status = 500
        origin = headers.get("origin")
        may_read = origin is not None and self._gate.allows_origin(origin)

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                held.release()  # a stream has let go of the request before it begins, any other answer is ready
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if may_read and origin is not None:
                    message["headers"] += [
                        (b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin"),
                        (b"access-control-expose-headers", b"x-request-id, retry-after"),
                    ]  # fmt: skip
            await send(message)

        try:
            is_asset = path == "/" or path.startswith(("/static/", "/planner/"))
            if may_read and scope["method"] == "OPTIONS":
                await _preflight(headers)(scope, receive, send_noted)
                return
            scope["state"]["tenant"] = self._gate.check(path, headers, is_asset=is_asset)
            await self._app(scope, receive, send_noted)
        except LlavakitError as error:
            is_ollama = path.startswith("/api/") and not path.startswith("/api/llavakit/")
            await failure_response(error, is_ollama=is_ollama)(scope, receive, send_noted)
        finally:
            held.release()
            route = getattr(scope.get("route"), "path", "other")
            self._context.metrics.count_request(route, status)
            log_fields(
                _LOG,
                {"request": request_id, "method": scope["method"], "route": route, "status": status,
                 "seconds": round(time.perf_counter() - started_s, 4)},
            )  # fmt: skip


def _without_traceback(send: Send, scope: Scope) -> Send:
    """Leave the telling of a failure that is known to whoever runs the application."""

    async def send_short(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed" and scope["app"].state.failure is not None:
            message = {"type": message["type"]}
        await send(message)

    return send_short


def _preflight(headers: dict[str, str]) -> Response:
    """Tell the browser of a page that may call us what it may send: whatever headers it asks for."""
    asked = headers.get("access-control-request-headers", "")
    named = asked if _HEADER_NAMES.fullmatch(asked) else "authorization, content-type"
    return Response(status_code=204, headers={
        "Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Allow-Headers": named,
        "Access-Control-Max-Age": "600",
    })  # fmt: skip
