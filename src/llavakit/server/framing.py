"""From the events of an answer to the bytes of a dialect: pure functions over events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from llavakit.core.requests import EngineClient
from llavakit.core.types import FinishReason, GenerationResult, TokenEvent, TokenLogprob

__all__ = ["DONE", "TextFrame", "chat_chunk", "chat_logprobs", "finish_name", "ndjson", "ollama_final",
           "ollama_logprobs", "sse", "timestamp", "usage_of"]  # fmt: skip

DONE = b"data: [DONE]\n\n"
_MARK = uuid.uuid4().hex  # which no name of a model has


def sse(content: dict[str, Any], *, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class TextFrame:
    """Pieces of a stream that differ in nothing but a text: everything around it is written once.

    Parameters
    ----------
    make : callable
        From a text to the whole piece, in which the text stands once, as JSON.
    """

    def __init__(self, make: Callable[[str], bytes]) -> None:
        self._before, self._after = make(_MARK).split(f'"{_MARK}"'.encode())

    def fill(self, text: str) -> bytes:
        """Return the piece with this text."""
        return self._before + json.dumps(text, ensure_ascii=False).encode() + self._after


def ndjson(content: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def timestamp() -> str:
    """Now, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def finish_name(reason: FinishReason | None) -> str | None:
    """Name the reason as both dialects do."""
    return None if reason is None else "length" if reason is FinishReason.LENGTH else "stop"


def chat_chunk(
    answer_id: str, model: str, created_s: int, *, idx: int, delta: dict[str, Any], finish: str | None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return a chunk of ``/v1/chat/completions``."""
    choice: dict[str, Any] = {"index": idx, "delta": delta, "finish_reason": finish}
    if logprobs is not None:
        choice["logprobs"] = logprobs
    return {"id": answer_id, "object": "chat.completion.chunk", "created": created_s, "model": model,
            "choices": [choice]}  # fmt: skip


def usage_of(results: list[GenerationResult], *, num_prompts: int = 1) -> dict[str, Any]:
    """Tokens of a request; each of its prompts, which have the same number of answers, counts once."""
    firsts = [result.timings for result in results[:: len(results) // num_prompts]]
    prompt = sum(timings.num_prompt_tokens for timings in firsts)
    completion = sum(len(result.token_ids) for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(timings.num_cached_tokens for timings in firsts)},
    }


def chat_logprobs(entries: list[TokenLogprob], engine: EngineClient) -> dict[str, Any]:
    """Log-probabilities as chat completions have them."""
    return {"content": [{**_token(engine, e.token_id, e.logprob),
                         "top_logprobs": [_token(engine, token, logprob) for token, logprob in e.top]}
                        for e in entries], "refusal": None}  # fmt: skip


def ollama_logprobs(entries: list[TokenLogprob], engine: EngineClient) -> list[dict[str, Any]]:
    """Log-probabilities as Ollama has them."""
    return chat_logprobs(entries, engine)["content"]  # type: ignore[no-any-return]


def ollama_final(result: GenerationResult, *, load_s: float, started_s: float) -> dict[str, Any]:
    """Return what Ollama's last object adds: the reason, and durations in nanoseconds."""
    timings = result.timings
    prompt_s = timings.prefill_s + timings.image_encode_s
    return {
        "done": True,
        "done_reason": finish_name(result.finish_reason),
        "total_duration": int((time.perf_counter() - started_s) * 1e9),
        "load_duration": int(load_s * 1e9),
        "prompt_eval_count": timings.num_prompt_tokens,
        "prompt_eval_duration": int(prompt_s * 1e9),
        "eval_count": len(result.token_ids),
        "eval_duration": int(timings.decode_s * 1e9),
    }


def event_logprobs(event: TokenEvent) -> list[TokenLogprob]:
    """Return the log-probability of an event's token, if it was asked for."""
    return [] if event.logprob is None else [event.logprob]


def _token(engine: EngineClient, token_id: int, logprob: float) -> dict[str, Any]:
    data = engine.token_bytes(token_id)
    # -inf is no JSON; what cannot be is as unlikely as a float can say.
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -1e30), "bytes": list(data)}
