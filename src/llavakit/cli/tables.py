"""Tables on standard output: as wide as the terminal, or as wide as they need to be in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from llavakit.cli.console import Console, printable

__all__ = ["print_pairs", "print_table"]

_FILE_COLUMNS = 200
_VERDICT_STYLES = {"equal": "green", "pass": "green", "fail": "bold red", "skipped": "yellow"}


def print_table(console: Console, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings.

    Parameters
    ----------
    console : Console
    columns : sequence of (heading, ``"left"`` or ``"right"``)
    rows : sequence of sequences of str
        Cells that are verdicts of a comparison are coloured.
    """
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell, keep="\n"), style=_VERDICT_STYLES.get(cell, "")) for cell in row))
    is_terminal = console.is_output_terminal
    terminal = RichConsole(
        file=console.stdout,
        width=console.columns if is_terminal else _FILE_COLUMNS,
        no_color=not console.has_colors,
        force_terminal=is_terminal and console.has_colors,
        highlight=False,
    )
    with terminal.capture() as written:
        terminal.print(table)
    console.write("".join(f"{line.rstrip()}\n" for line in written.get().splitlines()))


def print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns; an empty name goes on with the value above."""
    width = max(len(name) for name, _ in pairs)
    space = max(console.columns - width - 3, 20) if console.is_output_terminal else _FILE_COLUMNS
    for name, value in pairs:
        label = console.styled(f"{name:<{width}}", "bold", on_output=True)
        lines = textwrap.wrap(printable(value, keep=""), space, break_on_hyphens=False) or [""]
        console.line(f"{label}  {lines[0]}".rstrip())
        for line in lines[1:]:
            console.line(f"{'':<{width}}  {line}")
