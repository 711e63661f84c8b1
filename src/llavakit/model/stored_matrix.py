"""Matrices that stay as a GGUF file stores them: multiplied by the native library, never expanded as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llavakit.core.errors import NonFiniteError, ShapeError
from llavakit.kernels.library import Activation
from llavakit.kernels.structures import Matrix
from llavakit.model.native import multiply_stored, multiply_stored_pair
from llavakit.model.threads import count_threads, load_shared_library
from llavakit.weights.dequantize import dequantize
from llavakit.weights.ggml_types import is_quantized, stored_bytes, type_by_name

__all__ = ["StoredMatrix"]

# Widened to float32 at a time while quantizing: 16 MiB.
_QUANTIZED_WEIGHTS = 1 << 22


class StoredMatrix:
    """A matrix (N, K) as stored, on a CPU.

    Parameters
    ----------
    data : uint8 array
        Row after row; a view of the mapped file, or of a tensor.
    dtype : str
        ``float16``, ``bfloat16``, or a quantized type such as ``q4_k``.
    shape : tuple of int
        N and K.

    Notes
    -----
    Products of quantized matrices round their input to 8 bits, and those of more than four rows with float16 and
    bfloat16 round both sides to 13 bits and more, as ``csrc/llavakit_kernels.h`` says; docs/numerics.md has the effect.
    """

    def __init__(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
        num_rows, num_columns = shape
        if data.nbytes != stored_bytes(dtype, num_rows * num_columns):
            raise ShapeError(f"{data.nbytes} bytes are no {dtype} matrix of {shape}.")
        self.data = data
        self.dtype = dtype
        self.shape = (num_rows, num_columns)
        self.address: int = data.ctypes.data
        self._row_bytes = data.nbytes // num_rows

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.address = self.data.ctypes.data  # a copy has bytes of its own

    @classmethod
    def quantize(cls, weight: Tensor, dtype: str) -> StoredMatrix:
        """Quantize a matrix (N, K) of any floating-point dtype on a CPU; K is a multiple of the type's block length.

        Raises
        ------
        NonFiniteError
            If it holds NaN or infinity.
        """
        num_rows, k = weight.shape
        blocks = np.empty((num_rows, stored_bytes(dtype, k)), dtype=np.uint8)
        library, step = load_shared_library(), max(1, _QUANTIZED_WEIGHTS // k)
        for start in range(0, num_rows, step):
            rows = weight[start : start + step].float().contiguous()
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(
                    f"row {start} or one of the {step - 1} after it holds NaN or infinity; finite weights are needed."
                )
            library.quantize(
                rows.numpy(), type_by_name(dtype).type_id, blocks[start : start + step], num_threads=count_threads()
            )
        return cls(blocks.reshape(-1), dtype, (num_rows, k))

    @property
    def is_quantized(self) -> bool:
        """Whether the bytes are blocks with scales."""
        return is_quantized(self.dtype)

    def multiply(self, x: Tensor, bias: Tensor | None = None, *, activation: Activation = Activation.NONE) -> Tensor:
        """Map (..., K) to (..., N): ``activation(x @ matrix.T + bias)``, in float32, as the dtype of ``x``."""
        return multiply_stored(self.address, self.dtype, self.shape[0], x, bias, activation=activation)

    def multiply_twice(
        self,
        x: Tensor,
        bias: Tensor | None,
        second: StoredMatrix,
        second_bias: Tensor | None,
        *,
        activation: Activation,
    ) -> Tensor:
        """Return ``second.multiply(self.multiply(x, bias, activation=activation), second_bias)``, bit for bit.

        Where rows are many and weights have 16 bits, what lies between is handed on as it is rounded, and not stored.
        """
        return multiply_stored_pair(self.describe(), bias, second.describe(), second_bias, x, activation=activation)

    def describe(self, *, is_interleaved: bool = False) -> Matrix:
        """Return what the native library is told of it; the matrix has to outlive that."""
        num_columns, k = self.shape
        return Matrix(self.address, num_columns, k, type_by_name(self.dtype).type_id, is_interleaved)

    def look_up(self, indices: Tensor) -> Tensor:
        """Return rows (..., K) in float32 for integer indices (...)."""
        chosen = self.data.reshape(self.shape[0], self._row_bytes)[indices.reshape(-1).numpy()].reshape(-1)
        if self.is_quantized:
            rows = torch.from_numpy(dequantize(chosen, self.dtype, (indices.numel(), self.shape[1])))
        else:
            rows = torch.from_numpy(chosen).view(getattr(torch, self.dtype)).float()
        return rows.view(*indices.shape, self.shape[1])

    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity; widens a few rows at a time."""
        num_rows, step = self.shape[0], max(1, _QUANTIZED_WEIGHTS // self.shape[1])
        starts = range(0, num_rows, step)
        return all(
            bool(torch.isfinite(self.look_up(torch.arange(start, min(start + step, num_rows)))).all())
            for start in starts
        )

    def expand(self) -> Tensor:
        """Return the whole matrix (N, K) in float32."""
        type_id = type_by_name(self.dtype).type_id
        values = load_shared_library().dequantize(self.data, type_id, self.shape[0] * self.shape[1])
        return torch.from_numpy(values).view(self.shape)
