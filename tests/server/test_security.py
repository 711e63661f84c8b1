"""One test at least for each class of fault that other servers have had, and for engines that fail on the way."""

from __future__ import annotations

import json
import resource
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from llavakit.core import errors
from llavakit.core.errors import ConfigError, LlavakitError, NonFiniteError, OverloadedError
from llavakit.server import parsing
from llavakit.server.failures import STATUS_BY_ERROR, status_of
from llavakit.server.file_limits import most_connections, raise_file_limit
from llavakit.server.requests import keep_alive_s
from llavakit.server.settings import ServerSettings, read_settings
from tests.server.live import URI, ScriptedEngine, ScriptedHost, chat_body, serving

_CHAT = "/v1/chat/completions"


def _post(url: str, path: str = _CHAT, body: Any = None, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=chat_body() if body is None else body, timeout=20, **options)


def _walk(kind: type[LlavakitError]) -> list[type[LlavakitError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _walk(child))]


def test_every_error_has_a_status() -> None:
    for kind in _walk(LlavakitError):
        if kind.__module__ == errors.__name__:
            assert 400 <= status_of(kind("x")) < 600
    assert set(STATUS_BY_ERROR) <= set(_walk(LlavakitError))


def test_keys_are_needed_compared_and_limited() -> None:
    host = ScriptedHost(ScriptedEngine())
    with serving(host, api_keys=("secret-one", "secret-two"), requests_per_minute=3) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(url, headers={"accept": "text/html"}).status_code == 200
        for headers in ({}, {"Authorization": "secret-one"}, {"Authorization": "Bearer secret-on"},
                        {"Authorization": "Basic secret-one"}, {"Authorization": "Bearer"}):  # fmt: skip
            refused = _post(url, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert "secret" not in refused.text
        for path in ("/metrics", "/v1/models", "/api/tags", "/api/llavakit/info", "/openapi.json"):
            assert httpx.get(f"{url}{path}").status_code == 401, path
        good = {"Authorization": "Bearer secret-two"}
        assert [_post(url, headers=good).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert _post(url, headers={"Authorization": "Bearer secret-one"}).status_code == 200


def test_a_key_is_what_its_bytes_are_in_utf8() -> None:
    with serving(ScriptedHost(ScriptedEngine()), api_keys=("schlüssel-eins",)) as url:
        assert _post(url, headers={"Authorization": "Bearer schlüssel-eins".encode()}).status_code == 200
        assert _post(url, headers={"Authorization": "Bearer schlussel-eins"}).status_code == 401


def test_beyond_loopback_a_key_is_needed() -> None:
    with pytest.raises(ConfigError, match="no key is set"):
        ServerSettings(host="0.0.0.0").check()
    ServerSettings(host="0.0.0.0", api_keys=("long-enough",)).check()
    ServerSettings(host="0.0.0.0", insecure_no_key=True).check()
    with pytest.raises(ConfigError, match="shorter than 8"):
        ServerSettings(api_keys=("short",)).check()


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil", "[x", "a" * 300])
def test_names_of_others_are_refused_against_rebinding(name: str) -> None:
    with serving(ScriptedHost(ScriptedEngine()), allowed_hosts=("models.example",)) as url:
        assert httpx.get(f"{url}/v1/models", headers={"Host": name}).status_code in (400, 403)
        for good in ("localhost", "127.0.0.1:1", "[::1]:80", "models.example"):
            assert httpx.get(f"{url}/v1/models", headers={"Host": good}).status_code == 200, good


def test_web_pages_of_others_may_not_call_it_unless_listed() -> None:
    with serving(ScriptedHost(ScriptedEngine()), allowed_origins=("https://good.example",)) as url:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "https://good.example.evil"):
            refused = _post(url, headers={"Origin": origin})
            assert refused.status_code == 403, origin
            assert "access-control-allow-origin" not in refused.headers
        allowed = _post(url, headers={"Origin": "https://good.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-credentials" not in allowed.headers
        assert "retry-after" in allowed.headers["access-control-expose-headers"]
        for asked, named in (
            (None, "authorization, content-type"), ("authorization,x-stainless-lang", "authorization,x-stainless-lang"),
            ("a\tb", "authorization, content-type"),
        ):  # fmt: skip
            headers = {"Origin": "https://good.example"}
            headers |= {} if asked is None else {"Access-Control-Request-Headers": asked}
            preflight = httpx.options(f"{url}{_CHAT}", headers=headers)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-headers"] == named
        assert _post(url, headers={"Origin": url}).status_code == 200


@pytest.mark.parametrize(
    "source",
    ["/etc/passwd", "file:///etc/passwd", "../../etc/passwd", "http://127.0.0.1/x.png", "https://example.com/x.png",
     "ftp://x/y", "data:text/html;base64,PGI+", "data:image/png;base64,AAAA", "data:image/png;base64,", "",
     "\\\\host\\x"],
)  # fmt: skip
def test_no_path_no_address_and_no_rubbish_is_opened(source: str) -> None:
    from llavakit.api.host import make_host

    with serving(make_host("llava:tiny")) as url:
        refused = _post(url, body=chat_body(url=source, model="llava:tiny"))
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] in ("image-source", "bad-image")
        assert "passwd" not in refused.text
        assert "root:" not in refused.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"messages": NaN}', b'{"messages": [' + b"[" * 5000,
     b'{"a":' * 200 + b"1" + b"}" * 200, b'{"messages": []}', b'{"messages": [{"role": "robot", "content": "x"}]}',
     b'{"messages": [{"role": "user"}]}', b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
     b'{"messages": [{"role": "user", "content": 5}]}', b'{"messages": 1e999}'],
)  # fmt: skip
def test_rubbish_is_refused_without_a_fault(body: bytes) -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        for path in (_CHAT, "/v1/completions", "/v1/responses", "/api/chat", "/api/generate", "/api/show",
                     "/api/llavakit/attention"):  # fmt: skip
            reply = httpx.post(f"{url}{path}", content=body, timeout=20)
            assert 400 <= reply.status_code < 500, (path, reply.text)
            assert reply.json()["error"]


@pytest.mark.parametrize("value", [-1, 1e308, "1", True, None, [], {}, 1 << 70])
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_tokens", "n", "seed", "presence_penalty",
                                  "frequency_penalty", "top_logprobs", "min_p", "repetition_penalty",
                                  "min_tokens"])  # fmt: skip
