"""Write the generated pages: docs/cli.md from the help texts, docs/api.md from the docstrings.

With --check, change nothing and fail if a page is not what would be written.
"""

from __future__ import annotations

import difflib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llavakit
from llavakit.cli.slash_commands import help_text

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by tools/make_docs.py (make docs). Do not edit: change the {source} instead. -->\n"
# argparse lays its texts out anew in Python 3.13; the page is written, and checked, with the older layout.
FIRST_OTHER_LAYOUT = (3, 13)
COMMANDS = (
    "run", "serve", "pull", "list", "show", "rm", "convert", "calibrate", "quality", "plan", "fits", "gpus", "best",
    "build", "verify", "bench",
)  # fmt: skip


def show_help(*command: str) -> str:
    """Return one help text, as wide as the page and without colour."""
    settings = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "llavakit", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
        env=settings,
    )
    # Where a command is named after the file that runs it, a person sees the name they type.
    lines = [line.rstrip().replace("python -m llavakit", "llavakit") for line in done.stdout.splitlines()]
    return "\n".join(lines).strip("\n")


def make_cli_page() -> str:
    """Build docs/cli.md."""
    parts = [NOTE.format(source="help texts"), "# Command line\n", f"```text\n{show_help()}\n```\n"]
    parts += [f"## llavakit {name}\n\n```text\n{show_help(name)}\n```\n" for name in COMMANDS]
    parts.append(f"## In the chat\n\n`llavakit run MODEL` without a prompt:\n\n```text\n{help_text()}\n```\n")
    parts.append("Exit statuses and what they mean: [errors](errors.md).\n")
    return "\n".join(parts)


class PlainText(str):
    """An annotation that a signature shows without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def show_signature(function: Callable[..., object]) -> str:
    """Return a signature as it is written in the source."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=plain(parameter.annotation))
        for name, parameter in signature.parameters.items()
        if name not in {"self", "cls"}  # a caller does not write these
    ]
    return str(signature.replace(parameters=parameters, return_annotation=plain(signature.return_annotation)))


def plain(annotation: object) -> object:
    """Turn an annotation that is a string into one shown bare."""
    return PlainText(annotation) if isinstance(annotation, str) else annotation


def describe(name: str, value: object) -> str:
    """Return signature and docstring of one public name."""
    text = inspect.getdoc(value) or ""
    if isinstance(value, property):
        return f"{name}\n\n{text}"
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    try:
        signature = show_signature(value) if callable(value) else ""
    except (TypeError, ValueError):
        signature = ""
    return f"{name}{signature}\n\n{text}"


def find_public_methods(owner: type) -> list[str]:
    """List the methods and properties that a class itself defines, in the order of its file."""
    return [
        name
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
    ]


def make_api_page() -> str:
    """Build docs/api.md. The errors have a page of their own."""
    parts = [NOTE.format(source="docstrings"), "# Python\n", "Errors: [errors](errors.md).\n"]
    for name in sorted(llavakit.__all__):
        value = getattr(llavakit, name)
        if name.startswith("_") or (isinstance(value, type) and issubclass(value, Exception)):
            continue
        parts.append(f"## llavakit.{name}\n\n```text\n{describe(name, value)}\n```\n")
        if isinstance(value, type):
            for method in find_public_methods(value):
                text = describe(f"{name}.{method}", vars(value)[method])
                parts.append(f"### {name}.{method}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; return the exit status."""
    only_check = "--check" in arguments
    num_stale = 0
    pages = [("docs/api.md", make_api_page)]
    if sys.version_info < FIRST_OTHER_LAYOUT:
        pages.append(("docs/cli.md", make_cli_page))
    for page, make in pages:
        path = ROOT / page
        wanted, found = make(), path.read_text(encoding="utf-8") if path.exists() else ""
        if wanted == found:
            continue
        if only_check:
            num_stale += 1
            difference = difflib.unified_diff(
                found.splitlines(), wanted.splitlines(), page, "as generated", lineterm=""
            )
            print("\n".join(list(difference)[:40]))
            print(f"{page} is stale: run `make docs` and commit the result.")
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {page}")
    return 1 if num_stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
