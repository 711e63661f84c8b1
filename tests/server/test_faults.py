"""What goes wrong between client and server has one end, the right status, and leaves no work behind."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from llavakit.core.errors import DiskFullError, ImageSourceError
from llavakit.core.requests import AttentionMap, GenerateRequest
from llavakit.core.types import FinishReason, TokenEvent
from llavakit.server.app import create_app
from llavakit.server.lifecycle import DrainingServer, make_config
from llavakit.server.log_lines import JsonLines
from llavakit.server.settings import ServerSettings
from tests.server.live import ScriptedAnswer, ScriptedEngine, ScriptedHost, chat_body, serving

_CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("origin", ["http://[", "null", "http://[::1", "http://evil.example\u00ff"])
def test_an_origin_that_is_no_address_is_refused(origin: str) -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        headers = {"origin": origin.encode("latin-1")}
        assert httpx.post(f"{url}{_CHAT}", json=chat_body(), headers=headers).status_code == 403


def test_a_client_that_vanishes_while_it_sends_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
            head = f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{"
            client.sendall(head.encode())
            time.sleep(0.1)
        counted = f'llavakit_http_requests_total{{route="{_CHAT}",status="499"}} 1'
        deadline = time.monotonic() + 5
        while counted not in (text := httpx.get(f"{url}/metrics").text) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert counted in text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavakit.server.context._MAX_PAUSE_S", 0.2)
    with serving(ScriptedHost(ScriptedEngine())) as url:
        client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        client.sendall(f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{".encode())
        client.settimeout(10)
        assert client.recv(4096).startswith(b"HTTP/1.1 408")
        client.close()


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavakit.server.context._MAX_PAUSE_S", 0.3)
    with serving(ScriptedHost(ScriptedEngine())) as url, _connect(url) as client:
        client.sendall(f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n".encode())
        for _ in range(100):  # never a pause of 0.3 s
            client.sendall(b" ")
            if select.select([client], [], [], 0.05)[0]:
                break
        head, body = _read_reply(client)
        assert head.startswith(b"HTTP/1.1 408")
        assert b"bytes a second" in body


def _connect(url: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    client.settimeout(10)
    return client


def _read_reply(client: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of a reply that says how long it is."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(4096)
    head, body = data.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    while len(body) < length:
        body += client.recv(4096)
    return head, body


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("piece", [1, 50, 1 << 20])
def test_a_request_that_offers_another_protocol_keeps_its_body(piece: int, is_chunked: bool) -> None:
    """Java's own client, and whatever is built on it, offers HTTP/2 with its first request."""
    body = json.dumps(chat_body(url=None)).encode()
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(body)}"
    head = (
        f"POST {_CHAT} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n{framing}\r\nHost: localhost\r\n"
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\nUser-Agent: Java-http-client\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    data = head.encode() + (b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body)
    engine = ScriptedEngine()
    with serving(ScriptedHost(engine)) as url, _connect(url) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the connection goes on
            for start in range(0, len(data), piece):
                client.sendall(data[start : start + piece])
            found_head, found_body = _read_reply(client)
            assert found_head.startswith(b"HTTP/1.1 200")
            assert json.loads(found_body)["choices"][0]["message"]["content"] == "Hello world."
    assert len(engine.seen) == 2


def test_an_offer_without_a_body_is_declined() -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url, _connect(url) as client:
        offer = (
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        client.sendall(f"GET /health/live HTTP/1.1\r\nHost: localhost\r\n{offer}\r\n".encode())
        assert _read_reply(client)[0].startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _read_reply(client)[0].startswith(b"HTTP/1.1 200")


def test_many_offers_at_once_are_answered_one_after_the_other() -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with serving(ScriptedHost(ScriptedEngine())) as url, _connect(url) as client:
        client.sendall(request * 700)
        replies = b""
        while replies.count(b"HTTP/1.1 200") < 700 and (data := client.recv(1 << 16)):
            replies += data
    assert replies.count(b"HTTP/1.1 200") == 700


@pytest.mark.parametrize("request_line", ["CONNECT example.com:443 HTTP/1.1", "PRI * HTTP/2.0"])
def test_other_protocols_are_refused_at_once(request_line: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        for further in ("", "Connection: Upgrade\r\nUpgrade: h2c\r\n"):
            with _connect(url) as client:
                client.sendall(f"{request_line}\r\nHost: localhost\r\n{further}\r\n".encode())
                assert client.recv(4096).startswith(b"HTTP/1.1 4")
        assert httpx.get(f"{url}/health/live").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class _SlowToAccept(ScriptedEngine):
    async def submit(self, request: GenerateRequest) -> ScriptedAnswer:
        await asyncio.sleep(0.05)
        return await super().submit(request)


def test_whoever_goes_away_before_the_stream_begins_leaves_nothing_behind() -> None:
    engine = _SlowToAccept(words=["word "] * 1000, pause_s=0.02)
    with serving(ScriptedHost(engine)) as url:
        body = json.dumps(chat_body(stream=True, url=None)).encode()
        head = f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(5):
            client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
            client.sendall(head + body)
            time.sleep(0.03)
            client.close()
        deadline = time.monotonic() + 5
        while engine.num_cancelled < len(engine.seen) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert engine.num_cancelled == len(engine.seen)


def test_an_answer_that_fails_on_the_way_ends_with_one_error() -> None:
    engine = ScriptedEngine(failure=ValueError("boom /secret/path"))
    with serving(ScriptedHost(engine)) as url:
        lines = httpx.post(f"{url}{_CHAT}", json=chat_body(stream=True)).text.strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        assert sum('"error"' in line for line in lines) == 1
        told = httpx.post(f"{url}/api/generate", json={"model": "scripted", "prompt": "x"}).text.strip().splitlines()
        assert set(json.loads(told[-1])) == {"error"}
        assert "secret" not in "".join(lines + told)


class _Stopped(ScriptedAnswer):
    async def __aiter__(self) -> Any:
        yield TokenEvent(request_idx=0, text="half", token_id=0)
        yield TokenEvent(request_idx=0, text="", token_id=None, finish_reason=FinishReason.CANCELLED)


def test_an_answer_that_the_server_ends_does_not_look_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()

    async def submit(request: GenerateRequest) -> _Stopped:
        return _Stopped(engine, ("half",), None)

    monkeypatch.setattr(engine, "submit", submit)
    with serving(ScriptedHost(engine)) as url:
        text = httpx.post(f"{url}{_CHAT}", json=chat_body(stream=True)).text
        assert '"stop"' not in text
        assert "[DONE]" not in text
        assert "stopping" in text
        assert httpx.post(f"{url}{_CHAT}", json=chat_body()).status_code == 503


def test_idle_models_do_not_make_the_server_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ScriptedHost(ScriptedEngine())
    monkeypatch.setattr(host, "engines", list)
    with serving(host, default_model="scripted") as url:
        assert httpx.get(f"{url}/health").status_code == 200


def test_errors_of_the_store_and_of_the_network_name_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(refusal=ImageSourceError("the host 'db.internal' cannot be found"))
    host = ScriptedHost(engine)

    async def remove(name: str) -> None:
        raise DiskFullError("/home/somebody/models is full")

    monkeypatch.setattr(host, "remove", remove)
    with serving(host) as url:
        reply = httpx.post(f"{url}{_CHAT}", json=chat_body())
        assert reply.status_code == 400
        assert "internal" not in reply.text
        reply = httpx.request("DELETE", f"{url}/api/delete", json={"model": "m"})
        assert reply.status_code == 502
        assert "somebody" not in reply.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (_CHAT, chat_body(max_tokens=3, max_completion_tokens=4)),
        (_CHAT, chat_body(stream_options={"include_usage": True})),
        (_CHAT, chat_body(response_format={"type": "text", "json_schema": {"schema": {}}})),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}),
        ("/v1/responses", {"input": [{"role": "user", "content": [
            {"type": "input_text", "text": "x", "image_url": "data:image/png;base64,eA=="}]}]}),
        ("/api/generate", {"model": "scripted", "prompt": "x", "raw": True, "system": "y"}),
        ("/api/generate", {"model": "scripted", "prompt": "x", "top_logprobs": 2}),
        ("/api/generate", {"model": "scripted", "prompt": "x", "raw": True, "images": ["eA=="] * 17}),
    ],
)  # fmt: skip
def test_what_would_be_without_effect_is_refused(path: str, body: dict[str, Any]) -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        assert httpx.post(f"{url}{path}", json=body).status_code == 400


