"""HTTP in, parsed by llhttp: a streamed token costs less of the event loop than with a parser in Python.

uvicorn's protocol over it knows no bound for what comes before and after bodies; this one does.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedHttp"]

_MAX_HEAD_BYTES = 64 * 1024


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request line, headers, trailers or sizes of chunks of more than 64 KiB, and closes the connection."""

    _num_head_bytes = 0  # that came since a body went on or a message ended

    def data_received(self, data: bytes) -> None:
        """Parse what has come, in pieces that cannot hide a long head."""
        for start in range(0, len(data), _MAX_HEAD_BYTES):
            piece = data[start : start + _MAX_HEAD_BYTES]
            self._num_head_bytes += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")
                return

    def on_body(self, body: bytes) -> None:
        """Take note of a piece of a body."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note of the end of a request."""
        self._num_head_bytes = 0
        super().on_message_complete()
