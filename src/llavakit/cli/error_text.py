"""What to say of an exception: a stable code, one message, an exit status."""

from __future__ import annotations

import errno

from llavakit.cli.console import OutputError
from llavakit.core.errors import CapacityError, DiskFullError, LlavakitError

__all__ = ["describe_error", "is_output_error"]

_EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
_EXIT_OUTPUT = 74  # EX_IOERR


def describe_error(error: BaseException) -> tuple[str, str, int]:
    """Return code, message and exit status of an error; one that is not ours is a fault of llavakit."""
    if isinstance(error, LlavakitError):
        return error.code, str(error), error.exit_code
    if isinstance(error, MemoryError) or _number(error) == errno.ENOMEM:
        advice = "The machine ran out of memory. Choose a smaller model, or --dtype bfloat16."
        return CapacityError.code, advice, CapacityError.exit_code
    if is_output_error(error):
        reason = getattr(error, "strerror", None) or str(error)
        return "output", f"the output cannot be written: {reason}.", _EXIT_OUTPUT
    if _number(error) in (errno.ENOSPC, errno.EDQUOT):
        advice = f"a file cannot be written ({error}). Make room and run the same command again."
        return DiskFullError.code, advice, DiskFullError.exit_code
    fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    advice = "This is a fault in llavakit: please report it with what the same command prints with --debug."
    return "internal", f"{fault.rstrip('.')}. {advice}", _EXIT_INTERNAL


def is_output_error(error: BaseException) -> bool:
    """Whether standard output cannot be written, or nobody reads it any more."""
    return isinstance(error, OutputError | BrokenPipeError)


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None
