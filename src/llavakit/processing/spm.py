"""LLaMA's sentencepiece vocabulary as a ``tokenizer.json``, without the sentencepiece package.

The file is a protocol buffer of which only the pieces matter: text, score, type. A BPE model is fully given by them:
two neighbours merge if their join is a piece, the best-scored join first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llavakit.core.errors import ConfigError

__all__ = ["pieces_to_tokenizer_json", "read_sentencepiece", "tokenizer_json_to_pieces"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# Of pieces that no merge makes: below every merge.
_LEAST_SCORE = -1e9
_MAX_MODEL_BYTES = 16 * 1024**2


def read_sentencepiece(file: Path) -> tuple[list[str], list[float], list[int]]:
    """Read pieces, scores and types of a ``tokenizer.model``.

    Raises
    ------
    ConfigError
        If the file is damaged, or is not a byte-fallback BPE model.
    """
    if file.stat().st_size > _MAX_MODEL_BYTES:
        raise ConfigError(f"{file.name} is {file.stat().st_size} bytes; a LLaMA vocabulary has about 500,000.")
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                text, score, kind = _piece(value)
                pieces.append(text)
                scores.append(score)
                types.append(kind)
    except (ValueError, IndexError, struct.error) as error:
        raise ConfigError(f"{file.name} is no sentencepiece model ({error}). Fetch the model again.") from error
    if types.count(_BYTE) != 256 or len(pieces) < 300:
        raise ConfigError(
            f"{file.name} has {len(pieces)} pieces, {types.count(_BYTE)} of them bytes; LLaMA's has 256 bytes."
        )
    return pieces, scores, types


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Walk the fields of a protocol buffer message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if length > len(data) - position:
            raise ValueError(f"field of {length} bytes at byte {position} is longer than the file")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"number without end at byte {position}")


def pieces_to_tokenizer_json(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> dict[str, Any]:
    """Build the ``tokenizer.json`` that tokenizes as sentencepiece does with this vocabulary.

    Raises
    ------
    ConfigError
        If the three lists differ in length or pieces repeat.
    """
    if not len(pieces) == len(scores) == len(types):
        raise ConfigError(f"the vocabulary has {len(pieces)} pieces, {len(scores)} scores and {len(types)} types.")
    vocab = {piece: idx for idx, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ConfigError(f"the vocabulary names {len(pieces) - len(vocab)} pieces twice.")
    mergeable = {piece: idx for idx, (piece, kind) in enumerate(zip(pieces, types, strict=True)) if kind == _NORMAL}
    added = [
        {"id": idx, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != _USER_DEFINED}
        for idx, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": pieces[0], "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": _merges(mergeable, scores),
        },
    }  # fmt: skip


def _merges(pieces: dict[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of pieces whose join is a piece, best join first; ties in the order of the parts' ids."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, idx in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                ranked.append((-scores[idx], pieces[left], pieces[right], left, right))
    return [[left, right] for *_, left, right in sorted(ranked)]


def tokenizer_json_to_pieces(content: dict[str, Any], num_pieces: int) -> tuple[list[str], list[float], list[int]]:
    """Write a ``tokenizer.json`` as a sentencepiece vocabulary: pieces, scores, types.

    A piece's score is the rank of the first merge that makes it. Where the file lists only some of the pairs that make
    a piece, the vocabulary merges a little more than the file: `pieces_to_tokenizer_json` of the result tells.

    Parameters
    ----------
    content : dict
    num_pieces : int
        Rows of the embeddings; ids that the file does not name get unused pieces.

    Raises
    ------
    ConfigError
        If the file is no byte-fallback BPE, or names ids that the model does not have.
    """
    model = content.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise ConfigError(
            f"the tokenizer is of type {str(model.get('type'))[:50]!r}; LLaMA's, a BPE with byte fallback, is needed."
        )
    by_id = {int(idx): str(piece) for piece, idx in model["vocab"].items()}
    types = {idx: _BYTE if _BYTE_PIECE.fullmatch(piece) else _NORMAL for idx, piece in by_id.items()}
    for entry in content.get("added_tokens") or []:
        idx = int(entry["id"])
        if idx < num_pieces:
            by_id[idx] = str(entry["content"])
            types[idx] = _CONTROL if entry["special"] else _USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = _UNKNOWN
    if beyond := [idx for idx in by_id if not 0 <= idx < num_pieces]:
        raise ConfigError(f"the tokenizer names the id {beyond[0]}, the model embeds {num_pieces} tokens.")
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, float(-rank))
    pieces = [by_id.get(idx, f"[PAD{idx}]") for idx in range(num_pieces)]
    scores = [ranks.get(piece, _LEAST_SCORE) for piece in pieces]
    return pieces, scores, [types.get(idx, _UNUSED) for idx in range(num_pieces)]
