"""Tables on standard output: as wide as the terminal, or as wide as they need to be in a file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from llavakit.cli.console import Console, printable

__all__ = ["print_pairs", "print_table"]

_FILE_COLUMNS = 200
_GAP = 3  # between two columns
_LONG_WORD = 10  # a longer one, such as an address, may be broken
_VERDICT_STYLES = {"equal": "green", "pass": "green", "fail": "bold red", "skipped": "yellow"}


def print_table(
    console: Console, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, optional: Sequence[str] = ()
) -> None:
    """Print rows under headings; on a terminal too narrow for their words, each row as a list of its cells.

    Parameters
    ----------
    console : Console
    columns : sequence of (heading, ``"left"`` or ``"right"``)
    rows : sequence of sequences of str
        Cells that are verdicts of a comparison are coloured.
    optional : sequence of str
        Headings of columns that a narrow terminal does without, the first to go first.
    """
    if console.is_output_terminal:
        shown = _choose_columns(console.columns, [name for name, _ in columns], rows, optional)
        if not shown:
            _print_lists(console, [name for name, _ in columns], rows)
            return
        columns, rows = [columns[idx] for idx in shown], [[row[idx] for idx in shown] for row in rows]
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
        # Only for its encoding: rich writes even what is captured, and its errors would not be the console's.
        file=io.TextIOWrapper(io.BytesIO(), encoding=getattr(console.stdout, "encoding", None) or "utf-8"),
        width=console.columns if is_terminal else _FILE_COLUMNS,
        no_color=not console.has_colors,
        force_terminal=is_terminal and console.has_colors,
        highlight=False,
    )
    with terminal.capture() as written:
        terminal.print(table)
    console.write("".join(f"{line.rstrip()}\n" for line in written.get().splitlines()))


def _choose_columns(
    width: int, headings: Sequence[str], rows: Sequence[Sequence[str]], optional: Sequence[str]
) -> list[int]:
    """Numbers of the columns that are shown: all, or all but the first few optional ones; none if there is no room."""
    for num_left_out in range(len(optional) + 1):
        shown = [idx for idx, heading in enumerate(headings) if heading not in optional[:num_left_out]]
        if _has_room(width, [[headings[idx], *(row[idx] for row in rows)] for idx in shown]):
            return shown
    return []


def _has_room(width: int, columns: Sequence[Sequence[str]]) -> bool:
    """Whether columns that are narrowed together, the widest first, keep ordinary words whole."""
    widest = [max(map(len, cells)) for cells in columns]
    words = [min(len(word), _LONG_WORD) for cells in columns for cell in cells for word in cell.split()]
    room = width - _GAP * (len(columns) - 1)
    limit = max((n for n in range(1, width + 1) if sum(min(size, n) for size in widest) <= room), default=0)
    return limit >= max(words, default=0)


def _print_lists(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for idx, row in enumerate(rows):
        if idx:
            console.line()
        print_pairs(console, [(heading, cell) for heading, cell in zip(headings, row, strict=True) if cell])


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
