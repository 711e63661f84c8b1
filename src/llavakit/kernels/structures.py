"""The structures of ``csrc/llavakit_kernels.h``: addresses, sizes, and strides in numbers.

Whoever fills one keeps alive what its addresses point to.
"""

from __future__ import annotations

import ctypes

__all__ = ["AttentionCall", "DecoderCall", "DecoderLayer", "Matrix", "TokenGroup"]


class AttentionCall(ctypes.Structure):
    """``llk_attention_call`` of the C header: addresses, strides in numbers, sizes."""

    _fields_ = (
        ("query", ctypes.c_void_p), ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("out", ctypes.c_void_p),
        ("query_strides", ctypes.c_int64 * 3), ("key_strides", ctypes.c_int64 * 3),
        ("value_strides", ctypes.c_int64 * 3), ("num_keys", ctypes.c_void_p), ("batch", ctypes.c_int64),
        ("num_queries", ctypes.c_int64), ("num_heads", ctypes.c_int64), ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64), ("kv_type", ctypes.c_int32), ("is_causal", ctypes.c_int32),
        ("scale", ctypes.c_float), ("block_table", ctypes.c_void_p), ("table_stride", ctypes.c_int64),
        ("block_size", ctypes.c_int64), ("num_blocks", ctypes.c_int64),
    )  # fmt: skip


class Matrix(ctypes.Structure):
    """``llk_matrix`` of the C header."""

    _fields_ = (
        ("weights", ctypes.c_void_p), ("num_columns", ctypes.c_int64), ("k", ctypes.c_int64), ("type", ctypes.c_int32),
        ("is_interleaved", ctypes.c_int32),
    )  # fmt: skip


class DecoderLayer(ctypes.Structure):
    """``llk_decoder_layer`` of the C header."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p), ("mlp_norm", ctypes.c_void_p), ("query", Matrix), ("key", Matrix),
        ("value", Matrix), ("attention_out", Matrix), ("gate", Matrix), ("up", Matrix), ("down", Matrix),
    )  # fmt: skip


class TokenGroup(ctypes.Structure):
    """``llk_token_group`` of the C header."""

    _fields_ = (
        ("first_token", ctypes.c_int64), ("batch", ctypes.c_int64), ("num_queries", ctypes.c_int64),
        ("num_keys", ctypes.c_void_p), ("block_table", ctypes.c_void_p), ("table_stride", ctypes.c_int64),
    )  # fmt: skip


class DecoderCall(ctypes.Structure):
    """``llk_decoder_call`` of the C header: addresses, sizes, strides in numbers."""

    _fields_ = (
        ("layers", ctypes.c_void_p), ("last_norm", ctypes.c_void_p), ("x", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p), ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p), ("slots", ctypes.c_void_p), ("groups", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p), ("num_layers", ctypes.c_int64), ("num_tokens", ctypes.c_int64),
        ("num_groups", ctypes.c_int64), ("width", ctypes.c_int64), ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64), ("head_dim", ctypes.c_int64), ("mlp_width", ctypes.c_int64),
        ("layer_bytes", ctypes.c_int64), ("kv_strides", ctypes.c_int64 * 3), ("block_size", ctypes.c_int64),
        ("num_blocks", ctypes.c_int64), ("kv_type", ctypes.c_int32), ("eps", ctypes.c_float),
    )  # fmt: skip
