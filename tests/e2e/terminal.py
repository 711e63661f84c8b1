"""A program on a real pseudo-terminal: type, wait for text, press keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

__all__ = ["CTRL_C", "CTRL_D", "Terminal"]

CTRL_C, CTRL_D = "\x03", "\x04"
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


class Terminal:
    """Runs a command as the leader of a session whose terminal we hold.

    Parameters
    ----------
    command : sequence of str
    cwd : Path
    env : mapping
        On top of this process's environment.
    columns : int
    """

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, columns: int = 80
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        settings = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})}
        environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "CI")}
        self._process = subprocess.Popen(
            command, cwd=cwd, env={**environ, **settings}, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""
        self._position = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """Everything written so far, without colours and cursor movements."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")

    def type(self, text: str) -> None:
        """Type text or keys."""
        os.write(self._ours, text.encode())

    def enter(self, text: str = "") -> None:
        """Type a line and press Enter."""
        self.type(f"{text}\r")

    def wait_for(self, text: str, *, timeout_s: float = 60.0) -> str:
        """Read until ``text`` appears after what was waited for before; return what came up to it."""
        deadline = time.monotonic() + timeout_s
        while (found := self.text.find(text, self._position)) < 0:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} did not appear in {self.text[self._position :]!r}")
        seen = self.text[self._position : found + len(text)]
        self._position = found + len(text)
        return seen

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """Read to the end; return the exit status, negative for a signal."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(timeout=max(deadline - time.monotonic(), 1.0))

    def _read(self, timeout_s: float) -> bool:
        """Read what is there; False at the end or when nothing came in time."""
        if timeout_s <= 0 or not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # the program has left
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)
