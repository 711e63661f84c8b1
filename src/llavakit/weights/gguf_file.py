"""GGUF files: metadata, and where each tensor lies.

The reader trusts nothing. Every count, length, type, offset and size is checked against what is left of the file before
it is used, so that no file makes it allocate more than a small multiple of the file's own header.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.core.errors import FormatError
from llavakit.weights.ggml_types import GGML_TYPES, REFUSED_TYPES, stored_bytes
from llavakit.weights.mapped_file import MappedFile, RawTensor

__all__ = ["GgufFile", "GgufValue", "open_gguf"]

GgufValue = int | float | bool | str | list[str] | np.ndarray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_KEYS = 1 << 16
_MAX_NAME_BYTES = 1024
_MAX_STRINGS = 1 << 20
_MAX_HEADER_BYTES = 256 * 1024**2
_MAX_DIMS = 4
_MAX_WEIGHTS = 1 << 40
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("<u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file.

    Attributes
    ----------
    file : MappedFile
    metadata : mapping from key to value
        Numbers, strings, lists of strings, and arrays of numbers as read-only numpy arrays.
    tensors : mapping from the name in the file to RawTensor
        Shapes are ours: the outermost dimension first.
    """

    file: MappedFile
    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, RawTensor]

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.file.path


def open_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and read its header.

    Raises
    ------
    FormatError
        If it is no GGUF file, is truncated, contradicts itself, or holds a type that is not supported.
    """
    file = MappedFile(path)
    reader = _Reader(file)
    num_tensors, num_keys = _read_counts(reader)
    metadata: dict[str, GgufValue] = {}
    for _ in range(num_keys):
        key = reader.text("a key", _MAX_NAME_BYTES)
        if key in metadata:
            raise reader.error(f"the key {key!r} stands twice")
        metadata[key] = _read_value(reader, key)
    alignment = _alignment(reader, metadata)
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(num_tensors):
        name, entry = _read_tensor_info(reader)
        if name in entries:
            raise reader.error(f"the tensor {name!r} stands twice")
        entries[name] = entry
    start = -(-reader.position // alignment) * alignment
    return GgufFile(file, metadata, _place(reader, entries, start=start, alignment=alignment))


class _Reader:
    """Walks the header; nothing is read behind the end of the file."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self.end = min(file.num_bytes, _MAX_HEADER_BYTES)
        self.position = 0

    def error(self, what: str) -> FormatError:
        return FormatError(f"{self._file.path.name}: {what}. The file is damaged or half downloaded; fetch it again.")

    @property
    def left(self) -> int:
        return self.end - self.position

    @property
    def num_file_bytes(self) -> int:
        return self._file.num_bytes

    @property
    def file(self) -> MappedFile:
        return self._file

    def take(self, num_bytes: int, what: str) -> np.ndarray:
        if num_bytes > self.left:
            raise self.error(
                f"{what} at byte {self.position} needs {num_bytes} bytes, but {self.left} are left of "
                f"{self._file.num_bytes}"
            )
        view = self._file.view(self.position, num_bytes)
        self.position += num_bytes
        return view

    def number(self, code: str, what: str) -> int:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(code), what).tobytes())
        return int(value)

    def text(self, what: str, max_bytes: int) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > max_bytes:
            raise self.error(f"{what} at byte {self.position} claims {length} bytes; at most {max_bytes} are read")
        data = self.take(length, what).tobytes()
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} at byte {self.position - length} is no text ({error})") from error


