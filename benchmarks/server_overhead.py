"""What the server costs over its engine: ``python -m benchmarks.server_overhead``.

The same engine, loaded once in this process, answers the questions of 16 clients, each of whom asks the next one when
the last is answered: called directly, and over HTTP with streams read to their end by another process, which does no
more than that and keeps its connections, as the official clients do. The sides take turns, and a question says nothing
of its side: words of one side only change how long its answers are. Every question has words of its own, and with
``--pictures`` a picture of its own, as this server is mostly asked. Answers end where the model ends them, or with
``--whole`` after ``--max-tokens``. Where everybody asks on at once an answer takes as long as the throughput says; what
a server adds to it is seen with ``--load 0.5``, the same questions at random moments, half as many as the engine alone
can answer. Connections and clients need a processor as well: with as many threads of the engine as there are
processors, it loses to them what it had taken. So every side's processor time is told apart: of the thread that serves
(submitting included, which the direct side does as well), of the clients, and of everything else in the server's
process, which is the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import multiprocessing
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from statistics import mean, median
from typing import Any, NamedTuple

import uvicorn

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.api.host import make_host
from llavakit.core.requests import EngineClient, GenerateRequest
from llavakit.core.types import ImagePart, Message, Role, SamplingParams, TextPart
from llavakit.diagnostics.generated import make_picture
from llavakit.kernels.machine import count_cpus
from llavakit.processing.sources import SourcePolicy
from llavakit.server.app import create_app
from llavakit.server.lifecycle import make_config
from llavakit.server.settings import ServerSettings

_FIRST_TEXT = re.compile(rb'"content":"[^"]')
_USAGE = re.compile(rb'"completion_tokens":([0-9]+)')
Question = tuple[str, bytes | None]  # words, and a picture's file
Answered = tuple[float, float, int]  # seconds to the first token, to the last, tokens
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_END = b"0\r\n\r\n"  # of a body in chunks
_COLUMNS = (
    "side", "tokens_per_s", "first_token_p50_ms", "answer_p50_ms", "tokens_per_answer", "serving_cpu_ms",
    "client_cpu_ms", "engine_cpu_ms",
)  # fmt: skip


class Turn(NamedTuple):
    """What came of one round of one side; processor seconds of all its answers."""

    seconds: float
    answers: list[Answered]
    serving_cpu_s: float
    client_cpu_s: float
    process_cpu_s: float  # of the server's process, the serving thread's included


def _make_question(place: int, client: int, number: int, *, has_picture: bool) -> Question:
    """Make a question that no other side, round or client asks; ``place`` counts the turns of all sides."""
    if not has_picture:
        return f"Turn {place}, client {client}, number {number}: tell a story.", None
    file = io.BytesIO()
    seed = 100_000 * place + 1000 * number + client
    make_picture(seed, width=160, height=120).save(file, "JPEG", quality=90)
    return "Describe the picture.", file.getvalue()


async def _direct(engine: EngineClient, question: Question, num_tokens: int, *, is_whole: bool) -> Answered:
    started_s, first_s, count = time.perf_counter(), 0.0, 0
    sampling = SamplingParams(max_new_tokens=num_tokens, ignore_eos=is_whole)
    text, picture = question
    parts = (TextPart(text),) if picture is None else (ImagePart(picture), TextPart(text))
    messages = (Message(Role.USER, parts),)
    async for _ in await engine.submit(GenerateRequest(messages=messages, sampling=sampling)):
        first_s = first_s or time.perf_counter() - started_s
        count += 1
    return first_s, time.perf_counter() - started_s, count


async def _over_http(port: int, idle: list[Stream], question: Question, num_tokens: int, *, is_whole: bool) -> Answered:
    started_s, first_s, count = time.perf_counter(), 0.0, 0
    text, picture = question
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture is not None:
        url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body = json.dumps({
        "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": num_tokens,
        "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": is_whole,
    })  # fmt: skip
    reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    end = b""
    while not end.endswith(_END):
        if not (data := await reader.read(1 << 16)):
            raise SystemExit("the server closed a connection in the middle of an answer")
        if not first_s and _FIRST_TEXT.search(data):
            first_s = time.perf_counter() - started_s
        if (found := _USAGE.search(data)) is not None:
            count = int(found[1])
        end = (end + data)[-len(_END) :]
    idle.append((reader, writer))
    if not first_s or not count:
        raise SystemExit("an answer came without text or without its usage")
    return first_s, time.perf_counter() - started_s, count


async def _ask_in_turn(
    ask: Callable[[Question], Awaitable[Answered]], questions: list[list[Question]]
) -> tuple[float, list[Answered]]:
    """Let every client ask its questions one after the other, beside the others; return the seconds it took."""

    async def client(mine: list[Question]) -> list[Answered]:
        return [await ask(question) for question in mine]

    started_s = time.perf_counter()
    answers = await asyncio.gather(*(client(mine) for mine in questions))
    return time.perf_counter() - started_s, [answer for mine in answers for answer in mine]


async def _ask_at_random(
    ask: Callable[[Question], Awaitable[Answered]], questions: list[list[Question]], per_s: float
) -> tuple[float, list[Answered]]:
    """Ask at moments of which ``per_s`` come in a second, whether others are answered or not."""
    gaps, moment_s = random.Random(0), 0.0  # the same ones for both sides

    async def later(question: Question, seconds: float) -> Answered:
        await asyncio.sleep(seconds)
        return await ask(question)

    started_s, asked = time.perf_counter(), []
    for question in (question for mine in questions for question in mine):
        moment_s += gaps.expovariate(per_s)
        asked.append(later(question, moment_s))
    answers = await asyncio.gather(*asked)
    return time.perf_counter() - started_s, answers


def _ask_server(port: int, num_tokens: int, is_whole: bool, work: Connection) -> None:
    """Ask the questions of one round after the other; runs in a process of its own."""
    idle: list[Stream] = []

    async def ask(question: Question) -> Answered:
        return await _over_http(port, idle, question, num_tokens, is_whole=is_whole)

    with asyncio.Runner() as runner:
        while (turn := work.recv()) is not None:
            cpu_s = time.process_time()
            seconds, answers = runner.run(_take_turn(ask, *turn))
            while idle:  # the server lets go of those that wait for long
                idle.pop()[1].close()
            work.send((seconds, answers, time.process_time() - cpu_s))


async def _take_turn(
    ask: Callable[[Question], Awaitable[Answered]], questions: list[list[Question]], per_s: float | None
) -> tuple[float, list[Answered]]:
    return await (_ask_in_turn(ask, questions) if per_s is None else _ask_at_random(ask, questions, per_s))


async def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    host = make_host(options.model, policy=SourcePolicy(allow_files=False), disk_cache_bytes=0, threads=options.threads,
                     num_parallel=options.clients)  # fmt: skip
    engine, _ = await host.open(None)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(make_config(create_app(host, ServerSettings())))
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    found: dict[str, list[Turn]] = {"direct": [], "server": []}
    work, far_end = multiprocessing.Pipe()
    arguments = (listener.getsockname()[1], options.max_tokens, options.whole, far_end)
    client = multiprocessing.get_context("spawn").Process(target=_ask_server, args=arguments, daemon=True)
    client.start()

    async def ask(question: Question) -> Answered:
        return await _direct(engine, question, options.max_tokens, is_whole=options.whole)

    per_s: float | None = None
    rate = math.nan  # of answers, by the engine alone
    for idx in range(options.rounds + 1):
        for place, side in enumerate(sorted(found, reverse=idx % 2 == 1), start=2 * idx):
            questions = [
                [
                    _make_question(place, client, number, has_picture=options.pictures)
                    for number in range(options.questions)
                ]
                for client in range(options.clients)
            ]
            serving_s, process_s, client_s = time.thread_time(), time.process_time(), 0.0
            if side == "direct":
                seconds, answers = await _take_turn(ask, questions, per_s)
            else:
                work.send((questions, per_s))
                seconds, answers, client_s = await asyncio.to_thread(work.recv)
            turn = Turn(
                seconds, answers, time.thread_time() - serving_s, client_s, time.process_time() - process_s
            )  # fmt: skip
            if idx:  # the first round warms both sides
                found[side].append(turn)
            elif side == "direct" and options.load:
                rate = len(answers) / seconds
        if not idx and options.load:
            per_s = options.load * rate
    work.send(None)
    client.join()
    server.should_exit = True
    await running
    return [{"side": side, **_describe(turns)} for side, turns in found.items()]


def _describe(turns: list[Turn]) -> dict[str, Any]:
    answers = [answer for turn in turns for answer in turn.answers]

    def per_answer_ms(seconds: float) -> float:
        return 1e3 * seconds / len(answers)

    return {
        "tokens_per_s": median(sum(a[2] for a in turn.answers) / turn.seconds for turn in turns),
        "first_token_p50_ms": 1e3 * median(a[0] for a in answers),
        "answer_p50_ms": 1e3 * median(a[1] for a in answers),
        "tokens_per_answer": mean(a[2] for a in answers),
        "serving_cpu_ms": per_answer_ms(sum(turn.serving_cpu_s for turn in turns)),
        "client_cpu_ms": per_answer_ms(sum(turn.client_cpu_s for turn in turns)),
        "engine_cpu_ms": per_answer_ms(sum(turn.process_cpu_s - turn.serving_cpu_s for turn in turns)),
        "rounds_tokens_per_s": [sum(a[2] for a in turn.answers) / turn.seconds for turn in turns],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llava:tiny")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--questions", type=int, default=10, help="of each client in a round, one after the other")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--whole", action="store_true", help="every answer has --max-tokens tokens")
    parser.add_argument(
        "--load", type=float, help="ask at random moments, at this part of the rate at which the engine alone answers"
    )
    parser.add_argument("--pictures", action="store_true", help="every question is about a picture of its own")
    parser.add_argument("--threads", type=int, default=count_cpus())
    options = parser.parse_args()
    rows = asyncio.run(_measure(options))
    manifest = make_manifest(num_threads=options.threads) | {
        "model": options.model, "clients": options.clients, "rounds": options.rounds,
        "questions": options.questions, "max_tokens": options.max_tokens,
        "pictures": options.pictures, "whole": options.whole, "load": options.load,
    }  # fmt: skip
    print(make_table(rows, _COLUMNS))
    print(write_result("server_overhead", manifest, rows))


if __name__ == "__main__":
    main()
