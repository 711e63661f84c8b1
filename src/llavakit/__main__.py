"""``python -m llavakit``, and the ``llavakit`` command: ready for Ctrl-C before anything of weight is imported."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

__all__ = ["main"]

_EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Import the command line and run it."""
    # An exception in the middle of an import would end in a traceback, or in a callback where it is lost.
    signal.signal(signal.SIGINT, _leave)
    from llavakit.cli.main import main as run

    run()


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
