"""The LLaMA decoder. Reads and writes a key-value cache that it is handed; keeps no state of its own."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.core.config import TextConfig
from llavakit.model.layers import Embedding, Linear, RMSNorm, RotaryEmbedding, apply_rotary, attend

__all__ = ["LayerCache", "LlamaModel"]


class LayerCache(Protocol):
    """One forward pass's view of the key-value cache."""

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (B, K, T, E); return all that the queries may see, (B, K, S, E)."""


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
        cache: LayerCache | None,
        mask: Tensor | None,
        *,
        is_causal: bool,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        query, key, value = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = apply_rotary(query, *rotary)
        key = apply_rotary(key, *rotary)
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value)
        return self.o_proj(attend(query, key, value, mask=mask, is_causal=is_causal))  # type: ignore[no-any-return]


class LlamaMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
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
        cache: LayerCache | None,
        mask: Tensor | None,
        *,
        is_causal: bool,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache, mask, is_causal=is_causal)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class LlamaModel(nn.Module):
    """Embeddings, decoder layers and the final norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, idx) for idx in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config.head_dim, rope_theta=config.rope_theta)

    def forward(
        self, inputs_embeds: Tensor, positions: Tensor, *, cache: LayerCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Run the decoder.

        Parameters
        ----------
        inputs_embeds : tensor of shape (B, T, D)
        positions : integer tensor of shape (B, T)
        cache : LayerCache, optional
            Where keys and values go and earlier ones come from.
        mask : bool tensor broadcastable to (B, H, T, S), optional
            True where attention is allowed. Without it, a pass of several tokens is causal and must start
            at an empty cache, and a pass of one token sees everything the cache returns.

        Returns
        -------
        tensor of shape (B, T, D)
        """
        rotary = self.rotary_emb(positions, inputs_embeds.dtype)
        is_causal = mask is None and inputs_embeds.shape[1] > 1
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, rotary, cache, mask, is_causal=is_causal)
        return self.norm(x)  # type: ignore[no-any-return]
