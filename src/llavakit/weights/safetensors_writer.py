"""The header of a safetensors file, and where its tensors go."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from llavakit.weights.ggml_types import stored_bytes
from llavakit.weights.streamed_file import FilePlan, PlannedTensor

__all__ = ["plan_safetensors"]

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 64  # the format asks for 8; see Llava.use_torch_products for what a cache line decides


def plan_safetensors(tensors: Sequence[tuple[str, str, str, tuple[int, ...]]]) -> FilePlan:
    """Lay out a file.

    Parameters
    ----------
    tensors : sequence of (name in the file, our name, dtype, shape)
        Of the dtypes float32, float16 and bfloat16.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    places = []
    for name, _, dtype, shape in tensors:
        num_bytes = stored_bytes(dtype, math.prod(shape))
        content[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        places.append((offset, num_bytes))
        offset += num_bytes
    text = json.dumps(content, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    planned = tuple(
        PlannedTensor(name, source, dtype, shape, len(header) + start, num_bytes)
        for (name, source, dtype, shape), (start, num_bytes) in zip(tensors, places, strict=True)
    )
    return FilePlan(header, planned, len(header) + offset)
