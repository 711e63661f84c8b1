"""Streams that stand in for those of a process."""

from __future__ import annotations

import io
from collections.abc import Mapping

from llavakit.cli.console import Console


class Stream(io.StringIO):
    """Text in memory that may say it is a terminal; ``buffer`` gives bytes."""

    def __init__(self, data: bytes = b"", *, is_terminal: bool = False) -> None:
        super().__init__(data.decode("utf-8", "surrogateescape"))
        self.buffer = io.BytesIO(data)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def make_console(
    *, stdin: bytes = b"", is_terminal: bool = False, has_typist: bool = False, environ: Mapping[str, str] | None = None
) -> Console:
    """Return a console whose output is kept; ``is_terminal`` is about output, ``has_typist`` about input."""
    return Console(
        stdin=Stream(stdin, is_terminal=has_typist),
        stdout=Stream(is_terminal=is_terminal),
        stderr=Stream(is_terminal=is_terminal),
        environ=environ if environ is not None else {},
    )
