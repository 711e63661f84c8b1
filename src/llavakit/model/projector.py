"""The two-layer projector between the vision tower and the language model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.model.layers import Linear

__all__ = ["MultiModalProjector"]


class MultiModalProjector(nn.Module):
    """Linear, exact GELU, linear: LLaVA-1.5's ``mlp2x_gelu``."""

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, *, bias: bool) -> None:
        super().__init__()
        self.linear_1 = Linear(vision_hidden_size, text_hidden_size, bias=bias)
        self.linear_2 = Linear(text_hidden_size, text_hidden_size, bias=bias)

    def forward(self, patch_features: Tensor) -> Tensor:
        """Map patch features (N, P, vision_hidden_size) to image features (N, P, text_hidden_size)."""
        return self.linear_2(F.gelu(self.linear_1(patch_features)))  # type: ignore[no-any-return]
