"""Writes an answer as it comes: cleaned and wrapped at words on a terminal, as it is elsewhere."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from llavakit.cli.console import Console, printable

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AnswerWriter"]


class AnswerWriter:
    """Takes pieces of text and writes each at once.

    On a terminal a word that reaches the edge is taken back and written on the next line, so that text appears
    without delay and no word is cut. Into a pipe or a file everything goes unchanged. As a context, it ends the last
    line whatever happens, so that nothing that is said afterwards runs into the answer.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_terminal = console.is_output_terminal
        # Without cursor movements a word cannot be taken back; the terminal then wraps where it likes.
        self._can_wrap = self._is_terminal and console.environ.get("TERM") != "dumb"
        self._columns = console.columns
        self._column = 0
        self._word = ""
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.has_begun or kind is None or issubclass(kind, KeyboardInterrupt):  # the terminal has shown ^C
            self.finish()

    @property
    def has_begun(self) -> bool:
        """Whether anything was written."""
        return self._last != ""

    def push(self, text: str) -> None:
        """Write the next piece."""
        if not text:
            return
        self._last = text[-1]
        if not self._is_terminal:
            self._console.write(text)
            return
        text = printable(text).replace("\t", "    ")
        self._console.write("".join(map(self._place, text)) if self._can_wrap else text)

    def finish(self) -> None:
        """End the last line, unless the answer did."""
        if self._last != "\n":
            self._console.write("\n")

    def _place(self, char: str) -> str:
        """Return what to send to the terminal for one more character."""
        if char == "\n":
            self._column, self._word = 0, ""
            return char
        if char == " ":
            self._word = ""
            if self._column >= self._columns - 1:  # a space at the edge is the line break
                self._column = 0
                return "\n"
            self._column += 1
            return char
        width = _width(char)
        taken_back = ""
        if self._column + width > self._columns - 1:
            word_width = sum(map(_width, self._word))
            is_movable = 0 < word_width < self._column
            taken_back = (f"\x1b[{word_width}D\x1b[K" if is_movable else "") + "\n" + (self._word if is_movable else "")
            self._column = word_width if is_movable else 0
            self._word = self._word if is_movable else ""
        self._word += char
        self._column += width
        return taken_back + char


def _width(char: str) -> int:
    """Columns that a character takes."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
