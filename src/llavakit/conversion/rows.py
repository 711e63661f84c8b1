"""Rows of a stored tensor as float32, and back to bytes of any type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from llavakit.core.errors import NonFiniteError
from llavakit.kernels.library import load_library
from llavakit.weights.ggml_types import is_quantized, stored_bytes, type_by_name
from llavakit.weights.mapped_file import RawTensor

__all__ = ["Target", "encode_tensor"]

# Weights of one slice: 16 MiB in float32, large beside the cost of a call and small beside any machine's memory.
_SLICE_WEIGHTS = 1 << 22
# All set in NaN and infinity, and in no other number.
_EXPONENTS = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


@dataclass(frozen=True)
class Target:
    """What a tensor becomes.

    Attributes
    ----------
    dtype : str
    num_rows : int
        At least those of the source; further rows repeat the first one.
    head_dim : int
        Rows of an attention head, for queries and keys.
    has_interleaved_heads : bool
        Whether the rows of a head stand in GGUF's order.
    importance : float32 array (k,), optional
        What a column's error weighs.
    num_threads : int
    """

    dtype: str
    num_rows: int
    head_dim: int
    has_interleaved_heads: bool
    importance: np.ndarray | None
    num_threads: int


def encode_tensor(tensor: RawTensor, target: Target) -> Iterator[np.ndarray]:
    """Convert a tensor slice by slice; the next slice is read while one is quantized.

    Yields
    ------
    uint8 arrays
        The bytes of whole rows, in order.

    Raises
    ------
    NonFiniteError
        If a weight is NaN or infinite, or too large for float16.
    """
    num_rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
    if tensor.dtype == target.dtype and _is_same_order(tensor, target) and num_rows == target.num_rows:
        yield from _copies(tensor)
        return
    per_slice = max(1, _SLICE_WEIGHTS // width)
    if not _is_same_order(tensor, target):  # whole heads
        per_slice = max(1, per_slice // target.head_dim) * target.head_dim
    starts = range(0, num_rows, per_slice)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read_rows, tensor, 0, min(per_slice, num_rows))
        for start in starts:
            values, end = coming.result(), start + per_slice
            if end < num_rows:
                coming = reader.submit(_read_rows, tensor, end, min(end + per_slice, num_rows))
            yield _encode(tensor, values, target)
    if target.num_rows > num_rows:
        filler = np.repeat(_read_rows(tensor, 0, 1), target.num_rows - num_rows, axis=0)
        yield _encode(tensor, filler, target)
    tensor.release()


def _is_same_order(tensor: RawTensor, target: Target) -> bool:
    return tensor.has_interleaved_heads == target.has_interleaved_heads


def _copies(tensor: RawTensor) -> Iterator[np.ndarray]:
    num_rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
    row_bytes = stored_bytes(tensor.dtype, width)
    per_slice = max(1, _SLICE_WEIGHTS // width)
    for start in range(0, num_rows, per_slice):
        stop = min(start + per_slice, num_rows)
        piece = tensor.data[start * row_bytes : stop * row_bytes]
        if tensor.dtype in _EXPONENTS:
            bits = np.dtype("uint32" if tensor.dtype == "float32" else "uint16").type(_EXPONENTS[tensor.dtype])
            is_finite = not ((piece.view(bits.dtype) & bits) == bits).any()
        else:  # a scale may be none
            is_finite = bool(np.isfinite(_read_rows(tensor, start, stop)).all())
        if not is_finite:
            raise _not_finite(tensor)
        yield piece
    tensor.release()


def _read_rows(tensor: RawTensor, start: int, stop: int) -> np.ndarray:
    width = math.prod(tensor.shape[1:])
    row_bytes = stored_bytes(tensor.dtype, width)
    data = tensor.data[start * row_bytes : stop * row_bytes]
    shape = (stop - start, width)
    if is_quantized(tensor.dtype):
        values = load_library().dequantize(data, type_by_name(tensor.dtype).type_id, math.prod(shape))
        return values.reshape(shape)
    if tensor.dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return data.view(np.dtype(tensor.dtype)).astype(np.float32).reshape(shape)


def _encode(tensor: RawTensor, values: np.ndarray, target: Target) -> np.ndarray:
    if not np.isfinite(values).all():
        raise _not_finite(tensor)
    if not _is_same_order(tensor, target):
        values = _reorder(values, target)
    if target.dtype == "float32":
        return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    if target.dtype == "float16":
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise NonFiniteError(
                f"tensor {tensor.file_name!r} holds {np.abs(values).max():.4g}, beyond float16; take bf16 or f32."
            )
        return halves.view(np.uint8).reshape(-1)
    if target.dtype == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
        return rounded.astype(np.uint16).view(np.uint8).reshape(-1)
    out = np.empty(stored_bytes(target.dtype, values.size), dtype=np.uint8)
    load_library().quantize(
        np.ascontiguousarray(values), type_by_name(target.dtype).type_id, out, num_threads=target.num_threads,
        importance=target.importance,
    )  # fmt: skip
    return out


def _not_finite(tensor: RawTensor) -> NonFiniteError:
    return NonFiniteError(
        f"tensor {tensor.file_name!r} holds NaN or infinity; finite weights are needed. The file is damaged or its "
        "training diverged: fetch it again."
    )


def _reorder(values: np.ndarray, target: Target) -> np.ndarray:
    """Between the halves (0, 1, ..., d/2, ...) and the pairs (0, d/2, 1, d/2 + 1, ...) of every head."""
    half = target.head_dim // 2
    parts = (2, half) if target.has_interleaved_heads else (half, 2)
    return values.reshape(-1, *parts, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
