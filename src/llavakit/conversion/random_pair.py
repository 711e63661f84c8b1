"""A GGUF pair of any configuration and mixture with random weights: the size and the work of the real one, no sense.

In: a configuration. Out: two files. Made in seconds: a few rows are quantized per type and repeated, since neither
memory nor speed depends on what the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
# What questions about pictures are made of. Prompts get about as many tokens as with the real vocabulary.
_WORDS = (
    "A about above after all am an and animal answer answers any are artificial as assistant at background be "
    "before behind below Begin beside between big black blue bottom brown but by can car chat circle city color "
    "colors colour colours could count curious day describe Describe detail detailed different do does dog drawn "
    "each everything exactly face few find five for four from give gives go going green had has have he helpful her "
    "here him his How human I if image in intelligence is it its kind large largest left light like line list look "
    "made make man many middle might more most name near next not number object of on one or orange other out over "
    "people person photo picture place polite question questions red right room round said same say scene see seen "
    "shape she show side sign sky small so some somebody square standing star street such table Tell than that The "
    "the their them then there these they thing things this three to top tree triangle two under unusual up us use "
    "user was water way we wearing were What what When Where where which Which white who Why why will with woman "
    "words work would write yellow yes You you your"
)
_FIRST_WORDS = "Begin Describe How Is Tell The What When Where Which Who Why"  # stand on a line of their own, too
# The pieces that the roles of a conversation fall into.
_ROLE_PIECES = ("▁U", "▁US", "ER", "SS", "IS", "IST", "AN", "ANT")


def _vocabulary(config: LlavaConfig) -> GgufVocabulary:
    """Bytes, letters, words with every beginning of theirs, so that they can be put together, and made-up pieces."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-\n"
    pieces = [*_SPECIAL_PIECES, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(letters)]
    size = config.text_config.vocab_size
    beginnings = (f"▁{word[:end]}" for word in _WORDS.split() for end in range(1, len(word) + 1))
    firsts = (word[:end] for word in _FIRST_WORDS.split() for end in range(2, len(word) + 1))
    words = list(dict.fromkeys((*_ROLE_PIECES, *beginnings, *firsts)))
    pieces += words
    types += [_NORMAL] * len(words)
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
    projector = path.with_name(f"mmproj-{path.stem}-f16.gguf")
    extras = TextExtras(path.stem, "original", _vocabulary(config), projector.name)
    text, vision = plan_pair(config, find_mixture(type_name), extras, vision_dtype="float16")
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

    with ExitStack() as stack:
        for file in files:
            stack.enter_context(file)
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