def test_too_many_requests_of_a_key_say_when_to_come_back() -> None:
    with serving(ScriptedHost(ScriptedEngine()), api_keys=("a-long-secret",), requests_per_minute=1) as url:
        headers = {"authorization": "Bearer a-long-secret"}
        httpx.get(f"{url}/v1/models", headers=headers)
        reply = httpx.get(f"{url}/v1/models", headers=headers)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "60")


def test_log_lines_are_json() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "two\nlines", (), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines"
    record.fields = {"route": "/health", "status": 200}
    assert json.loads(JsonLines().format(record))["status"] == 200


def test_a_preset_that_nobody_knows_is_refused_everywhere() -> None:
    body = {**chat_body(), "answer": "red", "preset": "none"}
    del body["temperature"]
    with serving(ScriptedHost(ScriptedEngine())) as url:
        assert httpx.post(f"{url}/api/llavakit/attention", json=body).status_code == 400


def test_others_are_answered_while_attention_is_written() -> None:
    may_end = threading.Event()

    def rows() -> Iterator[tuple[float, ...]]:
        assert may_end.wait(30)
        yield from [(0.25, 1e-6), (0.0, 1.0)]

    class Engine(ScriptedEngine):
        async def attend(self, request: GenerateRequest, answer: str) -> AttentionMap:
            return AttentionMap(texts=("é", '"'), weights=rows(), patches_per_side=1)  # type: ignore[arg-type]

    body = {**chat_body(), "answer": "red"}
    del body["temperature"]
    with serving(ScriptedHost(Engine())) as url, ThreadPoolExecutor(1) as executor:
        asked = executor.submit(httpx.post, f"{url}/api/llavakit/attention", json=body, timeout=60)
        time.sleep(0.5)
        try:
            assert httpx.get(f"{url}/health/live", timeout=20).status_code == 200
        finally:
            may_end.set()
        answer = asked.result()
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"texts": ["é", '"'], "weights": [[0.25, 1e-6], [0.0, 1.0]], "patches_per_side": 1}


