"""Many clients, some of whom vanish or send rubbish, for as long as asked: ``python -m tests.soak.run --minutes 30``.

Every picture is another one, and every answer is compared with that of the same model asked alone in this process. At
the end nothing may be left: no request, no block, no file handle, no thread, and no memory beyond what was there after
the warm-up. The warm-up lasts until every cache in the server's memory is full, by what the server says of itself: a
cache that fills is none that leaks, and with one that is not full there would be no telling. And it lasts ten minutes
at least, so that the heap has met what the most work at one moment takes. Memory is read at rest, after the server has
given back what is free, as it does every minute.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image, ImageDraw

import llavakit
from llavakit.core.types import GenerationResult

_COLORS = ("red", "blue", "green", "black", "orange", "purple")
_QUESTIONS = ("How many objects are there?", "What color is the circle?", "Is there a red circle?",
              "Describe the picture.", "Where is the blue rectangle?")  # fmt: skip
_MAX_TOKENS = 40
# Logits of two tokens so close together that another order of the same sums may swap them.
_TIE = 1e-3
_MAX_GROWTH = 0.01
_SAMPLE_S = 10
_REST_S = 65  # longer than the server takes to give back what is free
_CACHES = ("image", "kv")  # those in memory


@dataclass
class Outcome:
    """What happened in a run."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, str]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def draw(seed: int) -> Image.Image:
    """Draw a picture that no other seed gives."""
    rng = random.Random(seed)
    image = Image.new("RGB", (112, 112), (255 - seed % 7, 255 - seed // 7 % 7, 255 - seed // 49 % 7))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 4)):
        x, y, size = rng.randint(0, 84), rng.randint(0, 84), rng.randint(14, 28)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + size, y + size), fill=rng.choice(_COLORS))
    return image


