"""What the products with quantized weights must give: slow, obvious, in double precision."""

from __future__ import annotations

import numpy as np

from llavakit.weights.dequantize import dequantize
from llavakit.weights.ggml_types import type_by_name

LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def make_blocks(dtype: str, num_rows: int, k: int, seed: int, *, scale: float = 1.0) -> np.ndarray:
    """Random bytes as blocks (num_rows, bytes of a row), with every float16 in them finite and of a sane size."""
    entry = type_by_name(dtype)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_rows * (k // entry.block_length), entry.block_bytes), dtype=np.uint8)
    for start in {"q6_k": (208,), "q3_k": (108,), "q2_k": (80, 82), "q4_k": (0, 2), "q5_k": (0, 2), "q4_1": (0, 2),
                  "q5_1": (0, 2)}.get(dtype, (0,)):  # fmt: skip
        halves = (rng.standard_normal(len(blocks)) * scale).astype(np.float16)
        blocks[:, start : start + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(num_rows, -1)


def round_rows(x: np.ndarray, dtype: str) -> np.ndarray:
    """Activations (m, k) as the kernels round them: to 255 steps in every span of 256, or of 32 for legacy types."""
    span = 32 if dtype in LEGACY else 256
    out = np.zeros(x.shape, dtype=np.float64)
    for start in range(0, x.shape[1], span):
        part = x[:, start : start + span].astype(np.float32)
        greatest = np.abs(part).max(axis=1, keepdims=True)
        is_zero = greatest < 2.0**-120
        factor = np.where(is_zero, np.float32(0), np.float32(127) / np.where(is_zero, np.float32(1), greatest))
        out[:, start : start + span] = np.rint(part * factor).astype(np.float64) * (greatest / np.float32(127))
    return out


def multiply(x: np.ndarray, blocks: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact product (m, n) of the rounded activations, and the sum of magnitudes it was made of."""
    weights = dequantize(blocks.reshape(-1), dtype, (len(blocks), x.shape[1])).astype(np.float64)
    rounded = round_rows(x, dtype)
    return rounded @ weights.T, np.abs(rounded) @ np.abs(weights).T
