"""The key-value cache: allocated once, one row per sequence, position = slot.

No padding exists anywhere: a sequence's token t lives in slot t of its row, whatever its neighbours do.
Prompts are therefore computed exactly as if alone, and rows of different lengths decode together under a
mask over the unused slots.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

from llavakit.core.config import TextConfig
from llavakit.model.kv_blocks import BLOCKS, num_bytes, to_blocks
from llavakit.model.native_decoder import KeyValues, QueryGroup

__all__ = ["DecodeView", "KVCache", "PrefillView", "as_stored", "reserve_zeros"]


class KVCache:
    """Keys and values of every layer.

    Parameters
    ----------
    config : TextConfig
    num_rows : int
        Sequences that can live side by side.
    max_len : int
        Slots of a row.
    dtype : torch.dtype
        Of keys and values; `kv_blocks.BLOCKS` for 8 bits with a scale for every 32 numbers.

    Notes
    -----
    Every slot holds a finite number from the start: a slot hidden by a mask has weight 0, and 0 times a
    leftover NaN would still be NaN. On a CPU the zeros cost nothing: they are the operating system's fresh
    pages, committed when a slot is first written.
    """

    def __init__(
        self, config: TextConfig, *, num_rows: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape: tuple[int, ...] = (config.num_hidden_layers, num_rows, config.num_key_value_heads, max_len)
        shape += (num_bytes(config.head_dim) if dtype == BLOCKS else config.head_dim,)
        self.keys = reserve_zeros(shape, dtype=dtype, device=device)
        self.values = reserve_zeros(shape, dtype=dtype, device=device)
        self.num_rows = num_rows
        self.max_len = max_len

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` slots of one row to another."""
        for store in (self.keys, self.values):
            store[:, target, :, :length] = store[:, source, :, :length]

    def gather_rows(self, rows: Tensor, length: int) -> None:
        """Make row i a copy of row ``rows[i]`` (beam search), ``length`` slots of each."""
        for store in (self.keys, self.values):
            for layer in store:
                layer[: len(rows), :, :length] = layer[rows, :, :length]


def as_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return keys or values as a cache of this dtype holds them."""
    return to_blocks(x) if dtype == BLOCKS else x.to(dtype)


def reserve_zeros(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU memory that is committed page by page when it is first written."""
    if device.type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes its zeros, which would commit the whole cache; the system's fresh pages are zero already. Small
    # pages, too: a row of a head is 1 MiB at 7B's context, so that with pages of 2 MiB the first token would commit
    # all of it, 2 GiB. The mapping lives as long as the tensor.
    mapping = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages refuses the advice
            mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)


class PrefillView:
    """Writes a run of tokens of one sequence, and shows it everything up to them."""

    def __init__(self, cache: KVCache, *, row: int, start: int) -> None:
        self._cache = cache
        self._row = row
        self._start = start

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (1, K, T, E) at slots start..start+T; return slots 0..start+T."""
        end = self._start + key.shape[2]
        keys = self._cache.keys[layer_idx, self._row : self._row + 1]
        values = self._cache.values[layer_idx, self._row : self._row + 1]
        keys[:, :, self._start : end] = as_stored(key, keys.dtype)
        values[:, :, self._start : end] = as_stored(value, values.dtype)
        return keys[:, :, :end], values[:, :, :end]

    def key_values(self, num_tokens: int) -> KeyValues:
        """Describe slots start..start+T of the row, and that every token sees those up to its own."""
        row = slice(self._row, self._row + 1)
        end = self._start + num_tokens
        keys = self._cache.keys[:, row]
        group = QueryGroup(num_tokens, torch.tensor([end], dtype=torch.int64))
        return KeyValues(keys, self._cache.values[:, row], torch.arange(self._start, end) * keys.stride(3), [group])

    @property
    def num_keys(self) -> None:
        """All that ``update`` returns."""
        return None

    def mask(self, num_tokens: int) -> Tensor | None:
        """Return the causal mask (T, start + T) of a run that does not begin the sequence; None if it does."""
        if self._start == 0 or num_tokens == 1:
            return None
        device = self._cache.keys.device
        slots = torch.arange(self._start + num_tokens, device=device)
        own = torch.arange(self._start, self._start + num_tokens, device=device)
        return slots <= own[:, None]


class DecodeView:
    """Writes one token of each of the first n rows, at each row's own position."""

    def __init__(self, cache: KVCache, lengths: list[int]) -> None:
        self._cache = cache
        self._num_rows = len(lengths)
        self._num_keys = [length + 1 for length in lengths]
        self._max_end = max(lengths) + 1
        self._rows = torch.arange(len(lengths), device=cache.keys.device)
        self._slots = torch.tensor(lengths, device=cache.keys.device)
        self._is_uniform = min(lengths) == max(lengths)

    def update(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (n, K, 1, E); return (n, K, S, E) with S the longest row."""
        keys = self._cache.keys[layer_idx, : self._num_rows]
        values = self._cache.values[layer_idx, : self._num_rows]
        key, value = as_stored(key[:, :, 0], keys.dtype), as_stored(value[:, :, 0], values.dtype)
        if self._is_uniform:
            keys[:, :, self._max_end - 1] = key
            values[:, :, self._max_end - 1] = value
        else:
            keys[self._rows, :, self._slots] = key
            values[self._rows, :, self._slots] = value
        return keys[:, :, : self._max_end], values[:, :, : self._max_end]

    def key_values(self, num_tokens: int) -> KeyValues:
        """Describe the next slot of every row, and that its token sees those up to it."""
        keys = self._cache.keys
        slots = self._rows * keys.stride(1) + self._slots * keys.stride(3)
        group = QueryGroup(num_tokens, torch.tensor(self._num_keys, dtype=torch.int64))
        return KeyValues(keys, self._cache.values, slots, [group])

    @property
    def num_keys(self) -> list[int]:
        """Keys of each row, the new one among them."""
        return self._num_keys

    def mask(self) -> Tensor | None:
        """Return the mask (n, 1, 1, S) that hides unused slots; None when every row is equally long."""
        if self._is_uniform:
            return None
        slots = torch.arange(self._max_end, device=self._slots.device)
        return (slots <= self._slots[:, None])[:, None, None]

    @property
    def positions(self) -> Tensor:
        """Position of the new token of each row, (n, 1)."""
        return self._slots[:, None]
