"""What the server costs over its engine: ``python -m benchmarks.server_overhead``.

The same engine, loaded once in this process, answers the same questions from 16 clients: called directly, and over HTTP
with streams read to their end. The sides take turns; every round asks with words of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time
from statistics import median
from typing import Any

import httpx
import uvicorn

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.api.host import make_host
from llavakit.core.requests import EngineClient, GenerateRequest
from llavakit.core.types import Message, Role, SamplingParams, TextPart
from llavakit.kernels.machine import count_cpus
from llavakit.processing.sources import SourcePolicy
from llavakit.server.app import create_app
from llavakit.server.settings import ServerSettings

_COLUMNS = ("side", "tokens_per_s", "first_token_p50_ms", "answer_p50_ms")


async def _direct(engine: EngineClient, question: str, num_tokens: int) -> tuple[float, float, int]:
    started_s, first_s, count = time.perf_counter(), 0.0, 0
    sampling = SamplingParams(max_new_tokens=num_tokens, ignore_eos=False)
    messages = (Message(Role.USER, (TextPart(question),)),)
    async for _ in await engine.submit(GenerateRequest(messages=messages, sampling=sampling)):
        first_s = first_s or time.perf_counter() - started_s
        count += 1
    return first_s, time.perf_counter() - started_s, count


async def _over_http(client: httpx.AsyncClient, question: str, num_tokens: int) -> tuple[float, float, int]:
    started_s, first_s, count = time.perf_counter(), 0.0, 0
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": num_tokens,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                first_s = first_s or time.perf_counter() - started_s
            if '"usage"' in line:
                count = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    return first_s, time.perf_counter() - started_s, count


async def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    host = make_host(options.model, policy=SourcePolicy(allow_files=False), cache_dir=None, disk_cache_bytes=0,
                     isolate_tenants=False, threads=options.threads, num_parallel=options.clients)  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(host, ServerSettings()), log_config=None, access_log=False, lifespan="on")
    )
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    engine, _ = await host.open(None)
    found: dict[str, list[tuple[float, list[tuple[float, float, int]]]]] = {"direct": [], "server": []}
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
        for idx in range(options.rounds + 1):
            for side, rounds in found.items():
                questions = [f"Round {idx} {side}, number {n}: tell a story." for n in range(options.clients)]
                started_s = time.perf_counter()
                asked = [
                    _direct(engine, q, options.max_tokens)
                    if side == "direct"
                    else _over_http(client, q, options.max_tokens)
                    for q in questions
                ]
                answers = await asyncio.gather(*asked)
                if idx:  # the first round warms both sides
                    rounds.append((time.perf_counter() - started_s, list(answers)))
    server.should_exit = True
    await running
    return [
        {
            "side": side,
            "tokens_per_s": median(sum(a[2] for a in answers) / seconds for seconds, answers in rounds),
            "first_token_p50_ms": 1e3 * median(a[0] for _, answers in rounds for a in answers),
            "answer_p50_ms": 1e3 * median(a[1] for _, answers in rounds for a in answers),
        }
        for side, rounds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llava:tiny")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=count_cpus())
    options = parser.parse_args()
    rows = asyncio.run(_measure(options))
    manifest = make_manifest(num_threads=options.threads) | {
        "model": options.model, "clients": options.clients, "rounds": options.rounds, "max_tokens": options.max_tokens,
    }  # fmt: skip
    print(make_table(rows, _COLUMNS))
    print(write_result("server_overhead", manifest, rows))


if __name__ == "__main__":
    main()
