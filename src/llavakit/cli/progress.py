"""Progress of what takes long: a bar for downloads and conversions, a passing line for measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llavakit.cli.console import Console

if TYPE_CHECKING:
    from llavakit.weights.store import ResolvedModel

__all__ = ["byte_progress", "human_bytes", "pull_with_progress", "show_stage"]

OnBytes = Callable[[int, int, str], None]
_SECONDS_BETWEEN_LINES = 10.0


def pull_with_progress(name: str, console: Console, *, is_quiet: bool, must_be_newest: bool = True) -> ResolvedModel:
    """Fetch a model, showing how far it is; one that is here is left alone unless the newest is asked for."""
    from llavakit.weights import store

    with byte_progress(f"fetching {name}", console, is_quiet=is_quiet) as on_progress:
        if must_be_newest:
            return store.pull(name, on_progress=on_progress)
        return store.resolve(name, on_progress=on_progress)


@contextmanager
def byte_progress(doing: str, console: Console, *, is_quiet: bool) -> Iterator[OnBytes | None]:
    """Give a callback that shows bytes: as a bar on a terminal, as a line now and then in a log.

    Parameters
    ----------
    doing : str
        What takes so long, such as ``fetching llava:7b``.
    console : Console
    is_quiet : bool
    """
    if is_quiet:
        yield None
    elif console.is_error_terminal:
        with _bar(doing, console) as on_progress:
            yield on_progress
    else:
        yield _log_lines(doing, console)


@contextmanager
def _bar(doing: str, console: Console) -> Iterator[OnBytes]:
    from rich.console import Console as RichConsole
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )  # fmt: skip
    terminal = RichConsole(file=console.stderr, no_color=not console.has_colors, highlight=False)
    # Started by the first byte: a model that is here already shows no bar.
    progress = Progress(*columns, console=terminal, transient=True, expand=True)
    task = progress.add_task("", total=None)
    is_started = False

    def show(done: int, total: int, file: str) -> None:
        nonlocal is_started
        if not is_started:
            console.status("")
            console.note(f"{doing} ({human_bytes(total)})", style="dim")
            progress.start()
            is_started = True
        shown = file if len(file) <= 32 else f"...{file[-29:]}"
        progress.update(task, completed=done, total=total, description=escape(shown))

    try:
        yield show
    finally:
        progress.stop()


def _log_lines(doing: str, console: Console) -> OnBytes:
    last_s = -_SECONDS_BETWEEN_LINES

    def show(done: int, total: int, file: str) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _SECONDS_BETWEEN_LINES or done == total:
            last_s = now_s
            where = f" ({file})" if file else ""
            console.note(f"{doing}: {human_bytes(done)} of {human_bytes(total)}{where}")

    return show


def show_stage(console: Console) -> Callable[[str, int, int], None]:
    """Return a callback that shows which stage is at work, on a terminal."""

    def show(name: str, done: int, total: int) -> None:
        console.status(f"{name} {done}/{total}")

    return show


def human_bytes(num_bytes: float) -> str:
    """Three digits and a decimal unit.

    Examples
    --------
    >>> human_bytes(14_130_000_000), human_bytes(512), human_bytes(18_900_000)
    ('14.1 GB', '512 B', '18.9 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 99.95 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
