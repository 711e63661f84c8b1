"""Storage types of GGUF tensors: numbers, names, block sizes. The one table of them on this side."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GGML_TYPES", "REFUSED_TYPES", "GgmlType", "is_quantized", "stored_bytes"]


@dataclass(frozen=True)
class GgmlType:
    """One storage type.

    Attributes
    ----------
    type_id : int
        As in the file.
    name : str
        Ours: ``float32``, ``float16``, ``bfloat16``, or the quantized type in small letters.
    block_length : int
        Weights of a block; rows consist of whole blocks.
    block_bytes : int
    """

    type_id: int
    name: str
    block_length: int
    block_bytes: int


_TYPES = (
    GgmlType(0, "float32", 1, 4), GgmlType(1, "float16", 1, 2), GgmlType(30, "bfloat16", 1, 2),
    GgmlType(2, "q4_0", 32, 18), GgmlType(3, "q4_1", 32, 20), GgmlType(6, "q5_0", 32, 22), GgmlType(7, "q5_1", 32, 24),
    GgmlType(8, "q8_0", 32, 34), GgmlType(10, "q2_k", 256, 84), GgmlType(11, "q3_k", 256, 110),
    GgmlType(12, "q4_k", 256, 144), GgmlType(13, "q5_k", 256, 176), GgmlType(14, "q6_k", 256, 210),
)  # fmt: skip
GGML_TYPES = {entry.type_id: entry for entry in _TYPES}
_BY_NAME = {entry.name: entry for entry in _TYPES}

# Types that exist and are not read, by the names their makers gave them.
REFUSED_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def is_quantized(name: str) -> bool:
    """Whether a storage type is made of blocks with scales."""
    return name in _BY_NAME and _BY_NAME[name].block_length > 1


def stored_bytes(name: str, num_weights: int) -> int:
    """Bytes of whole blocks of a type."""
    entry = _BY_NAME[name]
    return num_weights // entry.block_length * entry.block_bytes


def type_by_name(name: str) -> GgmlType:
    """Look up a type by our name."""
    return _BY_NAME[name]
