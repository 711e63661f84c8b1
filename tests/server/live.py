"""Servers that run in this process, on a port of their own, and an engine that does as it is told."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from llavakit.core.errors import LlavakitError, ModelNotFoundError, OverloadedError
from llavakit.core.requests import AttentionMap, EngineStats, GenerateRequest, LoadedInfo, ModelHost, ModelInfo
from llavakit.core.types import FinishReason, GenerationResult, Timings, TokenEvent
from llavakit.server.app import create_app
from llavakit.server.lifecycle import make_config
from llavakit.server.settings import ServerSettings

SHAPES = Path(__file__).parents[2] / "examples" / "shapes.png"
URI = "data:image/png;base64," + base64.b64encode(SHAPES.read_bytes()).decode()


@dataclass(eq=False)
class ScriptedAnswer:
    """Says its words one by one; may fail on the way."""

    engine: ScriptedEngine
    words: Sequence[str]
    failure: LlavakitError | Exception | None
    pause_s: float = 0.0
    is_cancelled: bool = False
    num_given: int = 0

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        try:
            for idx, word in enumerate(self.words):
                await asyncio.sleep(self.pause_s)
                if self.is_cancelled:
                    yield TokenEvent(request_idx=0, text="", token_id=None, finish_reason=FinishReason.CANCELLED)
                    return
                is_last = idx == len(self.words) - 1
                if self.failure is not None and is_last:
                    raise self.failure
                self.num_given += 1
                reason = FinishReason.STOP if is_last else None
                yield TokenEvent(request_idx=0, text=word, token_id=idx, finish_reason=reason)
        finally:
            self.engine.num_open -= 1

    @property
    def result(self) -> GenerationResult:
        return GenerationResult(
            text="".join(self.words[: self.num_given]), token_ids=tuple(range(self.num_given)),
            finish_reason=FinishReason.CANCELLED if self.is_cancelled else FinishReason.STOP,
            timings=Timings(num_prompt_tokens=5),
        )  # fmt: skip

    def cancel(self) -> None:
        self.is_cancelled = True
        self.engine.num_cancelled += 1


@dataclass(eq=False)
class ScriptedEngine:
    """An engine without a model."""

    words: Sequence[str] = ("Hello", " wor", "ld", ".")
    pause_s: float = 0.0
    failure: LlavakitError | Exception | None = None
    refusal: LlavakitError | None = None
    name: str = "scripted"
    max_context_tokens: int = 4096
    tokens_per_image: int = 576
    preset_names: Sequence[str] = ("original", "hf")
    num_open: int = 0
    num_cancelled: int = 0
    seen: list[GenerateRequest] = field(default_factory=list)

    async def submit(self, request: GenerateRequest) -> ScriptedAnswer:
        if self.refusal is not None:
            raise self.refusal
        self.seen.append(request)
        self.num_open += 1
        return ScriptedAnswer(self, self.words, self.failure, self.pause_s)

    def token_bytes(self, token_id: int) -> bytes:
        return str(token_id).encode()

    async def count_prompt_tokens(self, request: GenerateRequest) -> int:
        return 5

    async def attend(self, request: GenerateRequest, answer: str) -> AttentionMap:
        return AttentionMap(texts=(answer,), weights=((0.25,) * 4,), patches_per_side=2)

    def stats(self) -> EngineStats:
        return EngineStats(num_running=self.num_open)


@dataclass(eq=False)
class ScriptedHost:
    """One scripted engine under one name."""

    engine: ScriptedEngine
    expires_at_s: float | None = None

    def _info(self) -> ModelInfo:
        return ModelInfo(
            name=self.engine.name, num_bytes=1, digest="0" * 64, modified_at_s=0.0, format="safetensors",
            num_parameters=1, storage_type="float32", max_context_tokens=4096, hidden_size=8,
        )  # fmt: skip

    def list_models(self) -> Sequence[ModelInfo]:
        return [self._info()]

    def describe(self, name: str) -> ModelInfo:
        if name != self.engine.name:
            raise ModelNotFoundError(f"there is no model {name!r} here.")
        return self._info()

    async def open(self, name: str | None, *, keep_alive_s: float | None = None) -> tuple[ScriptedEngine, float]:
        if name not in (None, self.engine.name):
            raise ModelNotFoundError(f"there is no model {str(name)[:50]!r} here.")
        return self.engine, 0.0

    def loaded(self) -> Sequence[LoadedInfo]:
        return [
            LoadedInfo(
                info=self._info(), num_bytes=1, expires_at_s=self.expires_at_s, max_context_tokens=4096, num_parallel=1
            )
        ]  # fmt: skip

    def engines(self) -> Sequence[ScriptedEngine]:
        return [self.engine]

    async def unload(self, name: str) -> bool:
        return name == self.engine.name

    async def remove(self, name: str) -> None:
        raise ModelNotFoundError("there is nothing to remove.")

    async def pull(self, name: str) -> AsyncIterator[tuple[str, int, int]]:
        yield "model.safetensors", 1, 2
        raise OverloadedError("the Hub is far away.")

    async def close(self, *, grace_s: float) -> None:
        return None


@contextmanager
def serving(host: ModelHost, *, default_model: str | None = None, **settings: Any) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = create_app(host, ServerSettings(port=port, **settings), default_model=default_model)
    config = make_config(app)
    config.timeout_graceful_shutdown = 5
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health/live", timeout=1).status_code in (200, 401, 403):
                    break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def chat_body(text: str = "What color is the star?", *, url: str | None = URI, **fields: Any) -> dict[str, Any]:
    """A question about a picture in OpenAI's dialect."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if url is not None:
        content.append({"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