def encode(image: Image.Image) -> str:
    """Return a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def make_hostile(rng: random.Random) -> bytes:
    """Return a request body that must be refused."""
    picture = encode(draw(rng.randrange(1 << 30)))
    content: list[dict[str, Any]] = [{"type": "text", "text": "?"}]
    urls = ["data:image/png;base64,AAAA", picture[: len(picture) // 2], "file:///etc/passwd", "/etc/passwd",
            "http://127.0.0.1/x.png", "data:text/html,<b>", "data:image/png;base64,"]  # fmt: skip
    content.append({"type": "image_url", "image_url": {"url": rng.choice(urls)}})
    body: dict[str, Any] = {"model": "llava:tiny", "messages": [{"role": "user", "content": content}]}
    kind = rng.randrange(4)
    if kind == 1:
        body["temperature"] = rng.choice([-1, 1e9, "hot", None, True])
        body["max_tokens"] = -5
    elif kind == 2:
        body["no_such_field"] = "x"
    elif kind == 3:
        return json.dumps(body).encode()[: rng.randrange(5, 60)]
    return json.dumps(body).encode()


class Soak:
    """One run against one server."""

    def __init__(self, url: str, *, num_clients: int, seed: int) -> None:
        self._url = url
        self._num_clients = num_clients
        self._seed = seed
        torch.set_num_threads(1)
        self._model = llavakit.load("llava:tiny")
        self._asked = 0
        self._checks: asyncio.Queue[tuple[int, str, str]] = asyncio.Queue()
        self.outcome = Outcome()

    async def run(self, seconds: float) -> None:
        """Let the clients ask for so long."""
        deadline = time.monotonic() + seconds
        self._checks = asyncio.Queue()  # belongs to the loop of this run
        checker = asyncio.create_task(self._check_all())
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=64)) as client:
            await asyncio.gather(*(self._client(client, idx, deadline) for idx in range(self._num_clients)))
        await self._checks.join()
        checker.cancel()

    async def _client(self, client: httpx.AsyncClient, idx: int, deadline: float) -> None:
        rng = random.Random(self._seed * 1000 + idx)
        while time.monotonic() < deadline:
            dice = rng.random()
            try:
                if dice < 0.05:
                    await self._vanish(client, rng)
                elif dice < 0.10:
                    await self._be_hostile(client, rng)
                else:
                    await self._ask(client, rng)
            except httpx.HTTPError as error:
                self.outcome.unexpected.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.5)

    def _next_seed(self) -> int:
        self._asked += 1
        return self._seed * 1_000_000 + self._asked

    def _body(self, seed: int, question: str, *, stream: bool) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": encode(draw(seed))}}, {"type": "text", "text": question}]
        return {"model": "llava:tiny", "messages": [{"role": "user", "content": content}], "stream": stream,
                "temperature": 0, "max_tokens": _MAX_TOKENS}  # fmt: skip

    async def _ask(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        seed, question = self._next_seed(), rng.choice(_QUESTIONS)
        response = await client.post(f"{self._url}/v1/chat/completions", json=self._body(seed, question, stream=False))
        if response.status_code == 503:
            self.outcome.counts["busy"] += 1
            await asyncio.sleep(0.2)
        elif response.status_code != 200:
            self.outcome.unexpected.append(f"{response.status_code} for a good request: {response.text[:200]}")
        else:
            self.outcome.counts["answered"] += 1
            text = response.json()["choices"][0]["message"]["content"]
            self._checks.put_nowait((seed, question, text))

    async def _vanish(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        self.outcome.counts["vanished"] += 1
        body = self._body(self._next_seed(), "Describe the picture.", stream=True)
        async with client.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
            num = rng.randrange(4)
            async for _ in response.aiter_lines():
                num -= 1
                if num < 0:
                    return

    async def _be_hostile(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        self.outcome.counts["hostile"] += 1
        response = await client.post(
            f"{self._url}/v1/chat/completions", content=make_hostile(rng), headers={"content-type": "application/json"}
        )
        if not 400 <= response.status_code < 500 and response.status_code != 503:
            self.outcome.unexpected.append(f"{response.status_code} for rubbish: {response.text[:200]}")

    async def _check_all(self) -> None:
        while True:
            seed, question, text = await self._checks.get()
            expected = await asyncio.to_thread(self._answer_alone, seed, question)
            if text != expected.text and not self._is_tie(expected, text):
                self.outcome.wrong.append({"seed": str(seed), "question": question, "got": text, "not": expected.text})
            self.outcome.counts["checked"] += 1
            self._checks.task_done()

    def _answer_alone(self, seed: int, question: str) -> GenerationResult:
        return self._model.chat(question, images=[draw(seed)], max_new_tokens=_MAX_TOKENS, num_top_logprobs=2)

    def _is_tie(self, expected: GenerationResult, text: str) -> bool:
        """Whether the answers part at a token whose two likeliest choices are equally likely."""
        for idx, entry in enumerate(expected.logprobs or ()):
            shown = self._model.tokenizer.decode(expected.token_ids[: idx + 1])
            if not text.startswith(shown):
                (_, first), (_, second) = entry.top
                return first - second < _TIE
        return False


def read_usage(pid: int) -> dict[str, int]:
    """Resident bytes, threads and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    numbers = {key: int(re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1]) for key in ("VmRSS", "Threads")}  # type: ignore[index]
    return {
        "rss_bytes": numbers["VmRSS"] * 1024, "num_threads": numbers["Threads"],
        "num_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }  # fmt: skip


class Sampler:
    """Notes the resident memory of a process every ten seconds, on a thread of its own, while it is entered."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.series_bytes: list[int] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(_SAMPLE_S):
            self.series_bytes.append(read_usage(self._pid)["rss_bytes"])
            print(f"{_SAMPLE_S * len(self.series_bytes)} s: {self.series_bytes[-1] / 1e6:.1f} MB", flush=True)


def read_caches(metrics: str) -> dict[str, float]:
    """How full each cache is by what the server says of itself, from 0 to 1."""
    return {
        name: read_gauge(metrics, f"{name}_cache_bytes") / max(1.0, read_gauge(metrics, f"{name}_cache_max_bytes"))
        for name in _CACHES
    }


def are_full(caches: dict[str, float]) -> bool:
    """Whether no cache has room for much more; entries are a few percent of the small caches of this run."""
    return min(caches.values()) > 0.95


def warm_up(run: Soak, url: str, seconds: float, *, max_seconds: float) -> dict[str, float]:
    """Let the clients ask for so long, and on until every cache is full, at most ``max_seconds``; return their fill."""
    started = time.monotonic()
    asyncio.run(run.run(seconds))
    while True:
        caches = read_caches(httpx.get(f"{url}/metrics", timeout=10).text)
        if are_full(caches) or time.monotonic() - started > max_seconds:
            return caches
        asyncio.run(run.run(10))


def soak(
    *, warm_up_s: float, seconds: float, num_clients: int, seed: int = 1, max_warm_up_s: float = 0, rest_s: float = 2
) -> dict[str, Any]:
    """Start a server, soak it, stop it; return what was found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        # Small caches, so that they are full after the warm-up: what grows afterwards is no cache that fills. One
        # thread for each side: two that wait for one another answer a tenth as much where other programs run as well.
        process = subprocess.Popen(
            [sys.executable, "-m", "llavakit", "serve", "llava:tiny", "--port", str(port), "--no-state-file",
             "--threads", "1", "--cache-dir", f"{folder}/cache", "--disk-cache-gib", "0.05", "--kv-cache-gib", "0.1",
             "--picture-cache-gib", "0.02", "--keep-alive", "-1"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _wait_until_ready(url, process)
            run = Soak(url, num_clients=num_clients, seed=seed)
            caches = warm_up(run, url, warm_up_s, max_seconds=max_warm_up_s)
            time.sleep(rest_s)
            before = read_usage(process.pid)
            with Sampler(process.pid) as sampler:
                asyncio.run(run.run(seconds))
            time.sleep(rest_s)
            after = read_usage(process.pid)
            metrics = httpx.get(f"{url}/metrics", timeout=10).text
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=60)
        finally:
            process.kill()
        tail = (Path(folder) / "log").read_text(errors="replace")[-2000:]
    return {
        "seconds": seconds, "num_clients": num_clients, **run.outcome.counts, "num_wrong": len(run.outcome.wrong),
        "wrong": run.outcome.wrong[:5], "num_unexpected": len(run.outcome.unexpected),
        "unexpected": run.outcome.unexpected[:5], "before": before, "after": after, "caches_before": caches,
        "rss_mb": [round(num / 1e6, 1) for num in sampler.series_bytes],
        "memory_growth": after["rss_bytes"] / before["rss_bytes"] - 1, "exit_status": status,
        "left": read_left(metrics), "log_tail": tail if status else "",
    }  # fmt: skip


def read_left(metrics: str) -> dict[str, float]:
    """Requests and blocks in use by what the server says of itself."""
    return {
        name: read_gauge(metrics, name) for name in ("num_requests_running", "num_requests_waiting", "kv_blocks_in_use")
    }


def read_gauge(metrics: str, name: str) -> float:
    """One number of Prometheus' text; -1 if it is not there."""
    match = re.search(rf"^llavakit_{name}(?:{{[^}}]*}})? ([\d.e+]+)$", metrics, re.MULTILINE)
    return float(match[1]) if match else -1.0


def is_good(found: dict[str, Any]) -> bool:
    """Whether everything was as it must be, and the memory was judged when no cache was filling."""
    is_wrong = found["num_wrong"] or found["num_unexpected"] or found["exit_status"] or any(found["left"].values())
    return not is_wrong and are_full(found["caches_before"]) and found["memory_growth"] <= _MAX_GROWTH


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < 120:
        if process.poll() is not None:
            raise RuntimeError("the server ended at once")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server is not ready after two minutes")


def main() -> None:
    """Soak and print what was found; the exit status is 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm-up-minutes", type=float, default=10)
    parser.add_argument("--max-warm-up-minutes", type=float, default=15, help="if the caches are not full before")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=os.getpid())
    parser.add_argument("--record", action="store_true", help="append the outcome to benchmarks/results/soak.jsonl")
    options = parser.parse_args()
    found = soak(
        warm_up_s=60 * options.warm_up_minutes, seconds=60 * options.minutes, num_clients=options.clients,
        seed=options.seed, max_warm_up_s=60 * options.max_warm_up_minutes, rest_s=_REST_S,
    )  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.record:
        from benchmarks.common import make_manifest, write_result

        write_result("soak", make_manifest(num_threads=os.cpu_count() or 1), [found])
    sys.exit(0 if is_good(found) else 1)


if __name__ == "__main__":
    main()
