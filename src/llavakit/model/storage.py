"""How much memory a part of the model takes, and in which types it is kept."""

from __future__ import annotations

from collections import Counter

from torch import nn

from llavakit.model.stored_matrix import StoredMatrix

__all__ = ["count_bytes", "count_types", "has_quantized", "has_words", "is_stored"]


def _matrices(part: nn.Module) -> list[StoredMatrix]:
    found = (getattr(module, "matrix", None) for module in part.modules())
    return [matrix for matrix in found if isinstance(matrix, StoredMatrix)]


def count_bytes(part: nn.Module) -> int:
    """Bytes of a part's weights as they are in memory or in the mapped file."""
    dense = sum(parameter.nbytes for parameter in part.parameters())
    return dense + sum(matrix.data.nbytes for matrix in _matrices(part))


def count_types(part: nn.Module) -> dict[str, int]:
    """Bytes per storage type, the largest first."""
    sizes: Counter[str] = Counter()
    for parameter in part.parameters():
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
    for matrix in _matrices(part):
        sizes[matrix.dtype] += matrix.data.nbytes
    return dict(sizes.most_common())


def is_stored(part: nn.Module) -> bool:
    """Whether a part has matrices that stay as a GGUF file stores them."""
    return bool(_matrices(part))


def has_words(part: nn.Module) -> bool:
    """Whether a part has matrices of 16 bits that the native library multiplies as integers."""
    return any(not matrix.is_quantized for matrix in _matrices(part))


def has_quantized(part: nn.Module) -> bool:
    """Whether a part has matrices in blocks."""
    return any(matrix.is_quantized for matrix in _matrices(part))
