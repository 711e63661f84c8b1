"""Products and what lies between them, computed by the native library.

Each function is the torch expression in its docstring, on float32 tensors of a CPU; ``layers`` has the readable forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llavakit.kernels.library import Activation
from llavakit.kernels.structures import AttentionCall, Matrix
from llavakit.model import kv_blocks
from llavakit.model.threads import count_threads, load_shared_library
from llavakit.weights.ggml_types import type_by_name

__all__ = [
    "KV_TYPES",
    "attend_blocks",
    "attend_native",
    "multiply_stored",
    "multiply_stored_pair",
    "rms_norm",
    "rotate",
    "swiglu",
]

KV_TYPES = {torch.float32: 0, torch.float16: 1, kv_blocks.BLOCKS: 8}
"""What keys and values may be stored as, numbered as in GGUF."""


def multiply_stored(
    address: int,
    dtype: str,
    num_columns: int,
    x: Tensor,
    bias: Tensor | None,
    *,
    activation: Activation = Activation.NONE,
) -> Tensor:
    """``activation(x @ weight.T + bias)`` of (..., K) with stored weights (N, K), in float32, as the dtype of ``x``."""
    *others, k = x.shape
    is_float = x.dtype is torch.float32
    rows, bias = _to_floats(x), None if bias is None else _to_floats(bias)
    out = torch.empty((*others, num_columns), dtype=torch.float32)
    load_shared_library().matmul(
        address, type_by_name(dtype).type_id, rows.data_ptr(), out.data_ptr(), num_rows=math.prod(others),
        num_columns=num_columns, k=k, num_threads=count_threads(),
        bias_address=None if bias is None else bias.data_ptr(), activation=activation,
    )  # fmt: skip
    return out if is_float else out.to(x.dtype)


def multiply_stored_pair(
    first: Matrix, first_bias: Tensor | None, second: Matrix, second_bias: Tensor | None, x: Tensor, *,
    activation: Activation,
) -> Tensor:  # fmt: skip
    """``multiply_stored`` of (..., K) with ``activation``, and the same of its result, to the same bits."""
    rows = _to_floats(x)
    biases = [None if bias is None else _to_floats(bias) for bias in (first_bias, second_bias)]
    addresses = [None if bias is None else bias.data_ptr() for bias in biases]
    out = torch.empty((*x.shape[:-1], second.num_columns), dtype=torch.float32)
    load_shared_library().matmul_pair(
        first, second, rows.data_ptr(), out.data_ptr(), num_rows=math.prod(x.shape[:-1]), num_threads=count_threads(),
        first_bias_address=addresses[0], second_bias_address=addresses[1], activation=activation,
    )  # fmt: skip
    return out if x.dtype is torch.float32 else out.to(x.dtype)


def _to_floats(x: Tensor) -> Tensor:
    # Hundreds of times a token: an operation of torch that changes nothing takes its microsecond all the same.
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, written over ``gate``; both contiguous."""
    load_shared_library().swiglu(
        gate.data_ptr(), up.data_ptr(), gate.data_ptr(), count=gate.numel(), num_threads=count_threads()
    )
    return gate


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x * rsqrt(mean(x ** 2) + eps) * weight`` over the last axis."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    load_shared_library().rms_norm(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), eps=eps, num_rows=x.numel() // width, width=width,
        num_threads=count_threads(),
    )  # fmt: skip
    return out


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, *, is_interleaved: bool) -> Tensor:
    """Rotate the pairs of (B, T, H, E) by angles (B, T, E / 2); interleaved pairs come out half a head apart."""
    x = x.contiguous()
    out = torch.empty_like(x)
    load_shared_library().rotary(
        x.data_ptr(), cosines.data_ptr(), sines.data_ptr(), out.data_ptr(), num_positions=x.shape[0] * x.shape[1],
        num_heads=x.shape[2], head_dim=x.shape[3], is_interleaved=is_interleaved, num_threads=count_threads(),
    )  # fmt: skip
    return out


def attend_native(
    query: Tensor, key: Tensor, value: Tensor, *, num_keys: Sequence[int] | None = None, is_causal: bool
) -> Tensor:
    """Scaled dot-product attention of (B, T, H, E) over keys and values (B, K, S, E), float32, float16 or blocks.

    Row b of the batch has ``num_keys[b]`` keys, S by default, of which the last T are the queries' own; causal query t
    sees all but the last T - 1 - t of them. Returns (B, T, H * E).
    """
    counts = torch.tensor(num_keys if num_keys is not None else [key.shape[2]] * len(query), dtype=torch.int64)
    return _attend(query, key, value, counts, is_causal=is_causal)


def attend_blocks(query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, num_keys: Tensor) -> Tensor:
    """Causal attention of (B, T, H, E) over keys and values in blocks (num_blocks, K, block_size, E).

    Row b of the batch has ``num_keys[b]`` keys (int64), in the blocks that row b of ``tables`` (int32) names in order;
    the last T of them are the queries' own. Returns (B, T, H * E).
    """
    return _attend(query, keys, values, num_keys, is_causal=True, tables=tables)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, counts: Tensor, *, is_causal: bool, tables: Tensor | None = None
) -> Tensor:
    batch, num_queries, num_heads, head_dim = query.shape
    out = torch.empty((batch, num_queries, num_heads * head_dim), dtype=torch.float32)
    call = AttentionCall()
    call.query, call.keys, call.values = query.data_ptr(), key.data_ptr(), value.data_ptr()
    call.out, call.num_keys = out.data_ptr(), counts.data_ptr()
    call.query_strides[:] = (query.stride(0), query.stride(2), query.stride(1))
    call.key_strides[:], call.value_strides[:] = key.stride()[:3], value.stride()[:3]
    call.batch, call.num_queries, call.num_heads, call.head_dim = batch, num_queries, num_heads, head_dim
    call.num_kv_heads = key.shape[1]
    call.kv_type, call.is_causal, call.scale = KV_TYPES[key.dtype], is_causal, head_dim**-0.5
    if tables is not None:
        call.block_table, call.table_stride = tables.data_ptr(), tables.stride(0)
        call.block_size, call.num_blocks = key.shape[2], len(key)
    load_shared_library().attention(call, num_threads=count_threads())
    return out
