"""Quantized blocks to float32, in numpy: slow, obvious, and bit for bit what the formats' own reference gives.

The oracle of the native kernels, and the way to a float copy of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llavakit.weights.ggml_types import type_by_name

__all__ = ["dequantize"]

Floats = NDArray[np.float32]


def dequantize(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Floats:
    """Expand a tensor.

    Parameters
    ----------
    data : uint8 array
        Whole blocks.
    dtype : str
        A quantized type, such as ``q4_k``.
    shape : tuple of int

    Returns
    -------
    float32 array of ``shape``
    """
    blocks = data.reshape(-1, type_by_name(dtype).block_bytes)
    return _UNPACK[dtype](blocks).reshape(shape)


def _halves(blocks: np.ndarray, start: int) -> Floats:
    """Read a float16 of every block, as a float32 column (n, 1)."""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """(n, 16) bytes to (n, 32) numbers: all low halves, then all high halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """(n, 4) bytes to (n, 32) bits in the fifth place."""
    return (np.unpackbits(packed, axis=1, bitorder="little") << 4).astype(np.uint8)


def _around(q: np.ndarray, zero: int) -> Floats:
    shifted: Floats = q.astype(np.float32) - np.float32(zero)
    return shifted


def _q4_0(blocks: np.ndarray) -> Floats:
    return _halves(blocks, 0) * _around(_nibbles(blocks[:, 2:]), 8)


def _q4_1(blocks: np.ndarray) -> Floats:
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _halves(blocks, 2)


def _q5_0(blocks: np.ndarray) -> Floats:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _halves(blocks, 0) * _around(q, 16)


def _q5_1(blocks: np.ndarray) -> Floats:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    scaled: Floats = _halves(blocks, 0) * q.astype(np.float32) + _halves(blocks, 2)
    return scaled


def _q8_0(blocks: np.ndarray) -> Floats:
    return _halves(blocks, 0) * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


def _scales_k4(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack the eight 6-bit scales and eight minimums in 12 bytes (n, 12), each as (n, 8)."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=1)
    mins = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=1)
    return scales, mins


def _scaled(blocks: np.ndarray, q: np.ndarray, scales: np.ndarray, mins: np.ndarray, halves_at: int) -> Floats:
    """``d * scale * q - dmin * min`` by groups; q (n, groups, length)."""
    scale = _halves(blocks, halves_at) * scales.astype(np.float32)
    minimum = _halves(blocks, halves_at + 2) * mins.astype(np.float32)
    return scale[:, :, None] * q.astype(np.float32) - minimum[:, :, None]


def _q4_k(blocks: np.ndarray) -> Floats:
    packed = blocks[:, 16:].reshape(-1, 4, 32)
    q = np.stack((packed & 15, packed >> 4), axis=2).reshape(-1, 8, 32)
    return _scaled(blocks, q, *_scales_k4(blocks[:, 4:16]), halves_at=0)


def _q5_k(blocks: np.ndarray) -> Floats:
    packed = blocks[:, 48:].reshape(-1, 4, 32)
    low = np.stack((packed & 15, packed >> 4), axis=2).reshape(-1, 8, 32)
    high = (blocks[:, 16:48][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _scaled(blocks, low | (high << 4), *_scales_k4(blocks[:, 4:16]), halves_at=0)


def _two_bits(packed: np.ndarray) -> np.ndarray:
    """(n, 64) bytes to (n, 8, 32) numbers of two bits."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 8, 32)


def _q2_k(blocks: np.ndarray) -> Floats:
    q = _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16)
    return _scaled(blocks, q, blocks[:, :16] & 15, blocks[:, :16] >> 4, halves_at=80)


def _q3_k(blocks: np.ndarray) -> Floats:
    packed = blocks[:, 96:108]
    low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), axis=1)
    high = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = _around(low | (high << 4), 32)
    third = (blocks[:, :32][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = _around(_two_bits(blocks[:, 32:96]) | (third << 2), 4).reshape(-1, 16, 16)
    return (_halves(blocks, 108) * scales)[:, :, None] * q


def _q6_k(blocks: np.ndarray) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 64)
    low = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 8, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 8, 32)
    q = _around(low | (high << 4), 32).reshape(-1, 16, 16)
    scale = _halves(blocks, 208) * blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    return scale[:, :, None] * q


_UNPACK: dict[str, Callable[[np.ndarray], Floats]] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0,
    "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
}  # fmt: skip
