"""A Hub of our own on this machine: repositories, digests, ranges, and the ways a network fails."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for.

    Attributes
    ----------
    repos : dict
        Hub id to the content of its files.
    cut_after : dict
        File to the number of bytes after which each answer ends early; None in the middle of the list is no cut.
    lies : dict
        File to content that is sent in place of the announced one, of the same length.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    lies: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    knows_ranges: bool = True
    etag_override: str | None = None
    listing: bytes | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    endpoint: str = ""

    def revision(self, hub_id: str) -> str:
        content = json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in self.repos[hub_id].items()}, sort_keys=True)
        return hashlib.sha1(content.encode()).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _digest(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_large(name) else hashlib.sha1(content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _error(self, status: int, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith("/api/models/"):
                hub_id = path.removeprefix("/api/models/").split("/revision/")[0]
                return self._info(hub_id)
            owner, name, _, _, file = path.strip("/").split("/", 4)
            hub_id = f"{owner}/{name}"
            if hub_id not in hub.repos:
                return self._error(401, "RepoNotFound")
            if hub_id in hub.gated:
                return self._error(403, "GatedRepo")
            if file not in hub.repos[hub_id]:
                return self._error(404, "EntryNotFound")
            if with_body and file in hub.status:
                return self._error(hub.status[file])
            return self._file(hub_id, file, with_body=with_body)

        def _info(self, hub_id: str) -> None:
            if hub_id not in hub.repos:
                return self._error(401, "RepoNotFound")
            siblings = []
            for name, content in hub.repos[hub_id].items():
                item: dict[str, object] = {
                    "rfilename": name,
                    "size": len(content),
                    "blobId": _digest(name, content)[:40],
                }
                if _is_large(name):
                    item["lfs"] = {"sha256": _digest(name, content), "size": len(content), "pointerSize": 134}
                siblings.append(item)
            body = {"id": hub_id, "modelId": hub_id, "sha": hub.revision(hub_id), "siblings": siblings,
                    "private": False,
                    "downloads": 0, "likes": 0, "tags": []}  # fmt: skip
            text = json.dumps(body).encode() if hub.listing is None else hub.listing
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return None

        def _file(self, hub_id: str, file: str, *, with_body: bool) -> None:
            honest = hub.repos[hub_id][file]
            content = hub.lies.get(file, honest)
            start = 0
            asked = self.headers.get("Range")
            if asked and hub.knows_ranges and with_body:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{hub.etag_override or _digest(file, honest)}"')
            self.send_header("X-Repo-Commit", hub.revision(hub_id))
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if not with_body:
                return
            part = content[start:]
            if file in hub.cut_after:
                part = part[: hub.cut_after[file]]
                self.close_connection = True
            hub.sent_bytes[file] = hub.sent_bytes.get(file, 0) + len(part)
            self.wfile.write(part)

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a stand-in on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
