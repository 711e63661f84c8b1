"""The header of a GGUF file, and where its tensors go."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from llavakit.weights.ggml_types import stored_bytes, type_by_name
from llavakit.weights.gguf_file import GgufValue
from llavakit.weights.streamed_file import FilePlan, PlannedTensor

__all__ = ["plan_gguf"]

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def plan_gguf(metadata: Mapping[str, GgufValue], tensors: Sequence[tuple[str, str, str, tuple[int, ...]]]) -> FilePlan:
    """Lay out a file of version 3.

    Parameters
    ----------
    metadata : mapping
        Whole numbers are written as uint32, others as float32; arrays are float32, int32 or strings.
    tensors : sequence of (name in the file, our name, dtype, shape)
        Shapes with the outermost dimension first.
    """
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    offset = 0
    offsets = []
    for name, _, dtype, shape in tensors:
        out += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        out += struct.pack("<IQ", type_by_name(dtype).type_id, offset)
        offsets.append(offset)
        offset = _align(offset + stored_bytes(dtype, math.prod(shape)))
    out += bytes(_align(len(out)) - len(out))
    planned = tuple(
        PlannedTensor(name, source, dtype, shape, len(out) + start, stored_bytes(dtype, math.prod(shape)))
        for (name, source, dtype, shape), start in zip(tensors, offsets, strict=True)
    )
    return FilePlan(bytes(out), planned, len(out) + offset)


def _align(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: GgufValue) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, np.ndarray):
        kind = _FLOAT32 if value.dtype.kind == "f" else _INT32
        data = value.astype("<f4" if kind == _FLOAT32 else "<i4").tobytes()
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + data
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_text(item) for item in value)
