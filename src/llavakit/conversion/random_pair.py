"""A GGUF pair of any configuration and mixture with random weights: the size and the work of the real one, no sense.

In: a configuration. Out: two files. Made in seconds: a few rows are quantized per type and repeated, since neither
memory nor speed depends on what the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llavakit.conversion.gguf_layout import plan_pair
from llavakit.conversion.gguf_metadata import TextExtras
from llavakit.core.config import LlavaConfig
from llavakit.kernels.library import load_library
from llavakit.weights.ggml_types import is_quantized, stored_bytes, type_by_name
from llavakit.weights.gguf_checkpoint import GgufVocabulary
from llavakit.weights.mixtures import find_mixture
from llavakit.weights.streamed_file import PlannedTensor, StreamedFile

__all__ = ["plan_random_pair", "write_random_pair"]

_PATTERN_ROWS = 32
_PIECE_BYTES = 1 << 23
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPECIAL_PIECES = ("<unk>", "<s>", "</s>")


def _vocabulary(config: LlavaConfig) -> GgufVocabulary:
    """Bytes, a few letters, and made-up pieces."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-\n"
    pieces = [*_SPECIAL_PIECES, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(letters)]
    size = config.text_config.vocab_size
    pieces += [f"▁piece{idx}" for idx in range(len(pieces), size)]
    types += [_NORMAL] * (size - len(types))
    pieces[config.image_token_id], types[config.image_token_id] = "<image>", _CONTROL
    return GgufVocabulary(pieces[:size], [-float(idx) for idx in range(size)], types[:size])


def plan_random_pair(path: Path, config: LlavaConfig, type_name: str) -> tuple[StreamedFile, StreamedFile]:
    """Lay out the language model at ``path`` and its projector beside it.

    Raises
    ------
    ConfigError
        If the type is not known, or the format cannot say what the configuration says.
    """
    extras = TextExtras(path.stem, "original", _vocabulary(config))
    text, vision = plan_pair(config, find_mixture(type_name), extras, vision_dtype="float16")
    projector = path.with_name(f"mmproj-{path.stem}-f16.gguf")
    return StreamedFile(path, text, origin="random"), StreamedFile(projector, vision, origin="random")


def write_random_pair(
    path: Path,
    config: LlavaConfig,
    type_name: str,
    *,
    num_threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a pair.

    Raises
    ------
    ConfigError
        If the type is not known, or the format cannot say what the configuration says.
    DiskFullError
        If the disk has no room.
    """
    files = plan_random_pair(path, config, type_name)
    total, done = sum(file.plan.num_bytes for file in files), 0
    files[0].check_space(total)
    patterns: dict[tuple[str, int], np.ndarray] = {}

    def produce(planned: PlannedTensor) -> Iterator[np.ndarray]:
        yield from _repeat(planned, patterns, num_threads)

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(min(done, total), total)

    for file in files:
        file.write(produce, on_bytes)
    for file in reversed(files):
        file.publish()


def _repeat(
    planned: PlannedTensor, patterns: dict[tuple[str, int], np.ndarray], num_threads: int
) -> Iterator[np.ndarray]:
    width = math.prod(planned.shape[1:]) if len(planned.shape) > 1 else planned.shape[0]
    num_rows = math.prod(planned.shape) // width
    if len(planned.shape) == 1:
        # Norms around one, biases around nothing: activations stay of ordinary size.
        value = 1.0 if planned.source.endswith("weight") else 0.0
        yield np.full(width, value, np.float32).view(np.uint8)
        return
    key = (planned.dtype, width)
    if key not in patterns:
        patterns[key] = _make_pattern(planned.dtype, width, num_threads)
    pattern = patterns[key]
    row_bytes = pattern.size // _PATTERN_ROWS
    repeated = np.tile(pattern, max(1, _PIECE_BYTES // pattern.size))
    left = num_rows * row_bytes
    while left > 0:
        size = min(left, repeated.size)
        yield repeated[:size]
        left -= size


def _make_pattern(dtype: str, width: int, num_threads: int) -> np.ndarray:
    rows = np.random.default_rng(width).standard_normal((_PATTERN_ROWS, width), dtype=np.float32) * np.float32(0.02)
    if is_quantized(dtype):
        out = np.empty(stored_bytes(dtype, rows.size), dtype=np.uint8)
        load_library().quantize(rows, type_by_name(dtype).type_id, out, num_threads=num_threads)
        return out
    if dtype == "bfloat16":
        return (rows.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1)
    return rows.astype(dtype).view(np.uint8).reshape(-1)
