"""``llavakit run`` through a server, and the note by which it finds one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavakit.api.host import make_host
from llavakit.cli.main import run_command
from llavakit.cli.state_file import find_server, forget_server, remember_server
from llavakit.core.errors import OverloadedError
from tests.server.live import SHAPES, ScriptedEngine, ScriptedHost, serving
from tests.unit.cli.streams import make_console


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_host("llava:tiny"), default_model="llava:tiny") as address:
        yield address


def _run(*arguments: str) -> tuple[int, str, str]:
    console = make_console()
    status = run_command(["run", *arguments], console=console)
    return status, console.stdout.getvalue(), console.stderr.getvalue()


_QUESTION = ("llava:tiny", "What color is the star?", "--image", str(SHAPES))


def test_the_answer_is_that_of_a_model_loaded_here(url: str) -> None:
    here, there = _run(*_QUESTION, "--no-server"), _run(*_QUESTION, "--server", url)
    assert there[:2] == here[:2]
    assert f"by the server at {url}" in there[2]
    assert "by the server" not in here[2]
    again = _run(*_QUESTION, "--server", url)
    assert "cached" in again[2]
    assert "encoded before" in again[2]


def test_a_server_is_found_by_its_note_where_nothing_special_is_asked(url: str) -> None:
    remember_server(url, "llava:tiny", os.getpid(), needs_key=False)
    assert "by the server" in _run(*_QUESTION)[2]
    for special in (["--json"], ["--dtype", "float32"], ["--num-beams", "2"], ["--verbose"], ["--no-server"]):
        assert "by the server" not in _run(*_QUESTION, *special)[2], special
    remember_server(url, "llava:7b", os.getpid(), needs_key=False)
    assert "by the server" not in _run(*_QUESTION)[2]
    remember_server("http://127.0.0.1:9", "llava:tiny", os.getpid(), needs_key=False)
    assert _run(*_QUESTION)[0] == 0


def test_notes_of_processes_that_are_gone_or_damaged_are_not_believed(tmp_path: Path) -> None:
    assert find_server() is None
    remember_server("http://x", "m", 2**22 + 12345, needs_key=False)
    assert find_server() is None
    remember_server("http://x", "m", os.getpid(), needs_key=True)
    found = find_server()
    assert found is not None
    assert (found.model, found.needs_key) == ("m", True)
    forget_server(os.getpid() + 1)
    assert find_server() == found
    forget_server(os.getpid())
    assert find_server() is None
    note = tmp_path / "llavakit" / "server.json"
    for content in ("", "[]", json.dumps({"url": 1})):
        note.write_text(content)
        assert find_server() is None


def test_what_a_named_server_cannot_do_is_refused_and_not_ignored(url: str, tmp_path: Path) -> None:
    for special in (["--json"], ["--num-beams", "2"], ["--dtype", "float16"], ["--threads", "1"]):
        status, out, err = _run(*_QUESTION, "--server", url, *special)
        assert status == 2
        assert f"{special[0]} cannot be asked of a server" in out + err
    assert "needs a prompt" in run_chat(url)
    (tmp_path / "folder.png").mkdir()
    for picture, code in ((str(tmp_path / "folder.png"), "image-source"), ("https://example.org/x.png", "image-source"),
                          (f"file://{SHAPES}", "config")):  # fmt: skip
        status, out, err = _run("llava:tiny", "?", "--image", picture, "--server", url)
        assert (status != 0, out) == (True, "")
        assert f"error[{code}]" in err, err


def run_chat(url: str) -> str:
    console = make_console(has_typist=True)
    run_command(["run", "llava:tiny", "--server", url], console=console)
    return str(console.stderr.getvalue())


def test_notes_that_others_could_have_written_are_not_believed(tmp_path: Path) -> None:
    remember_server("http://x", "m", os.getpid(), needs_key=False)
    assert find_server() is not None
    note = tmp_path / "llavakit" / "server.json"
    for path, mode in ((note, 0o666), (note, 0o600), (note.parent, 0o777)):
        path.chmod(mode)
        assert (find_server() is None) == bool(mode & 0o022), (path.name, oct(mode))


def test_what_a_server_refuses_is_told_with_its_code() -> None:
    engine = ScriptedEngine(name="llava:tiny", refusal=OverloadedError("the queue is full."))
    with serving(ScriptedHost(engine)) as url:
        status, out, err = _run("llava:tiny", "?", "--server", url)
    assert (status, out) == (5, "")
    assert "error[overloaded]: the queue is full." in err
    status, _, err = _run("llava:tiny", "?", "--server", "http://127.0.0.1:9")
    assert status == 2
    assert "cannot be asked" in err


def test_a_picture_too_large_for_the_server_that_was_found_is_answered_here(tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (700, 700, 3), dtype=np.uint8)).save(noise)
    question = ("llava:tiny", "What color is the star?", "--image", str(noise))
    with serving(make_host("llava:tiny"), default_model="llava:tiny", max_body_mib=1) as small:
        remember_server(small, "llava:tiny", os.getpid(), needs_key=False)
        status, out, err = _run(*question)
        assert (status, out) == _run(*question, "--no-server")[:2]
        assert status == 0
        assert "The model is loaded here" in err
        assert "by the server" not in err
        status, out, err = _run(*question, "--server", small)
        assert (status, out) == (5, "")
        assert "larger than" in err


def test_a_damaged_picture_is_named_by_its_file(url: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(SHAPES.read_bytes()[:2000])
    status, out, err = _run("llava:tiny", "?", "--image", str(SHAPES), "--image", str(damaged), "--server", url)
    assert (status, out) == (5, "")
    assert f"error[bad-image]: '{damaged}' is a damaged" in err


@contextmanager
def _breaking(*lines: str, is_cut: bool) -> Iterator[str]:
    """Serve an answer that ends after these lines, in good order or with the connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if is_cut else "HTTP/1.0"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            if is_cut:
                self.send_header("Content-Length", "100000")
            self.end_headers()
            for line in lines:
                self.wfile.write(f"data: {line}\n\n".encode())
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


_PIECE = json.dumps({"choices": [{"delta": {"content": "Half an ans"}, "finish_reason": None}]})


@pytest.mark.parametrize("is_cut", [True, False])
def test_an_answer_that_breaks_off_is_an_error_on_a_line_of_its_own(is_cut: bool) -> None:
    with _breaking(_PIECE, is_cut=is_cut) as url:
        status, out, err = _run("llava:tiny", "?", "--server", url)
    assert (status, out) == (5, "Half an ans\n")
    assert err.startswith("error[request]: the answer broke off: ")
    assert "Ask again." in err
    assert "llavakit serve" not in err


def test_a_failure_on_the_way_keeps_its_code() -> None:
    with _breaking(
        _PIECE, json.dumps({"error": {"message": "out of memory.", "code": "capacity"}}), is_cut=False
    ) as url:
        status, out, err = _run("llava:tiny", "?", "--server", url)
    assert (status, out) == (5, "Half an ans\n")
    assert err == "error[capacity]: the answer broke off: out of memory.\n"
