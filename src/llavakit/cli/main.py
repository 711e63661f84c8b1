"""Finds the command, runs it, and turns whatever happens into one line and an exit status.

Nothing heavy is imported before the command is known, so that help and version appear as fast as Python starts.
Exit statuses: 0 done; 1 a check failed; 2 to 9 the error classes of `llavakit.core.errors`; 70 a fault of
llavakit; 74 the output cannot be written; 130 interrupted; 141 the reader of our output went away.
"""

from __future__ import annotations

import _thread
import errno
import signal
import sys
import time

from llavakit.cli.console import Console, OutputError, mend_streams, silence
from llavakit.cli.error_text import describe_error
from llavakit.cli.overview import ABOUT, OVERVIEW, PROGRAM
from llavakit.core.errors import ConfigError
from llavakit.core.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import Any, NoReturn

__all__ = ["main", "run_command"]

_EXIT_INTERRUPTED = 130  # what shells say of a program that SIGINT ended
_EXIT_BROKEN_PIPE = 141  # and of one that SIGPIPE ended
_UNTIL_PRESSED_AGAIN_S = 0.01
_MAPS_FILES = ("run", "serve", "convert", "calibrate", "quality", "verify", "bench")
_ALIASES = {"ls": "list", "remove": "rm"}


def main() -> NoReturn:
    """Run the command of this process's arguments and leave with its exit status."""
    watch = _InterruptWatch()
    sys.unraisablehook = watch.press_again
    try:
        signal.signal(signal.SIGINT, watch)
        mend_streams()
        status = run_command(sys.argv[1:], was_interrupted=lambda: watch.was_interrupted)
        # From here on only the interpreter shuts down: Ctrl-C may end it, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        status = _EXIT_INTERRUPTED
    sys.exit(status)


class _InterruptWatch:
    """A Ctrl-C handler that also remembers: libraries turn KeyboardInterrupt into errors of their own."""

    def __init__(self) -> None:
        self.was_interrupted = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> NoReturn:
        self.was_interrupted = True
        raise KeyboardInterrupt

    def press_again(self, lost: UnraisableHookArgs) -> None:
        """Stand in for ``sys.unraisablehook``: Ctrl-C in a callback or a destructor ends nothing but that."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(_interrupt_soon, ())
        else:
            sys.__unraisablehook__(lost)


def _interrupt_soon() -> None:
    time.sleep(_UNTIL_PRESSED_AGAIN_S)
    _thread.interrupt_main()


def run_command(
    arguments: Sequence[str],
    *,
    console: Console | None = None,
    load: Callable[..., Any] | None = None,
    was_interrupted: Callable[[], bool] = lambda: False,
) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str
        What follows the program's name.
    console : Console, optional
        The streams; by default those of the process.
    load : callable, optional
        Stands in for `llavakit.load`.
    was_interrupted : callable, optional
        Says whether Ctrl-C was pressed; an error that it provoked is then no fault.

    Returns
    -------
    int
        The exit status.
    """
    console = console if console is not None else Console()
    wants_json = "--json" in arguments
    try:
        status = _dispatch(list(arguments), console, load)
    except SystemExit as leaving:  # argparse after --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except BaseException as error:
        if was_interrupted() or isinstance(error, KeyboardInterrupt):
            return _report(console, "interrupted", "stopped by Ctrl-C.", _EXIT_INTERRUPTED, wants_json=wants_json)
        if isinstance(error, OutputError):
            silence(console.stdout)
        if isinstance(error, BrokenPipeError) or (isinstance(error, OutputError) and error.errno == errno.EPIPE):
            silence(console.stdout, console.stderr)
            return _EXIT_BROKEN_PIPE
        if "--debug" in arguments:
            import traceback

            console.tell("".join(traceback.format_exception(error)))
        code, message, status = describe_error(error)
        return _report(console, code, message, status, wants_json=wants_json and not isinstance(error, OutputError))
    return status


def _dispatch(arguments: list[str], console: Console, load: Callable[..., Any] | None) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        console.write(OVERVIEW)
        return 0
    if arguments[0] in ("--version", "-V"):
        console.line(f"{PROGRAM} {__version__}")
        return 0
    if arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
        return _dispatch(arguments, console, load)
    name = _ALIASES.get(arguments[0], arguments[0])
    if name not in ABOUT:
        raise ConfigError(_unknown_command(arguments[0], list(ABOUT)))
    from llavakit.cli.arguments import parse

    return _run(name, parse(name, arguments[1:]), console, load)


def _run(name: str, options: argparse.Namespace, console: Console, load: Callable[..., Any] | None) -> int:
    if not options.debug:
        import warnings

        warnings.simplefilter("ignore")  # warnings are for developers
    if name in _MAPS_FILES:
        _explain_bus_errors()
    if name == "run":
        from llavakit.cli.run import run

        return run(options, console, load=load)
    if name == "serve":
        from llavakit.cli.serve import serve

        return serve(options, console)
    if name == "convert":
        from llavakit.cli.convert import convert

        return convert(options, console)
    if name == "calibrate":
        from llavakit.cli.calibrate import calibrate

        return calibrate(options, console)
    if name == "quality":
        from llavakit.cli.quality import quality

        return quality(options, console)
    if name in ("plan", "fits", "gpus", "best", "build"):
        from llavakit.cli import plan_commands

        return plan_commands.COMMANDS[name](options, console)
    if name in ("verify", "bench"):
        from llavakit.cli import checks

        return checks.verify(options, console) if name == "verify" else checks.bench(options, console)
    from llavakit.cli import store_commands

    handlers = {
        "pull": store_commands.pull,
        "list": store_commands.list_all,
        "show": store_commands.show,
        "rm": store_commands.remove,
    }
    return handlers[name](options, console)


def _explain_bus_errors() -> None:
    """Let a mapped file that is cut short while it is used, which ends the process, end it with a message."""
    from llavakit.core.errors import WeightsError
    from llavakit.kernels.library import has_library, load_library

    if has_library():
        text = (
            f"error[{WeightsError.code}]: a file of the model became shorter, or could not be read, while it was in "
            "use. Leave model files alone while a program uses them; if nobody touched it, check the disk and fetch "
            "the model again.\n"
        )
        load_library().explain_bus_errors(text, WeightsError.exit_code)


def _unknown_command(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    kind = "option" if name.startswith("-") else "command"
    hint = f" Did you mean `{close[0]}`?" if close and kind == "command" else ""
    return f"unknown {kind} {name!r}.{hint} The commands are {', '.join(known)}; `llavakit --help` explains them."


def _report(console: Console, code: str, message: str, status: int, *, wants_json: bool) -> int:
    """Say what went wrong, in one line; return the exit status."""
    if wants_json:
        import json

        try:
            console.line(json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False))
        except OutputError:  # then the other stream has it
            silence(console.stdout)
        else:
            return status
    console.status("")
    console.error(code, message)
    return status
