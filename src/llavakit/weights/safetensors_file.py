"""Safetensors files: where each tensor lies. The library checks the header; limits and messages are ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llavakit.core.errors import FormatError
from llavakit.weights.mapped_file import MappedFile, RawTensor

__all__ = ["open_safetensors"]

# Integers occur only in stale buffers, which are skipped by name; the accounting refuses them anywhere else.
_DTYPES = {
    "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F64": ("float64", 8), "I64": ("int64", 8),
    "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
# LLaVA-1.5 13B has 760 tensors and 90 kB of header. The library would accept 100 MB, which take gigabytes as objects.
_MAX_HEADER_BYTES = 16 * 1024**2


def open_safetensors(path: Path) -> dict[str, RawTensor]:
    """Map a safetensors file and list its tensors by their names in the file.

    Raises
    ------
    FormatError
        If the header is truncated, too large, contradictory, or holds a dtype that is not supported.
    """
    file = MappedFile(path)
    header, start = _header(file)
    try:
        # The library's own validation: overlapping or missing ranges, shapes that do not match, hostile sizes.
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path.name} is no valid safetensors file ({error}). Fetch the model again.") from error
    return {name: _tensor(name, entry, file, start) for name, entry in header.items() if name != "__metadata__"}


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    name = file.path.name
    if file.num_bytes < 8:
        raise FormatError(
            f"{name} has {file.num_bytes} bytes; a safetensors file has at least 8. Fetch the model again."
        )
    length = int.from_bytes(file.view(0, 8).tobytes(), "little")
    if length > _MAX_HEADER_BYTES or 8 + length > file.num_bytes:
        raise FormatError(
            f"{name}: the header claims {length} bytes, the file has {file.num_bytes} and at most {_MAX_HEADER_BYTES} "
            "are read. It is truncated, or no safetensors file; fetch the model again."
        )
    try:
        header = json.loads(file.view(8, length).tobytes(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: the header is no valid JSON ({error}). Fetch the model again.") from error
    if not isinstance(header, dict):
        raise FormatError(f"{name}: the header is {type(header).__name__}, an object is needed. Fetch the model again.")
    return header, 8 + length


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice")
    return content


def _tensor(name: str, entry: Any, file: MappedFile, data_start: int) -> RawTensor:
    try:
        dtype_name, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{file.path.name}: tensor {name!r} has a damaged entry ({error!r}).") from error
    if dtype_name not in _DTYPES:
        raise FormatError(
            f"{file.path.name}: tensor {name!r} is stored as {dtype_name}; F32, F16 and BF16 are supported. "
            "Quantized checkpoints are not read here."
        )
    dtype, itemsize = _DTYPES[dtype_name]
    if begin < 0 or end - begin != math.prod(shape) * itemsize or data_start + end > file.num_bytes:
        raise FormatError(
            f"{file.path.name}: tensor {name!r} of shape {shape} needs {math.prod(shape) * itemsize} bytes, its range "
            f"has {end - begin} and ends at {data_start + end} of {file.num_bytes}. Fetch the model again."
        )
    return RawTensor(name, name, dtype, shape, file, data_start + begin, end - begin)
