"""A file written tensor by tensor: bounded memory, resumable, and under its final name only when whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from llavakit.core.errors import DiskFullError, FormatError, LlavakitError, StoreError

__all__ = ["FilePlan", "PlannedTensor", "StreamedFile"]

_SECONDS_BETWEEN_MARKS = 2.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to come.

    Attributes
    ----------
    name : str
        In the file.
    source : str
        Ours.
    dtype : str
    shape : tuple of int
    start : int
        First byte in the file.
    num_bytes : int
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True)
class FilePlan:
    """Everything about a file but its weights: the bytes before the first tensor, and where each tensor goes."""

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    num_bytes: int


class StreamedFile:
    """One output file. While it is open (``with``), no other process writes it.

    Parameters
    ----------
    path : Path
        The final name. Beside it ``.part`` holds what is done, ``.part.json`` how far that is.
    plan : FilePlan
    origin : str
        What the weights come from; a part file of another origin or plan is not continued.

    Raises
    ------
    StoreError
        On entry, if another process writes the file, or it cannot be made.
    """

    def __init__(self, path: Path, plan: FilePlan, *, origin: str) -> None:
        self.path = path
        self.plan = plan
        self._part = path.with_name(path.name + ".part")
        self._mark = path.with_name(path.name + ".part.json")
        self._key = hashlib.sha256(plan.header + origin.encode()).hexdigest()
        self._file: BinaryIO | None = None
        self._is_published = False

    def __enter__(self) -> StreamedFile:
        try:
            while self._file is None:
                self._file = self._lock_part()
        except OSError as error:
            raise StoreError(f"{str(self._part)!r} cannot be written ({error}). Name another output.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        # What follows from the weights or the request happens again; where no tensor is done there is nothing to keep.
        is_lasting = isinstance(error, LlavakitError) and not isinstance(error, DiskFullError)
        if not self._is_published and (is_lasting or not self._num_done()):
            self._part.unlink(missing_ok=True)
            self._mark.unlink(missing_ok=True)
        # Closing may write what the disk has no room for; the error on its way says so already.
        with contextlib.suppress(OSError):
            self._file.close()  # unlocks it
        self._file = None

    def _lock_part(self) -> BinaryIO | None:
        """Open the part file and lock it; return none if it has got its final name in between."""
        file = os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._part.exists() and os.path.samestat(os.fstat(file.fileno()), self._part.stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise StoreError(
                f"another process is writing {str(self.path)!r}. Wait for it, or name another output."
            ) from error
        except OSError as error:
            file.close()
            if error.errno not in _NO_LOCKS:
                raise
            raise StoreError(
                f"{str(self._part)!r} cannot be locked ({error.strerror}): the file system of this folder has no locks "
                "that keep two processes from writing one file. Write to a local disk and move the result."
            ) from error
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    @property
    def num_missing_bytes(self) -> int:
        """Bytes that the disk must still take."""
        return self.plan.num_bytes - (self._part.stat().st_size if self._num_done() else 0)

    def check_space(self, num_bytes: int) -> None:
        """Check that the disk has room.

        Raises
        ------
        DiskFullError
            If it has not.
        """
        free = shutil.disk_usage(self.path.parent).free
        if free < num_bytes:
            raise DiskFullError(
                f"{num_bytes} bytes are to be written to {str(self.path.parent)!r}, but {free} are free. Free some, or "
                "name another folder; what is written already stays."
            )

    def write(self, produce: Callable[[PlannedTensor], Iterator[np.ndarray]], on_bytes: Callable[[int], None]) -> None:
        """Write all tensors that are not there yet, to the part file.

        Parameters
        ----------
        produce : callable
            Gives the bytes of a tensor in pieces, uint8 arrays.
        on_bytes : callable
            Called with the bytes done since the last call.

        Raises
        ------
        DiskFullError
            If the disk is full; the part file stays and is continued by the next attempt.
        """
        assert self._file is not None, "the file is open"  # noqa: S101
        file, num_done = self._file, self._num_done()
        try:
            last = self.plan.tensors[num_done - 1] if num_done else None
            end = len(self.plan.header) if last is None else last.start + last.num_bytes
            file.truncate(end)
            if not num_done:
                self._mark.unlink(missing_ok=True)
                file.seek(0)
                file.write(self.plan.header)
            on_bytes(end)
            self._write_tensors(file, num_done, produce, on_bytes)
            file.truncate(self.plan.num_bytes)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFullError(
                    f"the disk of {str(self.path.parent)!r} is full. Free some room and run the same command again: it "
                    "goes on where it stopped."
                ) from error
            raise

    def publish(self) -> None:
        """Give the whole file its final name."""
        self._part.replace(self.path)
        self._is_published = True
        self._mark.unlink(missing_ok=True)

    def _write_tensors(
        self,
        file: BinaryIO,
        num_done: int,
        produce: Callable[[PlannedTensor], Iterator[np.ndarray]],
        on_bytes: Callable[[int], None],
    ) -> None:
        marked_s, marked = time.monotonic(), num_done
        try:
            for tensor in self.plan.tensors[num_done:]:
                file.seek(tensor.start)
                written = 0
                for piece in produce(tensor):
                    file.write(piece.data)
                    written += piece.nbytes
                    on_bytes(piece.nbytes)
                if written != tensor.num_bytes:
                    raise FormatError(f"{tensor.name}: {written} bytes were made, {tensor.num_bytes} were planned.")
                num_done += 1
                if time.monotonic() - marked_s > _SECONDS_BETWEEN_MARKS:
                    self._write_mark(file, num_done)
                    marked_s, marked = time.monotonic(), num_done
        except KeyboardInterrupt:
            if num_done > marked:
                self._write_mark(file, num_done)
            raise

    def _write_mark(self, file: BinaryIO, num_done: int) -> None:
        # The data first: the mark must never promise what a loss of power took.
        file.flush()
        os.fsync(file.fileno())
        self._mark.write_text(json.dumps({"key": self._key, "num_tensors": num_done}), encoding="utf-8")

    def _num_done(self) -> int:
        """Tensors of this plan that the part file holds."""
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            num_done = mark["num_tensors"] if mark["key"] == self._key else 0
            if not isinstance(num_done, int) or not 0 < num_done <= len(self.plan.tensors):
                return 0
            last = self.plan.tensors[num_done - 1]
            return num_done if self._part.stat().st_size >= last.start + last.num_bytes else 0
        except (OSError, ValueError, TypeError, KeyError):
            return 0
