"""CLIP's vision transformer, up to the layer whose states LLaVA uses.

LLaVA-1.5 takes the output of the last block but one, so the last block and the final norm are not even
built: they would cost 1/24 of the tower for nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.core.config import FeatureStrategy, VisionConfig
from llavakit.kernels.library import Activation
from llavakit.model.layers import Embedding, Linear, attend, quick_gelu
from llavakit.model.native import attend_native

__all__ = ["CLIPVisionTower"]


class CLIPVisionEmbeddings(nn.Module):
    """Cut a picture into patches, put the class token first, add learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = Embedding(config.num_patches + 1, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels (N, 3, image_size, image_size) to tokens (N, 1 + P, hidden_size)."""
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(pixel_values.shape[0], 1, -1)
        return torch.cat((class_token, patches), dim=1) + self.position_embedding.weight


class CLIPAttention(nn.Module):
    """Bidirectional self-attention with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all tokens of each picture: (N, T, D) to (N, T, D)."""
        query, key, value = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.out_proj.is_native(x):
            return self.out_proj(attend_native(query.transpose(1, 2), key, value, is_causal=False))  # type: ignore[no-any-return]
        return self.out_proj(attend(query, key, value, mask=None, is_causal=False))  # type: ignore[no-any-return]


class CLIPMLP(nn.Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = quick_gelu if config.hidden_act == "quick_gelu" else F.gelu
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D)."""
        if self.fc1.is_native(x) and self.activation is quick_gelu and self.fc1.matrix is not None:
            first, second, end = self.fc1.matrix, getattr(self.fc2, "matrix", None), Activation.QUICK_GELU
            if second is None:  # an adapter is around it
                return self.fc2(first.multiply(x, self.fc1.bias, activation=end))  # type: ignore[no-any-return]
            return first.multiply_twice(x, self.fc1.bias, second, self.fc2.bias, activation=end)
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class CLIPEncoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D)."""
        x = _add(self.self_attn(self.layer_norm1(x)), x)
        return _add(self.mlp(self.layer_norm2(x)), x)


def _add(fresh: Tensor, x: Tensor) -> Tensor:
    """Add, into what nobody else has seen: a third tensor need not pass the caches. Autocast's halves stay apart."""
    return fresh.add_(x) if fresh.dtype == x.dtype else fresh + x


class CLIPEncoder(nn.Module):
    """The blocks, in order."""

    def __init__(self, config: VisionConfig, *, num_blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Run every block: (N, T, D) to (N, T, D)."""
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPVisionTower(nn.Module):
    """Pixels to patch features.

    Parameters
    ----------
    config : VisionConfig
    num_blocks : int
        How many blocks the feature layer needs (23 of 24 in LLaVA-1.5).
    select_strategy : {"default", "full"}
        ``default`` drops the class token.
    """

    def __init__(self, config: VisionConfig, *, num_blocks: int, select_strategy: FeatureStrategy) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config, num_blocks=num_blocks)
        self.select_strategy = select_strategy

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures.

        Parameters
        ----------
        pixel_values : tensor of shape (N, 3, image_size, image_size)
            Normalised pixels.

        Returns
        -------
        tensor of shape (N, P, hidden_size)
            With strategy ``full``, (N, 1 + P, hidden_size), class token first.
        """
        return self.finish(self.encoder(self.begin(pixel_values)))

    def begin(self, pixel_values: Tensor) -> Tensor:
        """Return the states (N, T, hidden_size) that the first block takes."""
        return self.pre_layernorm(self.embeddings(pixel_values))  # type: ignore[no-any-return]

    def finish(self, states: Tensor) -> Tensor:
        """Return the features of the states that the last block gives."""
        return states if self.select_strategy == "full" else states[:, 1:]
