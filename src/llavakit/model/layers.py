"""The pieces the towers share: linear layers, RMS norm, rotary positions, attention.

Every step keeps transformers' order of roundings, so that reduced-precision results agree bit for bit
where the shapes agree (docs/numerics.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.kernels.library import has_library
from llavakit.model.native import multiply_stored, rms_norm
from llavakit.model.stored_matrix import StoredMatrix

__all__ = [
    "MAX_NATIVE_FLOAT_ROWS",
    "Embedding",
    "Linear",
    "RMSNorm",
    "RotaryEmbedding",
    "apply_rotary",
    "attend",
    "quick_gelu",
]


# Below this many rows torch's half-precision matrix-vector product runs at memory speed; above it, on a CPU
# without half-precision arithmetic, its product falls to a quarter of the float32 rate (docs/numerics.md).
_MAX_HALF_ROWS = 2
# Up to so many rows the native library multiplies bfloat16 weights as exactly as torch, in two thirds of the time
# (benchmarks/quantized_products.py); torch's product is the faster one of more.
_MAX_NATIVE_BFLOAT16_ROWS = 4
MAX_NATIVE_FLOAT_ROWS = 64
"""Up to so many rows the native library multiplies float32 weights faster than torch; of more, torch's product is."""
# Weight rows widened at a time: a slice of 256 rows of a 13B layer is 14 MiB in float32 and stays in the cache.
_WIDEN_ROWS = 256


