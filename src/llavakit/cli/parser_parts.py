"""What the parsers of all commands share.

argparse and not a richer library: the help must appear as fast as Python starts.
"""

from __future__ import annotations

import argparse

from llavakit.cli.console import Console
from llavakit.cli.overview import PROGRAM
from llavakit.core.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["MODEL_HELP", "add_output_options", "new_parser"]

_HELP_WIDTH = 100
_EXAMPLES = "examples:"
MODEL_HELP = (
    "llava:tiny (comes with llavakit), llava:7b, llava:13b, a Hugging Face id such as "
    "llava-hf/llava-1.5-7b-hf, a folder, or a .gguf file"
)


class _Formatter(argparse.HelpFormatter):
    """Examples as they are, and a fixed width where the terminal is wider: long lines of help are hard to read.

    Lines end between words: a name with hyphens is often copied.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._width = min(self._width, _HELP_WIDTH - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        paragraphs = [self._split_lines(paragraph, width - len(indent)) for paragraph in text.split("\n\n")]
        return "\n\n".join("\n".join(f"{indent}{line}" for line in lines) for lines in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        import textwrap

        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


class _Parser(argparse.ArgumentParser):
    """Raises our own error instead of printing the usage and leaving, and one where the help cannot be written."""

    def print_help(self, file: Any = None) -> None:
        Console(stdout=file).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix(PROGRAM).strip()
        hint = f"{PROGRAM} {command} --help" if command else f"{PROGRAM} --help"
        raise ConfigError(f"{message}. `{hint}` shows what is possible.")


def new_parser(command: str, usage: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Start a command's parser."""
    parser = _Parser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} {usage}",
        description=description,
        epilog=f"{_EXAMPLES}\n{examples}",
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="show this text and leave")
    return parser


def add_output_options(parser: argparse.ArgumentParser, *, json_help: str) -> argparse._ArgumentGroup:
    """Add ``--json`` and ``--debug``, which every command has."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help=json_help)
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return group
