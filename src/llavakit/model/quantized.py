"""Matrices that stay as a GGUF file stores them: multiplied from their blocks, never expanded as a whole."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from llavakit.core.errors import ShapeError
from llavakit.kernels.library import load_library
from llavakit.kernels.machine import count_cpus
from llavakit.weights.dequantize import dequantize
from llavakit.weights.ggml_types import stored_bytes, type_by_name

__all__ = ["QuantizedMatrix"]


class QuantizedMatrix:
    """A matrix (N, K) in blocks, on a CPU.

    Parameters
    ----------
    data : uint8 array
        The blocks, row after row; a view of the mapped file.
    dtype : str
        A quantized type, such as ``q4_k``.
    shape : tuple of int
        N and K.

    Notes
    -----
    Products round their input to 8 bits, as ``csrc/llavakit_kernels.h`` says; docs/numerics.md has the effect.
    """

    def __init__(self, data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
        num_rows, num_columns = shape
        if data.nbytes != stored_bytes(dtype, num_rows * num_columns):
            raise ShapeError(f"{data.nbytes} bytes are no {dtype} matrix of {shape}.")
        self.data = data
        self.dtype = dtype
        self.shape = (num_rows, num_columns)
        self._library = load_library()
        self._type_id = type_by_name(dtype).type_id
        self._address = data.ctypes.data
        self._row_bytes = data.nbytes // num_rows

    def multiply(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N): ``x @ matrix.T``, in float32 with the input rounded to 8 bits."""
        num_rows, k = self.shape
        rows = x.reshape(-1, k).float().contiguous()
        out = torch.empty((len(rows), num_rows), dtype=torch.float32)
        self._library.matmul(
            self._address, self._type_id, rows.data_ptr(), out.data_ptr(), num_rows=len(rows), num_columns=num_rows,
            k=k, num_threads=_num_threads(),
        )  # fmt: skip
        return out.view(*x.shape[:-1], num_rows).to(x.dtype)

    def look_up(self, indices: Tensor) -> Tensor:
        """Return rows (..., K) in float32 for integer indices (...)."""
        blocks = self.data.reshape(self.shape[0], self._row_bytes)[indices.reshape(-1).numpy()]
        rows = torch.from_numpy(dequantize(blocks.reshape(-1), self.dtype, (indices.numel(), self.shape[1])))
        return rows.view(*indices.shape, self.shape[1])

    def expand(self) -> Tensor:
        """Return the whole matrix (N, K) in float32."""
        values = self._library.dequantize(self.data, self._type_id, self.shape[0] * self.shape[1])
        return torch.from_numpy(values).view(self.shape)


def _num_threads() -> int:
    """As many threads as torch uses, but never more than there are processors for this process."""
    return min(torch.get_num_threads(), _num_cpus())


@functools.cache
def _num_cpus() -> int:
    return count_cpus()
