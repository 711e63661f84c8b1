"""Files mapped into memory, and tensors that are views of them."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from llavakit.core.errors import FormatError
from llavakit.weights.ggml_types import is_quantized

__all__ = ["MappedFile", "RawTensor"]

# Linux: reserve no swap for a private mapping, which may be larger than the memory it will ever touch.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
# What a repository's clone without Git LFS holds in place of large files.
_LFS_POINTER = b"version https://git-lfs."


class MappedFile:
    """One file, mapped privately: pages are shared with other processes until somebody writes to them.

    Raises
    ------
    FormatError
        If the file is empty, cannot be mapped, or only stands for the real one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise FormatError(f"{path.name} is no ordinary file; a file of weights is needed.")
                self.num_bytes = file.seek(0, 2)
                if self.num_bytes == 0:
                    raise FormatError(f"{path.name} is empty (0 bytes); fetch the model again.")
                self._map = self._open(file.fileno())
        except (OSError, ValueError) as error:
            raise FormatError(f"{path.name} cannot be read ({error}).") from error
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        if self._bytes[: len(_LFS_POINTER)].tobytes() == _LFS_POINTER:
            raise FormatError(
                f"{path.name} is a Git LFS pointer of {self.num_bytes} bytes and not the file it stands for. Run "
                f"`git lfs pull` in {str(path.parent)!r}, or fetch the model again."
            )

    def _open(self, fileno: int) -> mmap.mmap:
        if sys.platform == "win32":
            return mmap.mmap(fileno, self.num_bytes, access=mmap.ACCESS_COPY)
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return mmap.mmap(fileno, self.num_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def view(self, start: int, num_bytes: int) -> np.ndarray:
        """Return bytes of the file as a uint8 array, without copying."""
        if start < 0 or num_bytes < 0 or start + num_bytes > self.num_bytes:
            raise FormatError(
                f"{self.path.name}: bytes {start} to {start + num_bytes} are asked for, the file has {self.num_bytes}. "
                "It is truncated or damaged; fetch the model again."
            )
        return self._bytes[start : start + num_bytes]

    def release(self, start: int, num_bytes: int) -> None:
        """Give whole pages of a range back; they are read from the file again when needed."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        first = -(-start // page) * page
        length = (start + num_bytes) // page * page - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)


@dataclass(frozen=True)
class RawTensor:
    """One tensor of a checkpoint.

    Attributes
    ----------
    name : str
        Our name.
    file_name : str
        The name in the file.
    dtype : str
        ``float32``, ``float16``, ``bfloat16``, or a quantized type of GGUF; of skipped tensors also others.
    shape : tuple of int
    has_interleaved_heads : bool
        The rows of every attention head stand in pairs (0, d/2, 1, d/2 + 1, ...), as GGUF files keep queries and keys.
    """

    name: str
    file_name: str
    dtype: str
    shape: tuple[int, ...]
    file: MappedFile
    start: int
    num_bytes: int
    has_interleaved_heads: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the bytes are blocks with scales."""
        return is_quantized(self.dtype)

    @cached_property
    def data(self) -> np.ndarray:
        """The bytes: a writable uint8 view of the file, or a copy where the file is not aligned for the dtype."""
        view = self.file.view(self.start, self.num_bytes)
        if self.is_quantized:  # read byte by byte, at any address
            return view
        itemsize = 4 if self.dtype == "float32" else 2
        return view if view.ctypes.data % itemsize == 0 else view.copy()

    def release(self) -> None:
        """Give the pages back to the operating system; they can be read again."""
        self.file.release(self.start, self.num_bytes)