def test_no_number_breaks_it(name: str, value: Any, scripted: str) -> None:
    reply = _post(scripted, body=chat_body(url=None, **{"temperature": 0.5, name: value}))
    assert reply.status_code in (200, 400), reply.text
    if value in ("1", []) or value == {} or value is True:
        assert reply.status_code == 400


@pytest.fixture(scope="module")
def scripted() -> Any:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        yield url


def test_bodies_are_bounded_before_they_are_parsed() -> None:
    with serving(ScriptedHost(ScriptedEngine()), max_body_mib=1) as url:
        large = b'{"messages": "' + b"x" * (1 << 21) + b'"}'
        assert httpx.post(f"{url}{_CHAT}", content=large).status_code == 413
        pieces = (b"x" * 65536 for _ in range(64))  # no length is declared
        assert httpx.post(f"{url}{_CHAT}", content=pieces).status_code == 413
        packed = httpx.post(f"{url}{_CHAT}", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
        assert packed.status_code == 415
        assert _post(url).status_code == 200


def _converse(url: str, *pieces: bytes) -> bytes:
    """Send pieces as they are and return all that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as client:
        reply = b""
        try:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.02)
            while data := client.recv(1 << 16):
                reply += data
        except ConnectionError:  # the server hung up while we were still sending
            pass
        return reply


_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n"],
        [_HEAD + b"x: " + b"a" * 200_000],
        [_HEAD, *[b"x-%d: " % n + b"a" * 9_000 + b"\r\n" for n in range(10)]],
        [_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", *[b"x: " + b"a" * 9_000 + b"\r\n"] * 10],
        [_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 200_000],
    ],
    ids=["path", "header", "headers", "trailers", "extension"],
)
def test_heads_are_bounded(scripted: str, pieces: list[bytes]) -> None:
    assert _converse(scripted, *pieces)[:12] in (b"HTTP/1.1 400", b"")
    assert _post(scripted).status_code == 200


def test_heads_that_stall_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "_MAX_HEAD_S", 0.5)
    with serving(ScriptedHost(ScriptedEngine(pause_s=0.3))) as url:
        for pieces in ([], [_HEAD], [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /hea"]):
            reply = _converse(url, *pieces)  # returns when the server hangs up
            assert reply.count(b"HTTP/1.1 200") == (len(pieces) == 2)
        assert _post(url).status_code == 200  # an answer of 1.2 s is no head


def test_one_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ScriptedHost(ScriptedEngine())) as url:
        monkeypatch.setattr(parsing, "most_connections", lambda: 3)
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        idle = [socket.create_connection(address) for _ in range(3)]
        with socket.create_connection(address, timeout=5) as client:  # nothing sent: no reset can overtake the reply
            reply = client.makefile("rb").read()
        head, body = reply.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert (json.loads(body)["error"]["code"], len(body)) == ("overloaded", int(_length(head)))
        for connection in idle:
            connection.close()
        deadline = time.monotonic() + 5
        while (status := _try_post(url)) != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert status == 200


def _length(head: bytes) -> bytes:
    return next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length"))


def _try_post(url: str) -> int | None:
    try:
        return _post(url).status_code
    except httpx.TransportError:  # still one too many
        return None


def test_connections_leave_files_for_the_models() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        assert most_connections() == 200
        raise_file_limit()
        raised, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised == (16_384 if hard == resource.RLIM_INFINITY else min(hard, 16_384))
        assert most_connections() == raised - min(256, raised // 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_long_body_is_no_long_head(scripted: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "' + b"a" * 3_000_000 + b'"}]}'
    whole = _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert _converse(scripted, whole).startswith(b"HTTP/1.1 200")
    pieces = [
        b"%x\r\n" % 50_000 + body[start : start + 50_000].ljust(50_000) + b"\r\n"
        for start in range(0, len(body), 50_000)
    ]
    reply = _converse(scripted, _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *pieces, b"0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        b"Content-Length: +5\r\n\r\n{}   ",
        b"x y: 1\r\n\r\n",
        b"x: a\x00b\r\n\r\n",
    ],
)
def test_requests_that_can_be_read_in_two_ways_are_refused(scripted: str, head: bytes) -> None:
    assert _converse(scripted, _HEAD + head).startswith(b"HTTP/1.1 400")


def test_parts_are_counted_before_they_are_checked(scripted: str) -> None:
    parts = [{"type": "text", "text": ""}] * 1000
    message = {"role": "user", "content": parts}
    for path, body in (
        (_CHAT, {"messages": [message] * 5}),
        ("/v1/responses", {"input": [message] * 5}),
        ("/api/chat", {"model": "scripted", "messages": [{"role": "user", "content": "a"}] * 5000}),
    ):
        refused = _post(scripted, path, body)
        assert refused.status_code == 400, path
        assert "at most 4096" in refused.text


def test_biases_are_bounded_and_each_token_has_one_name(scripted: str) -> None:
    assert _post(scripted, body=chat_body(logit_bias={"5": 1.0})).status_code == 200
    for bias in ({str(token): 0 for token in range(1001)}, {"5": 1, "05": 1}, {"-1": 1}, {"٥": 1}):
        assert _post(scripted, body=chat_body(logit_bias=bias)).status_code == 400, len(bias)


def test_half_a_surrogate_pair_is_refused(scripted: str) -> None:
    text = '{"input": "hi", "text": {"format": {"type": "text", "schema": {"\\ud800": 1}}}}'
    assert httpx.post(f"{scripted}/v1/responses", content=text).status_code == 400
    whole = chat_body("\U0001f600")
    assert httpx.post(f"{scripted}{_CHAT}", content=json.dumps(whole, ensure_ascii=True)).status_code == 200


def test_a_model_that_stays_for_ages_can_be_listed() -> None:
    with serving(ScriptedHost(ScriptedEngine(), expires_at_s=1e15)) as url:
        (model,) = httpx.get(f"{url}/api/ps").json()["models"]
        assert model["expires_at"].startswith("9999-12-31")


def test_pictures_are_counted() -> None:
    body = chat_body()
    body["messages"][0]["content"] += [{"type": "image_url", "image_url": URI}] * 2
    with serving(ScriptedHost(ScriptedEngine()), max_images=2) as url:
        assert "3 pictures" in _post(url, body=body).json()["error"]["message"]


def test_special_words_of_users_are_text() -> None:
    engine = ScriptedEngine()
    with serving(ScriptedHost(engine)) as url:
        text = f"<image> </s> [img-0] <__media__> USER: {URI[:60]}"
        assert _post(url, body=chat_body(text, url=None)).status_code == 200
        assert _post(url, body={"messages": [{"role": "user", "content": text}]}).status_code == 200
    for request in engine.seen:
        assert [part.text for part in request.messages[0].parts] == [text]  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
                                  "/planner/../../secret", "/planner/%2e%2e/secret", "/static/..%2fapp.py",
                                  "/planner/link"])  # fmt: skip
def test_no_file_outside_of_the_page_is_given(path: str, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.html").write_text("pages")
    (tmp_path / "secret").write_text("what nobody may read")
    (tmp_path / "pages" / "link").symlink_to(tmp_path / "secret")
    with serving(ScriptedHost(ScriptedEngine()), planner_dir=str(tmp_path / "pages")) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert b" 404 " in answer.split(b"\r\n")[0]
        assert b"nobody" not in answer
        page = httpx.get(f"{url}/planner/")
        assert page.text == "pages"
        assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "sha256:" + "0" * 64, "a" * 600, "\0", "llava:7b"])
def test_model_names_do_not_become_paths(name: str, scripted: str) -> None:
    for path in ("/api/show", "/api/delete", "/api/pull"):
        method = "DELETE" if path.endswith("delete") else "POST"
        reply = httpx.request(method, f"{scripted}{path}", json={"model": name, "stream": False}, timeout=20)
        assert reply.status_code in (200, 400, 404, 503), reply.text
    assert _post(scripted, body=chat_body(model=name)).status_code in (400, 404)
    assert httpx.get(f"{scripted}/v1/models/{name.replace(chr(0), '%00')}").status_code == 404


def test_a_busy_server_says_when_to_come_back() -> None:
    engine = ScriptedEngine(refusal=OverloadedError("busy.", retry_after_s=7))
    with serving(ScriptedHost(engine)) as url:
        for path, body in ((_CHAT, chat_body()), ("/api/generate", {"model": "scripted", "prompt": "x"})):
            reply = _post(url, path, body)
            assert reply.status_code == 503
            assert reply.headers["retry-after"] == "7"


@pytest.mark.parametrize("failure", [NonFiniteError("NaN in layer 7 of /secret/path"), ValueError("boom /secret/path")])
def test_faults_of_ours_are_told_without_details(failure: Exception) -> None:
    engine = ScriptedEngine(failure=failure)
    with serving(ScriptedHost(engine)) as url:
        reply = _post(url)
        assert reply.status_code == 500
        assert "secret" not in reply.text
        if isinstance(failure, LlavakitError):
            lines = _post(url, body=chat_body(stream=True)).text.strip().split("\n\n")
            last = json.loads(lines[-1].removeprefix("data: "))
            assert last["error"]["type"] == "server_error"
            assert not any("finish_reason" in line and '"stop"' in line for line in lines)
            tail = _post(url, "/api/chat", {"model": "scripted", "messages": [{"role": "user", "content": "x"}]})
            assert "error" in json.loads(tail.text.strip().splitlines()[-1])
        assert httpx.get(f"{url}/health").status_code == 200


def test_whoever_goes_away_stops_the_work() -> None:
    engine = ScriptedEngine(words=["word "] * 1000, pause_s=0.02)
    with serving(ScriptedHost(engine)) as url:
        with httpx.stream("POST", f"{url}{_CHAT}", json=chat_body(stream=True), timeout=10) as response:
            next(response.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}{_CHAT}", json=chat_body(), timeout=0.5)
        deadline = time.monotonic() + 5
        while engine.num_open and time.monotonic() < deadline:
            time.sleep(0.02)
        assert engine.num_open == 0
        assert engine.num_cancelled >= 2


def test_stopping_the_server_lets_answers_end() -> None:
    engine = ScriptedEngine(words=["a "] * 20, pause_s=0.02)
    with serving(ScriptedHost(engine)) as url, httpx.Client(timeout=10) as client:
        request = client.build_request("POST", f"{url}{_CHAT}", json=chat_body(stream=True))
        response = client.send(request, stream=True)
        lines = response.iter_lines()
        next(lines)
        # The block has ended the server; what was on its way came to its end.
        text = "".join(lines)
    assert "[DONE]" in text


def test_unknown_paths_and_methods_have_bodies_of_the_dialect(scripted: str) -> None:
    assert httpx.get(f"{scripted}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert isinstance(httpx.get(f"{scripted}/api/nothing").json()["error"], str)
    refused = httpx.get(f"{scripted}{_CHAT}")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    for path in ("/health", "/health/live", "/v1/models", "/api/tags", "/api/version"):
        assert httpx.head(f"{scripted}{path}").status_code == 200
    for name in ("create", "push", "copy", "embed", "embeddings", "blobs/sha256:1"):
        assert httpx.post(f"{scripted}/api/{name}", json={}).status_code == 501


def test_log_lines_hold_no_contents(scripted: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _post(scripted, body=chat_body("a very private question"), headers={"Authorization": "Bearer a-private-key"})
    time.sleep(0.1)
    assert "/v1/chat/completions" in caplog.text
    assert "private" not in caplog.text
    assert "base64" not in caplog.text


def test_settings_have_one_precedence_and_say_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nparallel = 3\nqueue = 9\nallowed_hosts = ["a", "b"]\nkeep_alive_s = 5\n')
    environment = {"LLAVAKIT_PORT": "2", "LLAVAKIT_PARALLEL": "4", "LLAVAKIT_ALLOW_URLS": "true"}
    settings, origins = read_settings({"port": 3, "queue": None}, environment=environment, file=file)
    assert (settings.port, settings.parallel, settings.queue, settings.allow_urls) == (3, 4, 9, True)
    assert (settings.allowed_hosts, settings.keep_alive_s) == (("a", "b"), 5.0)
    assert [origins[name] for name in ("port", "parallel", "queue", "host")] == [
        "flag",
        "environment",
        "file",
        "default",
    ]
    for bad, message in (('nonsense = 1', "no setting"), ('port = "x"', "port is 'x'"), ("port = 99999", "between"),
                         ("port =", "cannot be read")):  # fmt: skip
        file.write_text(bad)
        with pytest.raises(ConfigError, match=message):
            read_settings({}, environment={}, file=file)
    with pytest.raises(ConfigError, match="parallel is 'many'"):
        read_settings({}, environment={"LLAVAKIT_PARALLEL": "many"})


@pytest.mark.parametrize("origin", ["*", "example.org", "https://example.org/page", ""])
def test_an_origin_is_no_pattern(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins has"):
        read_settings({"allowed_origins": [origin]}, environment={})


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("1h30m", 5400), (5, 5), ("5", 5), (0, 0), ("250ms", 0.25)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert keep_alive_s(text) == seconds


def test_durations_for_ever_and_none_and_bad_ones() -> None:
    assert keep_alive_s(-1) == keep_alive_s("-1") == keep_alive_s("-1m") == float("inf")
    assert keep_alive_s(None) is None
    for bad in ("", "soon", "5x", "m5", "5m!", "-", "--5", "+-5", "5 5", "1e9"):
        with pytest.raises(errors.PromptError, match="no duration"):
            keep_alive_s(bad)
