"""A bounded store of byte strings on the disk, so that a restart does not lose what was computed.

An entry is one file, written under another name and renamed when it is whole, with a digest of its content. What a
kill left half written is never read; what the disk has damaged is noticed and dropped. Writing happens on a thread of
its own and is best effort: a full disk costs the entry, not the answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import re
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from llavakit.core.errors import ConfigError

__all__ = ["DiskStore"]

_LOG = logging.getLogger(__name__)
_DIGEST_BYTES = 32
_MAX_QUEUED_BYTES = 64 << 20  # of memory, where the disk is slower than pictures come
_PARTIAL = ".part"
# Files of a store: a block's digest, or a picture's behind what else decides its features. Others are somebody else's.
_OWN_FILE = re.compile(rf"(?:[0-9a-f]{{16}}-)?[0-9a-f]{{64}}({re.escape(_PARTIAL)})?")


class DiskStore:
    """Entries by name: a SHA-256 in hexadecimal digits, or 16 further ones, a hyphen and a SHA-256.

    Several engines may share a store. Files of other names, links and folders inside the folder are left alone.

    Parameters
    ----------
    folder : Path
        Made if need be. One store at a time; another process's is harmless, but may drop entries early.
    max_bytes : int
        Of all entries; the least recently used ones are dropped beyond it.

    Raises
    ------
    ConfigError
        If the folder cannot be made or read.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._num_bytes = 0
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._queued: set[str] = set()
        self._num_queued_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._find_entries()
        except OSError as error:
            raise ConfigError(
                f"the cache folder {str(folder)!r} cannot be used ({error.strerror or error}). Name a folder that can "
                "be read and written, or none."
            ) from error
        self._make_room(0)
        self._writer = threading.Thread(target=self._write_queued, name="disk store", daemon=True)
        self._writer.start()

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._sizes

    @property
    def num_bytes(self) -> int:
        """Of all entries."""
        return self._num_bytes

    def get(self, name: str) -> bytes | None:
        """Return an entry, or None if there is none or it is damaged."""
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        path = self._folder / name
        try:
            content = path.read_bytes()
        except OSError:
            self._drop(name)
            return None
        with contextlib.suppress(OSError):  # a folder that can only be read
            os.utime(path)  # the order of use outlives a restart
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(name.encode() + data).digest() != digest:
            _LOG.warning("a damaged entry of %d bytes was dropped from the disk cache", len(content))
            self._drop(name)
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write an entry soon; one that is there already, or comes faster than the disk, is left out."""
        with self._lock:
            if name in self._sizes or name in self._queued or len(data) + _DIGEST_BYTES > self.max_bytes:
                return
            if self.is_full:
                return
            self._queued.add(name)
            self._num_queued_bytes += len(data)
        self._queue.put((name, data))

    @property
    def is_full(self) -> bool:
        """Whether more is queued than the disk keeps up with, so that `put` would leave an entry out."""
        return self._num_queued_bytes >= _MAX_QUEUED_BYTES

    def flush(self) -> None:
        """Wait until everything queued is written."""
        self._queue.join()

    def close(self) -> None:
        """Write what is queued and stop."""
        self._queue.put(None)
        self._writer.join()

    def _find_entries(self) -> None:
        found = []
        for path in self._folder.iterdir():
            match = _OWN_FILE.fullmatch(path.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                if match[1]:
                    path.unlink()
                else:
                    found.append((status.st_mtime_ns, path.name, status.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._num_bytes += size

    def _write_queued(self) -> None:
        while (item := self._queue.get()) is not None:
            name, data = item
            try:
                self._write(name, data)
            except OSError as error:
                _LOG.warning("an entry of %d bytes could not be kept on the disk (%s)", len(data), error)
            finally:
                with self._lock:
                    self._queued.discard(name)
                    self._num_queued_bytes -= len(data)
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, name: str, data: bytes) -> None:
        self._make_room(len(data) + _DIGEST_BYTES)
        partial = self._folder / f"{name}{_PARTIAL}"
        try:
            with partial.open("wb") as file:
                file.write(hashlib.sha256(name.encode() + data).digest())
                file.write(data)
            partial.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):  # the first error says why
                partial.unlink(missing_ok=True)
            raise
        with self._lock:
            self._sizes[name] = len(data) + _DIGEST_BYTES
            self._num_bytes += len(data) + _DIGEST_BYTES

    def _make_room(self, num_bytes: int) -> None:
        while (name := self._first_to_drop(num_bytes)) is not None:
            self._drop(name)

    def _first_to_drop(self, num_bytes: int) -> str | None:
        """Return the least recently used entry, if so many bytes more are over the bound."""
        with self._lock:
            is_over = self._num_bytes + num_bytes > self.max_bytes
            return next(iter(self._sizes), None) if is_over else None

    def _drop(self, name: str) -> None:
        with self._lock:
            self._num_bytes -= self._sizes.pop(name, 0)
        with contextlib.suppress(OSError):  # what cannot be removed is not used again all the same
            (self._folder / name).unlink(missing_ok=True)