class Linear(nn.Linear):
    """``y = x @ weight.T + bias``, allocated without being initialised: a loader fills it.

    The storage decides how the product is computed:

    - ``matrix`` is set: from the stored bytes, by the native library.
    - ``is_left_to_torch`` is set: a parameter by torch, as transformers does it, whatever follows here.
    - ``is_left_to_library`` is set: up to 64 rows of float32 on a CPU without gradients, by the native library.
    - bfloat16 on a CPU, up to four rows: by the native library where it is there.
    - float16 on a CPU: widened slice by slice to float32 for the product of more than a few rows, which is about four
      times as fast there as torch's half-precision product, and accumulates in float32.
    - otherwise: by torch.

    Attributes
    ----------
    matrix : StoredMatrix, optional
        The weight, in place of the parameter.
    is_left_to_library : bool
        See `LlamaModel.use_native`.
    is_left_to_torch : bool
        See `Llava.use_torch_products`.
    interleaved_head_dim : int, optional
        The weight's rows are in GGUF's order of rotary pairs (0, d/2, 1, d/2 + 1, ...) within every head of this size;
        outputs are put back in order.
    """

    matrix: StoredMatrix | None = None
    is_left_to_library = False
    is_left_to_torch = False
    interleaved_head_dim: int | None = None

    def reset_parameters(self) -> None:
        """Leave the memory untouched; random initial values would cost seconds at real sizes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features) in the dtype of ``x``."""
        out = self.multiply(x)
        if self.interleaved_head_dim is not None:
            out = out.view(*out.shape[:-1], -1, self.interleaved_head_dim // 2, 2).transpose(-1, -2).flatten(-3)
        return out

    def is_native(self, x: Tensor) -> bool:
        """Whether the native library multiplies ``x`` and may compute what follows: float32, and no gradient."""
        is_stored = self.matrix is not None or (
            self.is_left_to_library
            and x.numel() <= MAX_NATIVE_FLOAT_ROWS * self.in_features
            and self.has_native_floats()
        )
        return is_stored and x.dtype == torch.float32 and not (x.requires_grad or torch.is_grad_enabled())

    def has_native_floats(self) -> bool:
        """Whether the parameter is one that the native library can read."""
        weight = self.weight
        return (
            weight is not None
            and weight.dtype == torch.float32
            and weight.device.type == "cpu"
            and weight.is_contiguous()
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), the rows in the order they are stored in."""
        if self.matrix is not None:
            return self.matrix.multiply(x, self.bias)
        if not self.is_left_to_torch:
            product = self._multiply_faster(x)
            if product is not None:
                return product
        if x.dim() > 2:
            # For a slice of positions of a batch torch's product would first copy the whole weight.
            return F.linear(x.flatten(0, -2), self.weight, self.bias).view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.weight, self.bias)

    def _multiply_faster(self, x: Tensor) -> Tensor | None:
        """Multiply a parameter by other means than torch's product of these dtypes, where one is faster."""
        if self.is_left_to_library and self.is_native(x):
            return multiply_stored(self.weight.data_ptr(), "float32", self.out_features, x, self.bias)
        if self._has_few_bfloat16_rows(x):
            return multiply_stored(self.weight.data_ptr(), "bfloat16", self.out_features, x, self.bias)
        is_half_on_cpu = self.weight.dtype == torch.float16 and self.weight.device.type == "cpu"
        is_mixed = self.weight.dtype != x.dtype
        has_many_rows = is_half_on_cpu and x.numel() > _MAX_HALF_ROWS * self.in_features
        if (is_mixed or has_many_rows) and not torch.is_grad_enabled():
            return self._forward_widened(x)
        return None

    def _has_few_bfloat16_rows(self, x: Tensor) -> bool:
        return (
            x.dtype == self.weight.dtype == torch.bfloat16
            and x.numel() <= _MAX_NATIVE_BFLOAT16_ROWS * self.in_features
            and self.weight.device.type == "cpu"
            and self.weight.is_contiguous()
            and not torch.is_grad_enabled()
            and has_library()
        )

    def _forward_widened(self, x: Tensor) -> Tensor:
        out = x.new_empty((*x.shape[:-1], self.out_features))
        wide = x.float()
        for start in range(0, self.out_features, _WIDEN_ROWS):
            rows = slice(start, start + _WIDEN_ROWS)
            bias = None if self.bias is None else self.bias[rows].float()
            out[..., rows] = F.linear(wide, self.weight[rows].float(), bias)
        return out


class Embedding(nn.Embedding):
    """A table of rows, allocated without being initialised.

    Drawing random numbers for a table on the meta device makes torch import its compiler, which takes seconds.

    Attributes
    ----------
    matrix : StoredMatrix, optional
        The table, in place of the parameter.
    """

    matrix: StoredMatrix | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map integer ids (...) to rows (..., embedding_dim)."""
        return super().forward(input) if self.matrix is None else self.matrix.look_up(input)

    def reset_parameters(self) -> None:
        """Leave the memory untouched."""


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in float32, the weight applied after rounding to the input's dtype.

    Source: LLaMA (arXiv 2302.13971); the place of the rounding as in transformers' LlamaRMSNorm.

    Attributes
    ----------
    is_native : bool
        Float32 inputs are left to the native library, which needs no intermediate tensors.
    """

    is_native = False

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; shape and dtype are kept."""
        if self.is_native and x.dtype == self.weight.dtype == torch.float32 and not torch.is_grad_enabled():
            return rms_norm(x, self.weight, self.eps)
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions, computed in float32 for the positions asked for."""

    def __init__(self, head_dim: int, *, rope_theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.rope_theta = rope_theta

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each of shape (B, 1, T, head_dim), for integer positions of shape (B, T)."""
        exponents = (
            torch.arange(0, self.head_dim, 2, dtype=torch.int64, device=positions.device).float() / self.head_dim
        )
        inv_freq = 1.0 / (self.rope_theta**exponents)
        angles = positions[:, None, :, None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the half-split pairs of ``x`` (B, H, T, E) by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Scaled dot-product attention.

    Parameters
    ----------
    query : tensor of shape (B, H, T, E)
    key, value : tensors of shape (B, K, S, E)
        K divides H; groups of query heads share a key head.
    mask : bool tensor broadcastable to (B, H, T, S), optional
        True where attention is allowed.
    is_causal : bool
        Position t sees keys 0..t; only with T == S and no mask.

    Returns
    -------
    tensor of shape (B, T, H * E)
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
    return out.transpose(1, 2).flatten(2)


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU: ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)
