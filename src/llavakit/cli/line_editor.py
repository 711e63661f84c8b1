"""Reads a chat's lines: with editing and history on a terminal that can, plainly elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llavakit.cli.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prompt_toolkit.history import History

__all__ = ["LineEditor", "history_file"]


def history_file(environ: dict[str, str] | None = None) -> Path:
    """Return where the chat's history is kept: the XDG state folder."""
    environ = dict(os.environ) if environ is None else environ
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "llavakit" / "history"


class LineEditor:
    """One line at a time, by prompt_toolkit.

    Parameters
    ----------
    console : Console
    completions : iterable of str
        What Tab completes at the start of a line.
    """

    def __init__(self, console: Console, completions: Iterable[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.output import create_output

        self.notice = ""
        self._session: PromptSession[str] = PromptSession(
            history=self._open_history(),
            completer=WordCompleter(sorted(completions), sentence=True),
            complete_while_typing=False,
            enable_history_search=True,
            # The answer may go to a file; what is typed is then shown on the error stream.
            output=create_output(console.stdout if console.is_output_terminal else console.stderr),
        )

    def read(self, prompt: str) -> str:
        """Read one line; pasted text keeps its line breaks.

        Raises
        ------
        EOFError
            After Ctrl-D on an empty line.
        KeyboardInterrupt
            After Ctrl-C.
        """
        return self._session.prompt(prompt)

    def _open_history(self) -> History:
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        file = history_file()
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            with file.open("ab"):
                pass
        except OSError as error:
            self.notice = f"history is not kept: {file} cannot be written ({error.strerror})."
            return InMemoryHistory()
        return FileHistory(str(file))