def _read_counts(reader: _Reader) -> tuple[int, int]:
    magic = reader.take(4, "the magic number").tobytes()
    if magic != _MAGIC:
        raise FormatError(
            f"{reader.file.path.name} starts with {magic!r}, a GGUF file starts with {_MAGIC!r}. It is another kind of "
            "file, or a failed download: fetch it again."
        )
    version = reader.number("I", "the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        found = f"version {swapped} of a big-endian machine" if swapped in _VERSIONS else f"version {version}"
        raise FormatError(
            f"{reader.file.path.name} is GGUF of {found}; versions {_VERSIONS[0]} and {_VERSIONS[1]}, little-endian, "
            "are read. Convert it again with a current program."
        )
    num_tensors, num_keys = reader.number("Q", "the tensor count"), reader.number("Q", "the key count")
    if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
        raise reader.error(
            f"the header claims {num_tensors} tensors and {num_keys} keys; at most {_MAX_TENSORS} of each are read"
        )
    return num_tensors, num_keys


def _read_value(reader: _Reader, key: str) -> GgufValue:
    what = f"the value of {key!r}"
    kind = reader.number("I", what)
    if kind == _STRING:
        return reader.text(what, reader.left)
    if kind == _ARRAY:
        return _read_array(reader, what)
    if kind not in _NUMBERS:
        raise reader.error(f"{what} has the type {kind}, which does not exist")
    value = reader.take(_NUMBERS[kind].itemsize, what).view(_NUMBERS[kind])[0].item()
    if kind == _BOOL:
        return bool(value)
    return float(value) if isinstance(value, float) else int(value)


def _read_array(reader: _Reader, what: str) -> list[str] | np.ndarray:
    kind, count = reader.number("I", what), reader.number("Q", what)
    if kind in _NUMBERS:
        if count > reader.left:
            raise reader.error(f"{what} claims {count} elements, but {reader.left} bytes are left")
        array = reader.take(count * _NUMBERS[kind].itemsize, what).view(_NUMBERS[kind])
        array.flags.writeable = False
        return array
    if kind != _STRING:
        raise reader.error(f"{what} is an array of type {kind}; arrays of numbers and of strings are read")
    if count > min(_MAX_STRINGS, reader.left // 8):
        raise reader.error(
            f"{what} claims {count} strings; at most {_MAX_STRINGS} are read, and {reader.left} bytes are left"
        )
    return [reader.text(what, reader.left) for _ in range(count)]


def _alignment(reader: _Reader, metadata: Mapping[str, GgufValue]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 8 <= alignment <= _MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise reader.error(
            f"general.alignment is {str(alignment)[:50]}; a power of two from 8 to {_MAX_ALIGNMENT} is needed"
        )
    return alignment


def _read_tensor_info(reader: _Reader) -> tuple[str, tuple[str, tuple[int, ...], int]]:
    name = reader.text("a tensor's name", _MAX_NAME_BYTES)
    num_dims = reader.number("I", f"the dimensions of {name!r}")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise reader.error(f"tensor {name!r} claims {num_dims} dimensions; 1 to {_MAX_DIMS} are possible")
    dims = tuple(reader.number("Q", f"the dimensions of {name!r}") for _ in range(num_dims))
    type_id, offset = reader.number("I", f"the type of {name!r}"), reader.number("Q", f"the offset of {name!r}")
    if 0 in dims or math.prod(dims) > _MAX_WEIGHTS:
        raise reader.error(f"tensor {name!r} has the impossible dimensions {dims}")
    if type_id not in GGML_TYPES:
        kind = REFUSED_TYPES.get(type_id, f"number {type_id}")
        raise FormatError(
            f"{reader.file.path.name}: tensor {name!r} is stored in the type {kind}, which is not supported. Supported "
            f"are {', '.join(entry.name for entry in GGML_TYPES.values())}: take a file of these, such as Q4_K_M."
        )
    entry = GGML_TYPES[type_id]
    if dims[0] % entry.block_length:
        raise reader.error(
            f"tensor {name!r} has rows of {dims[0]} weights; {entry.name} needs a multiple of {entry.block_length}"
        )
    return name, (entry.name, tuple(reversed(dims)), offset)


def _place(
    reader: _Reader, entries: Mapping[str, tuple[str, tuple[int, ...], int]], *, start: int, alignment: int
) -> dict[str, RawTensor]:
    """Check that every tensor lies inside the file and on no other one."""
    tensors: dict[str, RawTensor] = {}
    for name, (dtype, shape, offset) in entries.items():
        num_bytes = stored_bytes(dtype, math.prod(shape))
        if offset % alignment:
            raise reader.error(f"tensor {name!r} lies at offset {offset}, which is no multiple of {alignment}")
        if start + offset + num_bytes > reader.num_file_bytes:
            raise reader.error(
                f"tensor {name!r} of shape {shape} ends at byte {start + offset + num_bytes}, the file has "
                f"{reader.num_file_bytes}"
            )
        tensors[name] = RawTensor(name, name, dtype, shape, reader.file, start + offset, num_bytes)
    _check_apart(reader.error, tensors)
    return tensors


def _check_apart(error: Callable[[str], FormatError], tensors: Mapping[str, RawTensor]) -> None:
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.start)
    for before, after in pairwise(ordered):
        if before.start + before.num_bytes > after.start:
            raise error(f"the tensors {before.name!r} and {after.name!r} overlap")
