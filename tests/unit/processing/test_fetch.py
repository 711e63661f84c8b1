"""Pictures from the web: addresses that may not be reached, redirects, limits; a server of our own answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llavakit.core.errors import BadImageError, ImageSourceError
from llavakit.processing.fetch import fetch, is_global_address, shown_url
from llavakit.processing.sources import SourcePolicy

_LOCAL = SourcePolicy(allow_private_hosts=True, timeout_s=20.0, max_bytes=10_000)


class _Handler(BaseHTTPRequestHandler):
    hosts: list[str] = []  # noqa: RUF012 - what the server was asked for, read by the tests

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "redirect":
            self._answer(302, b"", {"Location": rest})
        elif kind == "loop":
            self._answer(302, b"", {"Location": "/loop"})
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 4096)
            except OSError:
                return
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            self._drip()
        elif kind == "slow-headers":
            self._drip()
        elif kind == "gzip":
            self._answer(200, b"\x1f\x8b", {"Content-Encoding": "gzip"})
        elif kind == "missing":
            self._answer(404, b"no", {})
        else:
            self._answer(200, b"picture", {})

    def _drip(self) -> None:
        try:
            for _ in range(300):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            return

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def _here(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
     "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
     "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_global_address(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_global_address(address)


def test_pinned_address_gets_the_original_host(port: int) -> None:
    """The name is resolved once; the connection goes to that address and the server still sees the name."""
    asked = []

    def resolve(host: str, number: int) -> list[str]:
        asked.append((host, number))
        return ["127.0.0.1"]

    _Handler.hosts.clear()
    assert fetch(f"http://pictures.example:{port}/a.png", _LOCAL, resolve=resolve) == b"picture"
    assert asked == [("pictures.example", port)]
    assert _Handler.hosts == [f"pictures.example:{port}"]


def test_name_in_another_script(port: int) -> None:
    _Handler.hosts.clear()
    assert fetch(f"http://bücher.example:{port}/a", _LOCAL, resolve=_here) == b"picture"
    assert _Handler.hosts == [f"xn--bcher-kva.example:{port}"]


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::1"], ["::ffff:192.168.0.1"]])
def test_name_with_any_private_address_is_refused(answer: list[str]) -> None:
    with pytest.raises(ImageSourceError, match="not a public address"):
        fetch("https://pictures.example/a.png", SourcePolicy(), resolve=lambda host, port: answer)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
def test_written_forms_of_this_machine_are_refused(host: str) -> None:
    with pytest.raises(ImageSourceError, match=r"not a public address|cannot be found"):
        fetch(f"http://{host}/a.png", SourcePolicy())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://a.example/x", "is not allowed"), ("http:///x", "is not allowed"),
        ("https://u:p@a.example/", "password"),
        ("https://a.example:22/x", "port 22"), ("https://a.example:99999/", "no valid URL"),
        ("http://[::1", "no valid"),
        ("https://\udcff.example/", "no valid URL"),
    ],
)  # fmt: skip
def test_url_that_is_refused_before_any_connection(url: str, message: str) -> None:
    with pytest.raises(ImageSourceError, match=message):
        fetch(url, SourcePolicy(), resolve=lambda host, port: ["1.1.1.1"])


def test_messages_show_the_port_and_no_user(port: int) -> None:
    with pytest.raises(ImageSourceError, match=f"'http://a.example:{port}/missing/a' answered 404"):
        fetch(f"http://a.example:{port}/missing/a?key=secret", _LOCAL, resolve=_here)
    assert shown_url("http://u:p@[::1]:8080/a.png?key=secret#part") == "'http://[::1]:8080/a.png'"
    assert len(shown_url(f"https://a.example/{'long/' * 100}")) < 130


def test_switches() -> None:
    with pytest.raises(ImageSourceError, match="switched off"):
        fetch("https://a.example/", SourcePolicy(allow_urls=False))
    with pytest.raises(ImageSourceError, match="come from https addresses"):
        fetch("http://a.example/", SourcePolicy(allow_http=False))


def test_redirect_is_followed_and_checked_again(port: int) -> None:
    start = f"http://one.example:{port}/redirect"
    assert fetch(f"{start}//two.example:{port}/a", _LOCAL, resolve=_here) == b"picture"
    with pytest.raises(ImageSourceError, match=r"'ftp://two.example/a' is not allowed"):
        fetch(f"{start}/ftp://two.example/a", _LOCAL, resolve=_here)
    with pytest.raises(ImageSourceError, match=r"invalid address|no valid URL"):
        fetch(f"{start}/http://[", _LOCAL, resolve=_here)


def test_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host is public; its answer points to the metadata address of a cloud."""
    from llavakit.processing import fetch as module

    seen = []

    def request(parts: Any, address: str, policy: SourcePolicy, deadline: float) -> str:
        seen.append(address)
        return "https://169.254.169.254/latest/"

    monkeypatch.setattr(module, "_request", request)
    answers = {"public.example": ["1.1.1.1"], "169.254.169.254": ["169.254.169.254"]}
    with pytest.raises(ImageSourceError, match=r"'https://169.254.169.254/latest/' is not a public address"):
        fetch("https://public.example/a", SourcePolicy(), resolve=lambda host, port: answers[host])
    monkeypatch.setattr(module, "_request", lambda *args: "http://public.example/b")
    with pytest.raises(ImageSourceError, match="from https to an unencrypted"):
        fetch("https://public.example/a", SourcePolicy(), resolve=lambda host, port: answers[host])
    assert seen == ["1.1.1.1"]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("loop", ImageSourceError, "more than 3 redirects"), ("missing", ImageSourceError, "answered 404"),
        ("endless", BadImageError, "more than 10000 bytes"), ("gzip", ImageSourceError, "compressed body"),
    ],
)  # fmt: skip
def test_answers_that_are_no_picture(port: int, path: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fetch(f"http://a.example:{port}/{path}", _LOCAL, resolve=_here)


@pytest.mark.parametrize("path", ["drip", "slow-headers"])
def test_total_time_is_limited(port: int, path: str) -> None:
    """A byte now and then keeps any time limit of single reads from passing."""
    policy = SourcePolicy(allow_private_hosts=True, timeout_s=0.6)
    began = time.monotonic()
    with pytest.raises(ImageSourceError, match="did not deliver within"):
        fetch(f"http://a.example:{port}/{path}", policy, resolve=_here)
    assert time.monotonic() - began < 8  # the server would drip for 15 seconds


def test_name_server_that_does_not_answer() -> None:
    released = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        released.wait(20)
        return []

    with pytest.raises(ImageSourceError, match="did not deliver within"):
        fetch("https://a.example/", SourcePolicy(timeout_s=0.2), resolve=resolve)
    released.set()


def test_host_without_connection() -> None:
    with pytest.raises(ImageSourceError, match="cannot be fetched"):
        fetch("http://a.example:1/", _LOCAL, resolve=_here)
