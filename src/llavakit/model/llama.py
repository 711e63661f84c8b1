"""The LLaMA decoder. Reads and writes a key-value cache that it is handed; keeps no state of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.core.config import TextConfig
from llavakit.model.kv_blocks import BLOCKS, read_blocks
from llavakit.model.layers import Embedding, Linear, RMSNorm, RotaryEmbedding, apply_rotary, attend
from llavakit.model.native import attend_native, rotate, swiglu
from llavakit.model.native_decoder import KeyValues, NativeDecoder

__all__ = ["LayerCache", "LlamaAttention", "LlamaDecoderLayer", "LlamaModel", "PackedCache"]


class LayerCache(Protocol):
    """One forward pass's view of the key-value cache."""

    @property
    def num_keys(self) -> Sequence[int] | None:
        """Keys of each row of the batch, where they differ from what ``update`` returns."""

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (B, K, T, E); return all that the queries may see, (B, K, S, E), as stored."""

    def key_values(self, num_tokens: int) -> KeyValues:
        """Say where the keys and values of a pass of ``num_tokens`` tokens of each row go, in every layer."""


class PackedCache(ABC):
    """Several sequences whose tokens stand one after the other in one row; it knows which keys each of them sees."""

    @abstractmethod
    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, *, is_native: bool) -> Tensor:
        """Store keys and values (T, K, E) and attend causally with queries (T, H, E): returns (T, H * E).

        ``is_native`` says whether the native library computes this layer.
        """

    @abstractmethod
    def key_values(self, num_tokens: int) -> KeyValues:
        """Say where the keys and values of this pass of ``num_tokens`` tokens go, in every layer."""


class LlamaAttention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = Linear(q_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache | PackedCache | None,
        mask: Tensor | None,
        *,
        is_causal: bool,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        is_native = _are_native(x, self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        if is_native and (cache is not None or mask is None):
            return self._forward_native(x, rotary, cache)
        query, key, value = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = apply_rotary(query, *rotary)
        key = apply_rotary(key, *rotary)
        if isinstance(cache, PackedCache):
            parts = (part[0].transpose(0, 1) for part in (query, key, value))
            return self.o_proj(cache.attend(self.layer_idx, *parts, is_native=False)[None])  # type: ignore[no-any-return]
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value)
        key, value = (_as_numbers(stored, query.dtype) for stored in (key, value))
        return self.o_proj(attend(query, key, value, mask=mask, is_causal=is_causal))  # type: ignore[no-any-return]

    def _forward_native(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: LayerCache | PackedCache | None
    ) -> Tensor:
        """Compute the same without a mask: a row's queries are the last of what the cache holds of it."""
        cosines, sines = (angles[:, 0, :, : self.head_dim // 2].contiguous() for angles in rotary)
        query, key = (
            rotate(
                _heads(proj.multiply(x), self.head_dim), cosines, sines,
                is_interleaved=proj.interleaved_head_dim is not None,
            )
            for proj in (self.q_proj, self.k_proj)
        )  # fmt: skip
        value = _heads(self.v_proj(x), self.head_dim)
        if isinstance(cache, PackedCache):
            packed = cache.attend(self.layer_idx, query[0], key[0], value[0], is_native=True)
            return self.o_proj(packed[None])  # type: ignore[no-any-return]
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value)
        num_keys = None if cache is None else cache.num_keys
        return self.o_proj(attend_native(query, key, value, num_keys=num_keys, is_causal=True))  # type: ignore[no-any-return]


def _are_native(x: Tensor, *parts: nn.Module) -> bool:
    """Whether the native library computes all of these layers; fine-tuning may have put others in their place."""
    return all(isinstance(part, Linear) and part.is_native(x) for part in parts)


def _as_numbers(stored: Tensor, dtype: torch.dtype) -> Tensor:
    return read_blocks(stored, dtype) if stored.dtype == BLOCKS else stored.to(dtype)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.view(*x.shape[:-1], -1, head_dim)


class LlamaMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        if _are_native(x, self.gate_proj, self.up_proj):
            return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class LlamaDecoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: LayerCache | PackedCache | None,
        mask: Tensor | None,
        *,
        is_causal: bool,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache, mask, is_causal=is_causal)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class LlamaModel(nn.Module):
    """Embeddings, decoder layers and the final norm.

    Attributes
    ----------
    native : NativeDecoder, optional
        Computes float32 tokens with a cache through all layers at once; without it they go layer by layer. See
        `use_native`.
    """

    native: NativeDecoder | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, idx) for idx in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config.head_dim, rope_theta=config.rope_theta)

    def use_native(self) -> None:
        """Leave norms and products in float32 to the native library from now on, and passes if it computes all of them.

        Hooks of modules are not called then, but while `module_by_module` is open.
        """
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.is_native = True
            elif isinstance(module, Linear):
                module.is_left_to_library = True
        layers = list(self.layers)
        if NativeDecoder.can_run(self.config, layers, self.norm):
            self.native = NativeDecoder(self.config, layers, self.norm)

    @contextmanager
    def module_by_module(self) -> Iterator[None]:
        """Compute parameters with torch again while this is open, one module after the other."""
        native, self.native = self.native, None
        left = [module for module in self.modules() if isinstance(module, Linear) and module.is_left_to_library]
        for module in left:
            module.is_left_to_library = False
        try:
            yield
        finally:
            self.native = native
            for module in left:
                module.is_left_to_library = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy has memory of its own.
        return {**self.__dict__, "native": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.native = None  # what it points to may move
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(
        self,
        inputs_embeds: Tensor,
        positions: Tensor,
        *,
        cache: LayerCache | PackedCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Run the decoder.

        Parameters
        ----------
        inputs_embeds : tensor of shape (B, T, D)
        positions : integer tensor of shape (B, T)
        cache : LayerCache or PackedCache, optional
            Where keys and values go and earlier ones come from. With a `PackedCache` B is 1 and the cache says what
            each token sees.
        mask : bool tensor broadcastable to (B, H, T, S), optional
            True where attention is allowed. Without it, a pass of several tokens is causal and must start
            at an empty cache, and a pass of one token sees everything the cache returns.

        Returns
        -------
        tensor of shape (B, T, D)
        """
        is_float = inputs_embeds.dtype == torch.float32 and not torch.is_grad_enabled()
        if self.native is not None and cache is not None and is_float:
            batch, num_tokens, _ = inputs_embeds.shape
            if self.native.takes(batch * num_tokens):
                return self.native.forward(inputs_embeds, positions, cache.key_values(num_tokens))
        rotary = self.rotary_emb(positions, inputs_embeds.dtype)
        is_causal = mask is None and inputs_embeds.shape[1] > 1
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, rotary, cache, mask, is_causal=is_causal)
        return self.norm(x)  # type: ignore[no-any-return]
