"""``llavakit run`` through a server that is running already: the model is in memory, and knows the picture perhaps."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from llavakit.cli.answer_writer import AnswerWriter
from llavakit.cli.console import Console
from llavakit.cli.state_file import find_server
from llavakit.cli.timing_line import timing_line
from llavakit.core.errors import (
    BadImageError,
    ConfigError,
    ImageSourceError,
    LlavakitError,
    RefusedError,
    RequestError,
    SamplingError,
)
from llavakit.core.types import FinishReason, GenerationResult, SamplingParams, Timings
from llavakit.processing.sources import open_image, read_picture_file

if TYPE_CHECKING:
    import argparse

__all__ = ["answer_through_server", "choose_server"]

_URL_SCHEMES = ("http://", "https://", "file://")
_PICTURE_CODES = (BadImageError.code, ImageSourceError.code)
# What a server refuses so would be refused here for the same reason, after the time of loading.
_CODES_ALIKE_HERE = ("context_length_exceeded", SamplingError.code)
_TIMEOUT = httpx.Timeout(None, connect=2.0)


def choose_server(options: argparse.Namespace, sources: list[Any]) -> str | None:
    """Return the address of a server that gives the same answer as loading the model here would, or None.

    A server that was named is taken in any case, and what only this process can do is refused; one that was found must
    serve this model, need no key, and nothing may be asked for that only this process can do.

    Raises
    ------
    ConfigError
        If a named server is asked for what it cannot do.
    """
    special = _special_options(options)
    if options.server:
        if special:
            raise ConfigError(f"{', '.join(special)} cannot be asked of a server. Leave out --server or the option.")
        return str(options.server).rstrip("/")
    if options.no_server:
        return None
    has_urls = any(isinstance(source, str) and source.lower().startswith(_URL_SCHEMES) for source in sources)
    found = None if special or has_urls else find_server()
    if found is None or found.needs_key or found.model != options.model:
        return None
    try:
        is_ready = httpx.get(f"{found.url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return None
    return found.url if is_ready else None


def _special_options(options: argparse.Namespace) -> list[str]:
    """Name the options given that only this process can do."""
    given = {
        "--json": options.json, "--verbose": options.verbose, "--num-beams": options.num_beams not in (None, 1),
        "--mmproj": options.mmproj, "--device": options.device, "--threads": options.threads,
        "--dtype": options.dtype != "auto", "--kv-dtype": options.kv_dtype != "auto",
        "--allow-private-urls": options.allow_private_urls,
    }  # fmt: skip
    return [name for name, is_given in given.items() if is_given]


@dataclass
class _Answer:
    """What the pieces of an answer add up to."""

    text: str = ""
    finish: str = "stop"
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)

    def take(self, chunk: dict[str, Any]) -> str:
        """Add a piece; return its text."""
        piece = ""
        for choice in chunk.get("choices", ()):
            piece += choice.get("delta", {}).get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
        self.text += piece
        self.usage = chunk.get("usage") or self.usage
        self.timings = chunk.get("llavakit") or self.timings
        return piece

    def result(self, *, num_images: int) -> GenerationResult:
        """Return it in the form that the line of timings is made of."""
        usage, timings = self.usage, self.timings
        return GenerationResult(
            text=self.text,
            token_ids=(),
            finish_reason=FinishReason.LENGTH if self.finish == "length" else FinishReason.STOP,
            timings=Timings(
                queue_s=float(timings.get("queue_s", 0)), image_encode_s=float(timings.get("image_encode_s", 0)),
                prefill_s=float(timings.get("prefill_s", 0)), decode_s=float(timings.get("decode_s", 0)),
                num_images=num_images, num_images_encoded=int(timings.get("images_encoded", 0)),
                num_prompt_tokens=int(usage.get("prompt_tokens", 0)),
                num_cached_tokens=int(timings.get("cached_tokens", 0)),
                num_generated_tokens=int(usage.get("completion_tokens", 0)),
            ),
        )  # fmt: skip


def answer_through_server(
    url: str, options: argparse.Namespace, sampling: SamplingParams, prompt: str, sources: list[Any], console: Console
) -> int | None:
    """Ask, show the answer as it comes, and where its time went.

    Returns
    -------
    int or None
        The exit status; None where a server that was found, and not named, does not answer what may be answered here.
        Nothing of an answer is written then.

    Raises
    ------
    ConfigError
        If the server cannot be reached.
    RefusedError
        If it refuses, or the answer breaks off.
    ImageSourceError, BadImageError
        If a picture cannot be used.
    """
    body = _body(options, sampling, prompt, sources)
    answer = _Answer()
    writer = AnswerWriter(console)
    try:
        with writer:
            for chunk in _chunks(url, body):
                writer.push(answer.take(chunk))
    except LlavakitError as error:
        if writer.has_begun:
            raise RefusedError(f"the answer broke off: {error}", code=error.code) from error
        if error.code in _PICTURE_CODES:
            _open_here(sources)
        if options.server or error.code in _CODES_ALIKE_HERE:
            raise
        if not options.quiet:
            console.note(f"the server at {url} does not answer: {error} The model is loaded here.", style="dim")
        return None
    if not options.quiet and not options.no_timings:
        result = answer.result(num_images=len(sources))
        console.note(f"{timing_line(result, sampling)} | by the server at {url}", style="dim")
    return 0


def _open_here(sources: list[Any]) -> None:
    """Open the pictures that are here: the server knows not their names, and what is wrong with one is said with it."""
    for source in sources:
        if not (isinstance(source, str) and source.lower().startswith(_URL_SCHEMES)):
            open_image(source)


def _body(options: argparse.Namespace, sampling: SamplingParams, prompt: str, sources: list[Any]) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": _data_uri(source)}} for source in sources]
    question = {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}
    system = [{"role": "system", "content": options.system}] if options.system is not None else []
    body: dict[str, Any] = {
        "model": options.model, "messages": [*system, question], "stream": True,
        "stream_options": {"include_usage": True}, "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens, "stop": list(sampling.stop) or None, "preset": options.preset,
        "presence_penalty": sampling.presence_penalty, "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed, "top_k": sampling.top_k, "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }  # fmt: skip
    return {name: value for name, value in body.items() if value is not None}


def _data_uri(source: Any) -> str:
    if isinstance(source, str) and source.lower().startswith(("data:", "http://", "https://")):
        return source  # an address is the server's to fetch, or to refuse
    if isinstance(source, str) and source.lower().startswith("file://"):
        raise ConfigError("a file:// address cannot be asked of a server. Give the path.")
    data = source if isinstance(source, bytes) else read_picture_file(Path(source))[0]
    return f"data:image/*;base64,{base64.b64encode(data).decode('ascii')}"


def _chunks(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Send a request and give the pieces of its answer; that they ended before the answer did is an error."""
    key = os.environ.get("LLAVAKIT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    is_answering, is_whole = False, False
    try:
        with (
            httpx.Client(timeout=_TIMEOUT, trust_env=False) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise _refusal(_error_of(response))
            is_answering = True
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    is_whole = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[len("data: ") :])
                    if "error" in chunk:
                        raise _refusal(chunk["error"])
                    is_whole = is_whole or any(choice.get("finish_reason") for choice in chunk.get("choices", ()))
                    yield chunk
    except (httpx.HTTPError, ValueError) as error:
        reason = str(error) or type(error).__name__
        if is_answering:
            raise RequestError(f"the connection to the server at {url} broke ({reason}). Ask again.") from error
        raise ConfigError(
            f"the server at {url} cannot be asked ({reason}). Start it with llavakit serve, or say --no-server."
        ) from error
    if not is_whole:
        raise RequestError(f"the server at {url} closed the connection before the answer's end. Ask again.")


def _error_of(response: httpx.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": f"the server answered {response.status_code}.", "code": "request"}
    return found


def _refusal(error: dict[str, Any]) -> RefusedError:
    return RefusedError(str(error.get("message", "no reason given")), code=error.get("code"))