def test_an_answer_longer_than_the_grace_period_ends_with_an_error() -> None:
    answers: list[ScriptedAnswer] = []

    class _Kept(ScriptedEngine):
        async def submit(self, request: GenerateRequest) -> ScriptedAnswer:
            answers.append(await super().submit(request))
            return answers[-1]

    engine = _Kept(words=["a "] * 10_000, pause_s=0.01)
    host = ScriptedHost(engine)

    async def drain(grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        for answer in answers:
            answer.cancel()

    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(host, ServerSettings())
    server = DrainingServer(make_config(app), drain, grace_s=0.2)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}{_CHAT}"
    with httpx.Client(timeout=20) as client:
        response = client.send(client.build_request("POST", address, json=chat_body(stream=True)), stream=True)
        lines = response.iter_lines()
        next(lines)
        server.should_exit = True
        text = "".join(lines)
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert "stopping" in text
    assert "[DONE]" not in text


def test_bodies_of_all_requests_together_are_bounded() -> None:
    with serving(ScriptedHost(ScriptedEngine()), max_body_mib=1, max_bodies_mib=1) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as slow:
            head = f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n".encode()
            slow.sendall(head + b"{" + b" " * 700_000)
            _wait_for_gauge(url, "llavakit_request_body_bytes", 700_001)
            refused = httpx.post(f"{url}{_CHAT}", content=b" " * 500_000)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "2"
            assert "1048576 is the limit of all together" in refused.json()["error"]["message"]
            assert httpx.post(f"{url}{_CHAT}", json=chat_body()).status_code == 200  # there is room for a small one
        _wait_for_gauge(url, "llavakit_request_body_bytes", 0)
        assert httpx.post(f"{url}{_CHAT}", content=b" " * 500_000).status_code == 400


def test_one_large_body_needs_no_second_setting() -> None:
    with serving(ScriptedHost(ScriptedEngine()), max_body_mib=4, max_bodies_mib=1) as url:
        assert httpx.post(f"{url}{_CHAT}", content=b" " * 2_000_000).status_code == 400  # read whole, and no JSON


def test_a_body_counts_no_more_once_its_answer_begins() -> None:
    engine = ScriptedEngine(words=["word "] * 1000, pause_s=0.02)
    with (
        serving(ScriptedHost(engine)) as url,
        httpx.stream("POST", f"{url}{_CHAT}", json=chat_body(stream=True)) as reply,
    ):
        next(reply.iter_lines())
        _wait_for_gauge(url, "llavakit_request_body_bytes", 0)


def _wait_for_gauge(url: str, name: str, value: int) -> None:
    deadline = time.monotonic() + 5
    while f"\n{name} {value}\n" not in (text := httpx.get(f"{url}/metrics").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
