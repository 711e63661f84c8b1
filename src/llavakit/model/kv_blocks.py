"""Keys and values in 8 bits: blocks of 32 numbers of a head with one scale, as GGUF's Q8_0.

A cache of blocks is a uint8 tensor whose last axis holds the 34 bytes of every block: a float16 scale, then the numbers
as multiples of it, the greatest of them 127.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llavakit.core.errors import ConfigError
from llavakit.kernels.library import has_library
from llavakit.model.threads import count_threads, load_shared_library

__all__ = ["BLOCKS", "num_bytes", "read_blocks", "round_slowly", "to_blocks"]

BLOCKS = torch.uint8
"""The dtype of a cache of blocks."""

_LENGTH = 32
_BYTES = 34
_GREATEST_HALF = 65504.0


def num_bytes(head_dim: int) -> int:
    """Bytes of one head at one position.

    Raises
    ------
    ConfigError
        If the head is not made of whole blocks.
    """
    if head_dim % _LENGTH:
        raise ConfigError(
            f"an 8-bit key-value cache needs heads of a multiple of {_LENGTH} numbers; this model's have {head_dim}. "
            "Leave kv_dtype out."
        )
    return head_dim // _LENGTH * _BYTES


def to_blocks(x: Tensor) -> Tensor:
    """Round numbers (..., E) to blocks (..., num_bytes(E))."""
    if x.device.type != "cpu" or not has_library():
        return round_slowly(x)
    x = x.float().contiguous()
    out = torch.empty((*x.shape[:-1], num_bytes(x.shape[-1])), dtype=BLOCKS)
    load_shared_library().round_blocks(
        x.data_ptr(), out.data_ptr(), num_blocks=x.numel() // _LENGTH, num_threads=count_threads()
    )
    return out


def round_slowly(x: Tensor) -> Tensor:
    """Compute `to_blocks` in torch, bit for bit the same."""
    blocks = x.float().reshape(*x.shape[:-1], -1, _LENGTH)
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(max=_GREATEST_HALF).half()
    factors = torch.where(scales > 0, 1 / scales.float(), 0.0)
    numbers = (blocks * factors).clamp(-127, 127).round().nan_to_num().to(torch.int8)
    return torch.cat((scales.view(torch.uint8), numbers.view(torch.uint8)), dim=-1).flatten(-2)


def read_blocks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers (..., E) of blocks."""
    blocks = x.reshape(*x.shape[:-1], -1, _BYTES)
    scales = blocks[..., :2].contiguous().view(torch.float16)
    numbers = blocks[..., 2:].contiguous().view(torch.int8)
    return (numbers.float() * scales.float()).flatten(-2).to(dtype)
