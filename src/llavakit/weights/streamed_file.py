"""A file written tensor by tensor: bounded memory, resumable, and under its final name only when whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llavakit.core.errors import DiskFullError, FormatError

__all__ = ["FilePlan", "PlannedTensor", "StreamedFile"]

_SECONDS_BETWEEN_MARKS = 2.0


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
    """One output file.

    Parameters
    ----------
    path : Path
        The final name. Beside it ``.part`` holds what is done, ``.part.json`` how far that is.
    plan : FilePlan
    origin : str
        What the weights come from; a part file of another origin or plan is not continued.
    """

    def __init__(self, path: Path, plan: FilePlan, *, origin: str) -> None:
        self.path = path
        self.plan = plan
        self._part = path.with_name(path.name + ".part")
        self._mark = path.with_name(path.name + ".part.json")
        self._key = hashlib.sha256(plan.header + origin.encode()).hexdigest()

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
        num_done = self._num_done()
        try:
            with self._part.open("r+b" if num_done else "wb") as file:
                if not num_done:
                    file.write(self.plan.header)
                last = self.plan.tensors[num_done - 1] if num_done else None
                end = len(self.plan.header) if last is None else last.start + last.num_bytes
                file.truncate(end)
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
        self._mark.unlink(missing_ok=True)

    def _write_tensors(
        self,
        file: BinaryIO,
        num_done: int,
        produce: Callable[[PlannedTensor], Iterator[np.ndarray]],
        on_bytes: Callable[[int], None],
    ) -> None:
        marked_s = time.monotonic()
        for idx, tensor in enumerate(self.plan.tensors[num_done:], start=num_done + 1):
            file.seek(tensor.start)
            written = 0
            for piece in produce(tensor):
                file.write(piece.data)
                written += piece.nbytes
                on_bytes(piece.nbytes)
            if written != tensor.num_bytes:
                raise FormatError(f"{tensor.name}: {written} bytes were made, {tensor.num_bytes} were planned.")
            if time.monotonic() - marked_s > _SECONDS_BETWEEN_MARKS:
                # The data first: the mark must never promise what a loss of power took.
                file.flush()
                os.fsync(file.fileno())
                self._mark.write_text(json.dumps({"key": self._key, "num_tensors": idx}), encoding="utf-8")
                marked_s = time.monotonic()

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
