"""GGUF files put together byte by byte, so that every field can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Entry", "make_gguf", "string", "value"]


@dataclass(frozen=True)
class Entry:
    """A tensor of the header: dimensions innermost first."""

    name: str = "a"
    dims: Sequence[int] = (4,)
    type_id: int = 0
    offset: int = 0


def string(text: str | bytes, *, length: int | None = None) -> bytes:
    """A string with its length, or with a false one."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(kind: int, data: bytes) -> bytes:
    """A typed value."""
    return struct.pack("<I", kind) + data


def make_gguf(
    pairs: Sequence[tuple[str, bytes]] = (), entries: Sequence[Entry] = (Entry(),), *, magic: bytes = b"GGUF",
    version: int = 3, num_tensors: int | None = None, num_keys: int | None = None, data: bytes = b"\0" * 64,
) -> bytes:  # fmt: skip
    """A whole file: header, padding to 32, data."""
    body = magic + struct.pack("<I", version)
    body += struct.pack("<QQ", len(entries) if num_tensors is None else num_tensors,
                        len(pairs) if num_keys is None else num_keys)  # fmt: skip
    for key, content in pairs:
        body += string(key) + content
    for entry in entries:
        body += string(entry.name) + struct.pack("<I", len(entry.dims))
        body += b"".join(struct.pack("<Q", size) for size in entry.dims)
        body += struct.pack("<IQ", entry.type_id, entry.offset)
    return body + b"\0" * (-len(body) % 32) + data
