"""The key-value cache in blocks, and one pass over the tokens of several sequences that use it.

Blocks are numbered; which sequence has which is decided elsewhere (`llavakit.scheduling`). The native library reads
them where they lie. The torch version gathers a sequence's blocks first: it is the slow and obvious one, and the
only one on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from llavakit.core.config import TextConfig
from llavakit.engine.kv_cache import as_stored, reserve_zeros
from llavakit.model.kv_blocks import BLOCKS, num_bytes, read_blocks
from llavakit.model.layers import attend
from llavakit.model.llama import PackedCache
from llavakit.model.native import attend_blocks
from llavakit.model.native_decoder import KeyValues, QueryGroup

__all__ = ["BLOCK_SIZE", "BlockPool", "PackedPass", "Piece"]

BLOCK_SIZE = 16
"""Positions of a block: few enough that a shared beginning is used almost to its end."""


class BlockPool:
    """Keys and values of every layer, (layers, num_blocks, K, BLOCK_SIZE, E) each.

    Parameters
    ----------
    config : TextConfig
    num_blocks : int
    dtype : torch.dtype
        Of keys and values; `kv_blocks.BLOCKS` for 8 bits with a scale for every 32 numbers.
    device : torch.device
    """

    def __init__(self, config: TextConfig, *, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        width = num_bytes(config.head_dim) if dtype == BLOCKS else config.head_dim
        shape = (config.num_hidden_layers, num_blocks, config.num_key_value_heads, BLOCK_SIZE, width)
        self.keys = reserve_zeros(shape, dtype=dtype, device=device)
        self.values = reserve_zeros(shape, dtype=dtype, device=device)
        self.num_blocks = num_blocks
        self.num_block_bytes = self.block_bytes(config, dtype)

    @staticmethod
    def block_bytes(config: TextConfig, dtype: torch.dtype) -> int:
        """Bytes of one block, all layers together."""
        width = num_bytes(config.head_dim) if dtype == BLOCKS else config.head_dim * dtype.itemsize
        return 2 * config.num_hidden_layers * config.num_key_value_heads * BLOCK_SIZE * width

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one block to another, in every layer."""
        for store in (self.keys, self.values):
            store[:, target, :, :length] = store[:, source, :, :length]

    def read(self, block: int) -> bytes:
        """Return what a block holds."""
        parts = (store[:, block].contiguous().cpu().view(torch.uint8).numpy() for store in (self.keys, self.values))
        return b"".join(part.tobytes() for part in parts)

    def write(self, block: int, data: bytes) -> None:
        """Put back what `read` returned."""
        half = len(data) // 2
        for store, part in ((self.keys, data[:half]), (self.values, data[half:])):
            target = store[:, block]
            stored = torch.frombuffer(bytearray(part), dtype=store.dtype).view(target.shape)
            target.copy_(stored)


@dataclass(frozen=True)
class Piece:
    """Positions [start, start + length) of a sequence whose blocks are ``blocks``."""

    blocks: Sequence[int]
    start: int
    length: int


class PackedPass(PackedCache):
    """One forward pass over pieces of sequences, packed one after the other, shortest first.

    Parameters
    ----------
    pool : BlockPool
    pieces : sequence of Piece
        In ascending order of length. What they need lies in their blocks already, or comes with this pass.
    """

    def __init__(self, pool: BlockPool, pieces: Sequence[Piece]) -> None:
        self._pool = pool
        device = pool.keys.device
        places = [
            (position, piece.blocks[position // BLOCK_SIZE])
            for piece in pieces
            for position in range(piece.start, piece.start + piece.length)
        ]
        self._places = places
        self.positions = torch.tensor([[position for position, _ in places]], device=device)
        """Positions (1, T) of the tokens in their sequences."""
        # Pieces of one length are one call: all the single tokens, and mostly one prompt.
        self._groups = [(length, list(group)) for length, group in groupby(pieces, key=lambda piece: piece.length)]
        self._tables = [self._table([piece.blocks for piece in group]) for _, group in self._groups]
        self._counts = [
            torch.tensor([piece.start + piece.length for piece in group], dtype=torch.int64)
            for _, group in self._groups
        ]

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, *, is_native: bool) -> Tensor:
        """Store keys and values (T, K, E), attend with queries (T, H, E): returns (T, H * E)."""
        keys, values = self._pool.keys[layer_idx], self._pool.values[layer_idx]
        blocks, offsets = self._blocks_and_offsets
        keys[blocks, :, offsets] = as_stored(key, keys.dtype)
        values[blocks, :, offsets] = as_stored(value, values.dtype)
        compute = self._attend_natively if is_native else self._attend_gathered
        outputs, first = [], 0
        for idx, (length, group) in enumerate(self._groups):
            count = length * len(group)
            outputs.append(compute(idx, query[first : first + count], keys, values))
            first += count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def key_values(self, num_tokens: int) -> KeyValues:  # noqa: ARG002 - the pieces say it
        """Describe the blocks of every piece and the place of each of its tokens there."""
        keys = self._pool.keys
        per_block, per_position = keys.stride(1), keys.stride(3)
        # In Python: each operation of torch gives other threads the interpreter, and waits to have it back.
        slots = torch.tensor(
            [block * per_block + position % BLOCK_SIZE * per_position for position, block in self._places],
            dtype=torch.int64, device=keys.device,
        )  # fmt: skip
        groups = [
            QueryGroup(length, counts, table)
            for (length, _), counts, table in zip(self._groups, self._counts, self._tables, strict=True)
        ]
        return KeyValues(keys, self._pool.values, slots, groups)

    @cached_property
    def _blocks_and_offsets(self) -> tuple[Tensor, Tensor]:
        blocks = torch.tensor([block for _, block in self._places], device=self.positions.device)
        return blocks, self.positions[0] % BLOCK_SIZE

    def _attend_natively(self, idx: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        length, group = self._groups[idx]
        rows = query.view(len(group), length, *query.shape[1:])
        return attend_blocks(rows, keys, values, self._tables[idx], self._counts[idx]).flatten(0, 1)

    def _attend_gathered(self, idx: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        length, group = self._groups[idx]
        outputs = []
        for row, piece in enumerate(group):
            end = piece.start + length
            table = self._tables[idx][row, : -(-end // BLOCK_SIZE)].long()
            mine = query[row * length : (row + 1) * length].transpose(0, 1)[None]
            key, value = (
                _as_numbers(store[table].transpose(0, 1).flatten(1, 2)[None, :, :end], query.dtype)
                for store in (keys, values)
            )
            mask = None
            if length > 1:
                own = torch.arange(piece.start, end, device=query.device)
                mask = torch.arange(end, device=query.device) <= own[:, None]
            outputs.append(attend(mine, key, value, mask=mask, is_causal=False)[0])
        return torch.cat(outputs)

    def _table(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(row) for row in rows)
        padded = [[*row, *[-1] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.int32, device=self._pool.keys.device)


def _as_numbers(stored: Tensor, dtype: torch.dtype) -> Tensor:
    return read_blocks(stored, dtype) if stored.dtype == BLOCKS else stored.to(dtype)
