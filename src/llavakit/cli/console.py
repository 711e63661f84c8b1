"""What the commands know of the terminal: three streams, colours, widths.

Answers and data go to ``out``, everything else to ``err``. Colours and line wrapping happen on terminals only;
``NO_COLOR`` and ``TERM=dumb`` are honoured. Words of a model are untrusted: on a terminal, control characters
other than newline and tab are dropped, so that no answer can move the cursor or retitle the window.

That ``out`` cannot be written is an `OutputError`; that nobody reads ``err`` is no failure.
"""

from __future__ import annotations

import errno
import io
import os
import sys

# Type checkers take this name for true; importing `typing` would cost as much as all the rest of this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TextIO

__all__ = ["Console", "OutputError", "mend_streams", "printable", "silence"]

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_DEFAULT_COLUMNS = 80


class OutputError(OSError):
    """Standard output cannot be written; ``errno`` says why."""


class _ClosedOutput(io.TextIOBase):
    """Stands for a standard output that was closed before the program began: writing fails as the system's would."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def mend_streams() -> None:
    """Put something in the place of standard streams that were closed before the program began.

    Without it a file that is opened later would get the number 1 or 2, to which libraries write their messages.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the end; pathlib is slow


def silence(*streams: Any) -> None:
    """Point streams to nowhere, so that their last flush cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        try:
            os.dup2(nowhere, stream.fileno())
        except (AttributeError, OSError, ValueError):
            continue
    os.close(nowhere)


class Console:
    """The three standard streams and what they can show.

    Parameters
    ----------
    stdin, stdout, stderr : text streams, optional
        By default those of the process.
    environ : mapping, optional
    """

    def __init__(
        self,
        *,
        stdin: TextIO | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.stdin: Any = stdin if stdin is not None else sys.stdin
        self.stdout: Any = stdout if stdout is not None else sys.stdout
        self.stderr: Any = stderr if stderr is not None else sys.stderr
        self.environ = os.environ if environ is None else environ
        for stream in (self.stdout, self.stderr):
            # A character that the locale cannot write must not end an answer half-way.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")

    @property
    def is_input_terminal(self) -> bool:
        """Whether somebody may type."""
        return _is_terminal(self.stdin)

    @property
    def is_output_terminal(self) -> bool:
        """Whether the answer is read by somebody."""
        return _is_terminal(self.stdout)

    @property
    def is_error_terminal(self) -> bool:
        """Whether progress and colours make sense on the error stream."""
        return _is_terminal(self.stderr)

    @property
    def columns(self) -> int:
        """Width of the terminal, in characters."""
        if self.environ.get("COLUMNS", "").isdigit():
            return max(int(self.environ["COLUMNS"]), 20)
        for stream in (self.stdout, self.stderr):
            try:
                columns = os.get_terminal_size(stream.fileno()).columns
            except (AttributeError, OSError, ValueError):
                continue
            if columns > 0:
                return max(columns, 20)
        return _DEFAULT_COLUMNS

    def write(self, text: str) -> None:
        """Write to standard output at once.

        Raises
        ------
        OutputError
            If that fails.
        """
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error

    def tell(self, text: str) -> None:
        """Write to standard error as it is."""
        try:
            self.stderr.write(text)
            self.stderr.flush()
        except OSError:
            silence(self.stderr)

    def line(self, text: str = "") -> None:
        """Write one line to standard output."""
        self.write(f"{text}\n")

    def note(self, text: str, *, style: str | None = None) -> None:
        """Write one line to standard error; on a terminal, broken between words where it is too long."""
        if self.is_error_terminal:
            text = _wrap(text, self.columns - 1)
        self.tell(f"{self.styled(text, style) if style else text}\n")

    def error(self, code: str, message: str) -> None:
        """Write an error: one line, whatever the message holds."""
        label, one_line = f"error[{code}]:", " ".join(printable(message).split())
        text = f"{label} {one_line}"
        if self.is_error_terminal:
            text = _wrap(text, self.columns - 1)
        self.tell(f"{self.styled(label, 'red')}{text[len(label) :]}\n")

    def status(self, text: str) -> None:
        """Show a passing line on an error terminal; an empty text wipes it. Nothing when it is not a terminal."""
        if self.is_error_terminal:
            shown = text[: self.columns - 1]
            self.tell(f"\r\x1b[K{self.styled(shown, 'dim') if shown else ''}")

    def styled(self, text: str, style: str, *, on_output: bool = False) -> str:
        """Return ``text`` in a colour or weight, or as it is where colours are not wanted."""
        is_terminal = self.is_output_terminal if on_output else self.is_error_terminal
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if is_terminal and self.has_colors else text

    @property
    def has_colors(self) -> bool:
        """Whether the environment lets us use colours at all."""
        return not self.environ.get("NO_COLOR") and self.environ.get("TERM") != "dumb"


def _wrap(text: str, columns: int) -> str:
    """Break lines that are too long at spaces; runs of spaces and long words stay as they are."""
    lines = []
    for line in text.split("\n"):
        rest = line
        while len(rest) > columns and (cut := rest.rfind(" ", 1, columns + 1)) > 0:
            lines.append(rest[:cut].rstrip())
            rest = rest[cut + 1 :]
        lines.append(rest)
    return "\n".join(lines)


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Drop control characters (C0, DEL, C1) except those in ``keep``."""
    return "".join(char for char in text if char in keep or not (char < " " or "\x7f" <= char <= "\x9f"))


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # closed, or replaced by something that is no stream
        return False
