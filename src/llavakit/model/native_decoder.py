"""All layers of a decoder in one call of the native library.

A step of one token is some four hundred short calls. When each is made from Python, what lies between two of them is a
tenth of the step, for the interpreter's own memory has been pushed out of the caches by the weights meanwhile; and
other threads wait for the interpreter in turn. The layers in `llavakit.model.llama` remain the definition: they
compute the same numbers, bit for bit, one call after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llavakit.core.config import TextConfig
from llavakit.kernels.structures import DecoderCall, DecoderLayer, Matrix, TokenGroup
from llavakit.model.layers import MAX_NATIVE_FLOAT_ROWS, Linear, RMSNorm, RotaryEmbedding
from llavakit.model.native import KV_TYPES
from llavakit.model.threads import count_threads, load_shared_library
from llavakit.weights.ggml_types import type_by_name

__all__ = ["KeyValues", "NativeDecoder", "QueryGroup"]


@dataclass(frozen=True)
class QueryGroup:
    """Rows of as many tokens each: ``num_keys`` (int64) of every row, its own tokens' last.

    ``table`` (int32) names the blocks of every row in order, where keys and values lie in blocks.
    """

    num_queries: int
    num_keys: Tensor
    table: Tensor | None = None


@dataclass(frozen=True)
class KeyValues:
    """Where a pass finds and leaves keys and values.

    Attributes
    ----------
    keys, values : tensor of shape (layers, rows, K, positions, E), or in blocks (layers, num_blocks, K, block_size, E)
        Of one layout; the first layer's beginning is where ``slots`` count from.
    slots : int64 tensor of shape (T,)
        How far behind it each token's own go, in numbers (blocks of 8 bits: in bytes).
    groups : sequence of QueryGroup
        The tokens one after the other.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    groups: Sequence[QueryGroup]


# Angles of so many positions of a head of 128 numbers take 64 MiB.
_MAX_POSITIONS = 1 << 17


