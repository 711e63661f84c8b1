"""HTTP in, parsed by llhttp: a streamed token costs less of the event loop than with a parser in Python.

uvicorn's protocol over it knows no bound for what comes before and after bodies, and loses the body of a request that
offers another protocol; this one does neither.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llavakit.core.errors import OverloadedError
from llavakit.server.failures import body_of, status_of
from llavakit.server.file_limits import most_connections
from llavakit.server.outlet import Outlet

__all__ = ["BoundedHttp"]

_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEAD_S = 30.0
_OF_AN_OFFER = (b"upgrade", b"http2-settings")


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request line, headers, trailers or sizes of chunks of more than 64 KiB, and closes the connection.

    So it does where a head is not whole after half a minute: of a connection that was opened, or of a further request
    that has begun. One that waits between requests is uvicorn's to close.

    A connection for which the system's bound on open files leaves no room is told so and closed.

    A request that offers HTTP/2 or anything else beside HTTP/1.1, as Java's own client does in its first one, is
    answered as if it did not (RFC 9110, 7.8).
    """

    _num_head_bytes = 0  # that came since a body went on or a message ended
    _piece = b""  # at the parser
    _again = b""  # what the parser is to read next, in place of the rest of the piece
    _has_offer = False  # the head that has just been read
    _awaits_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        self._outlet = Outlet(transport, self.loop)
        super().connection_made(self._outlet)  # type: ignore[arg-type]  # as much of a transport as is used
        if len(self.connections) > most_connections():
            self.transport.write(_refusal(len(self.connections) - 1))
            self.transport.close()
            return
        self._head_timer = self.loop.call_later(_MAX_HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        self._outlet.drop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Let the end of a response go at once."""
        self._outlet.end_response()
        super().on_response_complete()

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data: bytes) -> None:
        """Parse what has come, in pieces that cannot hide a long head."""
        if self._awaits_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(_MAX_HEAD_S, self.transport.close)
        for start in range(0, len(data), _MAX_HEAD_BYTES):
            self._again = data[start : start + _MAX_HEAD_BYTES]
            self._num_head_bytes += len(self._again)
            while self._again:  # once more for every offer in it
                self._piece, self._again = self._again, b""
                super().data_received(self._piece)
                if self.transport.is_closing():
                    return
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")
                return

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head is read once more."""
        # CONNECT counts as an offer for the parser, whatever headers it has; it is answered like any unknown method.
        self._has_offer = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._has_offer:
            self._awaits_head = False
            self._stop_waiting()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take note of a piece of a body."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note of the end of a request."""
        if self._has_offer:  # the parser stops after the head and takes what follows for the other protocol
            return
        self._num_head_bytes = 0
        self._awaits_head = True
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Have the request read once more without its offer: called where the parser has stopped."""
        error = sys.exception()
        if not self._has_offer or not isinstance(error, httptools.HttpParserUpgrade):
            return
        rest = self._piece[error.args[0] :]
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(t for t in map(bytes.strip, value.split(b",")) if t.lower() not in _OF_AN_OFFER)
            if name not in _OF_AN_OFFER and (value or name != b"connection"):
                lines.append(b"%s: %s" % (name, value))
        self._has_offer = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._again = b"\r\n".join([*lines, b"", b""]) + rest


def _refusal(num_connections: int) -> bytes:
    """Return the whole reply to a connection that is one too many, before anything of its request is known."""
    error = OverloadedError(f"{num_connections} connections are open, as many as are taken here. Try again later.")
    body = json.dumps(body_of(error, is_ollama=False)).encode()
    return (
        b"HTTP/1.1 %d Service Unavailable\r\nretry-after: %d\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (status_of(error), error.retry_after_s, len(body), body)
    )
