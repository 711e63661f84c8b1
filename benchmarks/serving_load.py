"""A server under load: time to first word, between words, and words a second, beside llama-server on the same weights.

    python -m benchmarks.serving_load --model MODEL.gguf [--peer LLAMA_SERVER] [--clients 8]

Each server is started in turn, asked the same under the same template, and stopped. Part `reuse`: one client asks twice
about one picture, and once more after a restart. Part `load`: many ask about pictures of their own, two questions each,
as fast as they get answers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.diagnostics.generated import make_picture
from llavakit.weights.gguf_checkpoint import find_projector
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

_START_TIMEOUT_S = 300.0
_COLUMNS = ("measured", "llavakit", "llama-server", "ratio")
_QUESTIONS = (
    "Describe the picture in detail.",
    "Which colours are there, and where? Begin with the largest thing that you see and go on from left to right.",
    "What is this?",
    "Tell me what is unusual here, and why somebody might have made such a picture.",
)


@dataclass
class Answered:
    """When the pieces of one answer came, in seconds after the request, and how many tokens it had."""

    arrivals_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_cached_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to the first piece."""
        return self.arrivals_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Times between pieces."""
        return [b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


class Server:
    """A server process and how it is asked."""

    def __init__(self, command: list[str], url: str, log: Path) -> None:
        self.url = url
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        started = time.monotonic()
        while time.monotonic() - started < _START_TIMEOUT_S:
            if self._process.poll() is not None:
                raise SystemExit(f"{command[0]} ended at once: {log.read_text(errors='replace')[-2000:]}")
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    self._model = httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"]
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"{command[0]} is not ready after {_START_TIMEOUT_S:.0f} s")

    def stop(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def ask(self, client: httpx.AsyncClient, picture: str, question: str, *, max_tokens: int) -> Answered:
        """Ask one question about one picture and take the times of what comes."""
        body = {
            "model": self._model, "stream": True, "stream_options": {"include_usage": True},
            # Drawn, since the likeliest token of random weights is mostly the same one, and perhaps no visible one.
            "temperature": 1, "seed": 1, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question},
            ]}],
        }  # fmt: skip
        answered = Answered()
        started = time.perf_counter()
        headers = {
            "Connection": "close"
        }  # a server that closes a kept connection just then would fail the next question
        async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            if response.status_code != 200:
                raise SystemExit(f"{response.status_code}: {(await response.aread())[:500]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[6:])
                if chunk.get("usage"):
                    answered.num_tokens = chunk["usage"]["completion_tokens"]
                    details = chunk["usage"].get("prompt_tokens_details") or {}
                    answered.num_cached_tokens = details.get("cached_tokens") or 0
                if any(choice.get("delta", {}).get("content") for choice in chunk.get("choices", [])):
                    answered.arrivals_s.append(time.perf_counter() - started)
        if not answered.arrivals_s:
            answered.arrivals_s.append(time.perf_counter() - started)
        return answered


def make_data_uri(seed: int) -> str:
    """Return a generated picture as a data URI."""
    buffer = io.BytesIO()
    make_picture(seed).convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def measure_reuse(server: Server, picture: str, max_tokens: int) -> tuple[float, float]:
    """Return the times to first word of two questions about one picture that was never seen before."""
    async with httpx.AsyncClient(timeout=None) as client:
        first = await server.ask(client, picture, _QUESTIONS[0], max_tokens=max_tokens)
        second = await server.ask(client, picture, _QUESTIONS[2], max_tokens=max_tokens)
    return first.ttft_s, second.ttft_s


async def measure_load(
    server: Server, *, num_clients: int, num_questions: int, max_tokens: int, seed: int
) -> dict[str, Any]:
    """Let clients ask side by side; return rates and percentiles."""

    async def one(client: httpx.AsyncClient, idx: int) -> list[Answered]:
        picture = make_data_uri(seed + idx)
        return [
            await server.ask(client, picture, _QUESTIONS[(idx + turn) % len(_QUESTIONS)], max_tokens=max_tokens)
            for turn in range(num_questions)
        ]

    started = time.perf_counter()
    async with httpx.AsyncClient(timeout=None) as client:
        per_client = await asyncio.gather(*(one(client, idx) for idx in range(num_clients)))
    elapsed_s = time.perf_counter() - started
    answers = [answer for mine in per_client for answer in mine]
    gaps = sorted(gap for answer in answers for gap in answer.gaps_s)
    firsts = sorted(answer.ttft_s for answer in answers)
    return {
        "tokens_per_s": sum(answer.num_tokens for answer in answers) / elapsed_s,
        "elapsed_s": elapsed_s,
        "num_tokens": sum(answer.num_tokens for answer in answers),
        "ttft_p50_s": median(firsts), "ttft_p99_s": _percentile(firsts, 0.99),
        "itl_p50_s": median(gaps), "itl_p99_s": _percentile(gaps, 0.99), "itl_max_s": gaps[-1],
    }  # fmt: skip


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def _running(options: argparse.Namespace, side: str, cache: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if side == "ours":
        command = [
            sys.executable, "-m", "llavakit", "serve", str(options.model), "--port", str(port), "--no-state-file",
            "--parallel", str(options.clients), "--threads", str(options.threads), "--cache-dir", str(cache / "kept"),
            "--disk-cache-gib", "8",
        ]  # fmt: skip
    else:
        config = open_resolved(resolve(str(options.model))).checkpoint.config
        projector = find_projector(options.model, config.text_config.hidden_size)
        command = [
            str(options.peer), "-m", str(options.model), "--mmproj", str(projector), "--port", str(port), "-np",
            str(options.clients), "-c", str(1024 * options.clients), "-t", str(options.threads), "--no-webui",
        ]  # fmt: skip
    server = Server(command, f"http://127.0.0.1:{port}", cache / "server.log")
    try:
        yield server
    finally:
        server.stop()


def measure(options: argparse.Namespace, side: str, cache: Path, seed: int) -> dict[str, Any]:
    """Start a server, measure, restart it for the picture that it should still know."""
    found: dict[str, Any] = {}
    picture = make_data_uri(seed)
    with _running(options, side, cache) as server:
        asyncio.run(measure_reuse(server, make_data_uri(seed + 1), 4))  # everything is read and warm after this
        if "reuse" in options.parts:
            found["first_ttft_s"], found["second_ttft_s"] = asyncio.run(measure_reuse(server, picture, 8))
        if "load" in options.parts:
            found |= asyncio.run(
                measure_load(
                    server, num_clients=options.clients, num_questions=options.questions, max_tokens=options.max_tokens,
                    seed=seed + 100,
                )
            )  # fmt: skip
        time.sleep(3)  # what is kept on the disk is written behind the answers
    if "reuse" in options.parts:
        with _running(options, side, cache) as server:
            asyncio.run(measure_reuse(server, make_data_uri(seed + 2), 4))
            found["restarted_ttft_s"], _ = asyncio.run(measure_reuse(server, picture, 8))
    return found


def make_rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn what was measured into the rows of a table."""
    names = {
        "first_ttft_s": "new picture, time to first word", "second_ttft_s": "second question about it",
        "restarted_ttft_s": "the same after a restart", "tokens_per_s": "all clients together, tokens per second",
        "ttft_p50_s": "time to first word, median", "ttft_p99_s": "time to first word, 99 %",
        "itl_p50_s": "between words, median", "itl_p99_s": "between words, 99 %", "itl_max_s": "between words, longest",
    }  # fmt: skip
    rows = []
    for key, name in names.items():
        if key not in found["ours"]:
            continue
        ours, theirs = found["ours"][key], found.get("theirs", {}).get(key)
        ratio = None if theirs is None else (ours / theirs if key == "tokens_per_s" else theirs / ours)
        rows.append({"measured": name, "llavakit": ours, "llama-server": theirs, "ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with its projector beside it")
    parser.add_argument("--peer", type=Path, help="the llama-server program")
    parser.add_argument("--label", help="what to call the model in the results")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--questions", type=int, default=2, help="of each client, about its picture")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", nargs="+", choices=("reuse", "load"), default=["reuse", "load"])
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    manifest = make_manifest(num_threads=options.threads)
    found = {}
    for side in ("ours", "theirs") if options.peer else ("ours",):
        with tempfile.TemporaryDirectory() as cache:
            found[side] = measure(options, side, Path(cache), options.seed)
        print(json.dumps({side: found[side]}), flush=True)
    rows = make_rows(found)
    setting = {"model": options.label or options.model.stem, "clients": options.clients, "questions": options.questions,
               "max_tokens": options.max_tokens}  # fmt: skip
    write_result("serving_load", manifest, [{**setting, **row} for row in rows])
    print(make_table(rows, _COLUMNS))


if __name__ == "__main__":
    main()