class NativeDecoder:
    """A decoder's layers and its last norm, for float32 tokens on a CPU.

    Parameters
    ----------
    config : TextConfig
    layers : sequence of LlamaDecoderLayer
        Whose matrices are all stored, or parameters in float32; see `can_run`.
    norm : RMSNorm
    """

    def __init__(self, config: TextConfig, layers: Sequence[nn.Module], norm: RMSNorm) -> None:
        self._config = config
        self._layers = (DecoderLayer * len(layers))(*map(_describe_layer, layers))
        self._norm = norm
        # Of all positions: those of one step alone would take a dozen operations of torch.
        everywhere = torch.arange(config.max_position_embeddings)[None]
        angles = RotaryEmbedding(config.head_dim, rope_theta=config.rope_theta)(everywhere, torch.float32)
        self._angles = tuple(part[0, 0, :, : config.head_dim // 2].contiguous() for part in angles)
        # Addresses do not keep what they point to.
        self._kept = list(layers)
        self._parts = [_Part.of(layer, name) for layer in layers for _, name in _MATRICES]
        self._has_floats = any(part.weight is not None for part in self._parts)

    @staticmethod
    def can_run(config: TextConfig, layers: Sequence[nn.Module], norm: RMSNorm) -> bool:
        """Whether the native library computes all of these layers."""
        modules = [module for layer in layers for module in layer.modules()]
        return (
            bool(layers)
            and config.max_position_embeddings <= _MAX_POSITIONS
            and all(_has_matrix(module) for module in modules if isinstance(module, Linear))
            and all(_is_native(module) for module in [*modules, norm] if isinstance(module, RMSNorm))
        )

    def takes(self, num_tokens: int) -> bool:
        """Whether a pass of so many tokens is for the native library.

        The layers must still have the weights that they had, since anybody may replace a parameter or a module; and of
        many rows of float32 torch's products are the faster ones.
        """
        is_small = num_tokens <= MAX_NATIVE_FLOAT_ROWS or not self._has_floats
        return is_small and all(part.is_in_place() for part in self._parts)

    def forward(self, x: Tensor, positions: Tensor, key_values: KeyValues) -> Tensor:
        """Map tokens (B, T, D) at positions (B, T) below the model's greatest to (B, T, D), normed."""
        config, store = self._config, key_values.keys
        out = x.clone(memory_format=torch.contiguous_format)
        cosines, sines = (table.index_select(0, positions.flatten()) for table in self._angles)
        groups, num_grouped = (TokenGroup * len(key_values.groups))(), 0
        for described, group in zip(groups, key_values.groups, strict=True):
            described.first_token, described.batch = num_grouped, len(group.num_keys)
            described.num_queries, described.num_keys = group.num_queries, group.num_keys.data_ptr()
            if group.table is not None:
                described.block_table, described.table_stride = group.table.data_ptr(), group.table.stride(0)
            num_grouped += group.num_queries * len(group.num_keys)
        call = DecoderCall(
            layers=ctypes.addressof(self._layers), last_norm=self._norm.weight.data_ptr(), x=out.data_ptr(),
            cosines=cosines.data_ptr(), sines=sines.data_ptr(), keys=store.data_ptr(),
            values=key_values.values.data_ptr(), slots=key_values.slots.data_ptr(), groups=ctypes.addressof(groups),
            num_layers=len(self._layers), num_tokens=out.numel() // config.hidden_size, num_groups=len(groups),
            width=config.hidden_size, num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim, mlp_width=config.intermediate_size,
            layer_bytes=store.stride(0) * store.element_size(), block_size=store.shape[3], num_blocks=store.shape[1],
            kv_type=KV_TYPES[store.dtype], eps=self._norm.eps,
        )  # fmt: skip
        call.kv_strides[:] = store.stride()[1:4]
        library = load_shared_library()
        scratch = torch.empty(library.count_decoder_scratch(call), dtype=torch.float32)
        call.scratch = scratch.data_ptr()
        library.decode(call, num_threads=count_threads())
        return out


def _is_native(norm: RMSNorm) -> bool:
    return norm.is_native and norm.weight.dtype == torch.float32


def _has_matrix(linear: Linear) -> bool:
    return linear.matrix is not None or (
        linear.is_left_to_library and linear.bias is None and linear.has_native_floats()
    )


_MATRICES = (
    ("query", "self_attn.q_proj"), ("key", "self_attn.k_proj"), ("value", "self_attn.v_proj"),
    ("attention_out", "self_attn.o_proj"), ("gate", "mlp.gate_proj"), ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
)  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """A linear layer and where it belongs."""

    parent: nn.Module
    name: str
    linear: nn.Module
    weight: Tensor | None
    address: int

    @classmethod
    def of(cls, layer: nn.Module, name: str) -> _Part:
        parent_name, _, own_name = name.rpartition(".")
        linear = layer.get_submodule(name)
        weight = linear.weight if isinstance(linear, Linear) and linear.matrix is None else None
        address = weight.data_ptr() if weight is not None else 0
        return cls(layer.get_submodule(parent_name), own_name, linear, weight, address)

    def is_in_place(self) -> bool:
        if self.parent._modules.get(self.name) is not self.linear:
            return False
        if self.weight is None:  # a stored matrix, whose bytes nobody changes
            return True
        return self.weight.data_ptr() == self.address and self.linear._parameters.get("weight") is self.weight


def _describe_layer(layer: nn.Module) -> DecoderLayer:
    described = DecoderLayer(
        attention_norm=layer.get_parameter("input_layernorm.weight").data_ptr(),
        mlp_norm=layer.get_parameter("post_attention_layernorm.weight").data_ptr(),
    )
    for field, name in _MATRICES:
        setattr(described, field, _describe_matrix(layer.get_submodule(name)))
    return described


def _describe_matrix(linear: nn.Module) -> Matrix:
    assert isinstance(linear, Linear)  # noqa: S101 - can_run has looked
    if linear.matrix is None:
        return Matrix(
            weights=linear.weight.data_ptr(), num_columns=linear.out_features, k=linear.in_features,
            type=type_by_name("float32").type_id, is_interleaved=linear.interleaved_head_dim is not None,
        )  # fmt: skip
    return linear.matrix.describe(is_interleaved=linear.interleaved_head_dim is not None)
