"""Blocks of the key-value cache: who uses which, and which can be found again by what they hold.

A block has room for a fixed number of positions. A full block gets a digest of everything up to its end, so that
another sequence that begins alike can use it as it is. One that parts from it in the middle of the block can have the
rows up to there copied. A block that nobody uses stays findable until its memory is needed, least recently used first.
Nothing here touches the numbers in the blocks.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

__all__ = ["BlockManager", "PositionKey", "chain_digests", "root_digest"]

# A position's identity: a token id, or a picture's digest with the offset inside the picture.
PositionKey = int | tuple[str, int]


def root_digest(*parts: str) -> bytes:
    """Digest that a chain starts from: what else decides the numbers in a block (model, number format, tenant)."""
    return hashlib.sha256("\0".join(parts).encode()).digest()


def chain_digests(root: bytes, keys: Sequence[PositionKey], *, block_size: int) -> list[bytes]:
    """Digests of the full blocks of a sequence, each of everything up to its block's end.

    Parameters
    ----------
    root : bytes
        Digest before the first of ``keys``: `root_digest`, or the last known digest of the chain.
    keys : sequence of PositionKey
        What stands at every position.
    block_size : int
    """
    digests = []
    for first in range(0, len(keys) - block_size + 1, block_size):
        root = hashlib.sha256(root + repr(tuple(keys[first : first + block_size])).encode()).digest()
        digests.append(root)
    return digests


class BlockManager:
    """Hands out blocks 0 to ``num_blocks`` - 1.

    Invariant: every block is in exactly one of three states: in use (counted references), kept (no reference, but
    findable by its digest), or blank.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}
        self._contents: dict[int, tuple[bytes, tuple[PositionKey, ...]]] = {}  # findable ones: digest before, and keys
        self._followers: dict[bytes, list[int]] = {}  # findable ones by the digest before them
        self._blank: deque[int] = deque(range(num_blocks))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._num_written = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be had at once."""
        return len(self._blank) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody uses but that can be found again."""
        return len(self._kept)

    @property
    def num_written(self) -> int:
        """Blocks that were handed out at least once, whose memory is therefore taken."""
        return self._num_written

    def match(self, digests: Iterable[bytes]) -> list[int]:
        """Return the blocks that hold the longest known beginning of a chain."""
        found = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def match_part(self, before: bytes, keys: Sequence[PositionKey]) -> tuple[int, int] | None:
        """Return the block that goes on like ``keys`` for longest after the digest ``before``, and for how long."""
        best, best_length, wanted = None, 0, tuple(keys)
        for block in self._followers.get(before, ()):
            held = self._contents[block][1]
            # Requests often begin alike: one comparison says of most blocks that they are no better.
            if (
                held[: best_length + 1] == wanted[: best_length + 1]
                and (length := _count_equal(held, wanted)) > best_length
            ):
                best, best_length = block, length
                if best_length == len(wanted):
                    break
        return None if best is None else (best, best_length)

    def touch(self, block: int) -> None:
        """Note that a block was read, though nobody uses it."""
        if block in self._kept:
            self._kept.move_to_end(block)

    def count_kept(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody uses."""
        return sum(block in self._kept for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Use blocks that hold something already."""
        for block in blocks:
            if self._references[block] == 0:
                del self._kept[block]
            self._references[block] += 1

    def allocate(self, num: int) -> list[int] | None:
        """Return so many blocks to write to, forgetting the least recently used ones; None if there are too few."""
        if num > self.num_free:
            return None
        blocks = []
        for _ in range(num):
            if self._blank:
                # Blank ones that were never used come first, since what is given back goes to the end.
                block = self._blank.popleft()
                self._num_written = min(self._num_written + 1, self.num_blocks)
            else:
                block, _ = self._kept.popitem(last=False)
                self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def register(self, block: int, digest: bytes, *, before: bytes, keys: Sequence[PositionKey]) -> bool:
        """Say what a full block in use holds; False if another block holds the same already.

        Parameters
        ----------
        block : int
        digest : bytes
            Of everything up to its end.
        before : bytes
            Digest of everything up to its beginning.
        keys : sequence of PositionKey
            What stands in it.
        """
        if digest in self._by_digest:
            return False
        self._digests[block] = digest
        self._by_digest[digest] = block
        self._contents[block] = (before, tuple(keys))
        self._followers.setdefault(before, []).append(block)
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Give up a sequence's blocks; its last ones are forgotten first, since fewer others can share them."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if self._digests[block] is None:
                self._blank.append(block)
            else:
                self._kept[block] = None

    def forget_kept(self) -> None:
        """Forget what nobody uses."""
        while self._kept:
            block, _ = self._kept.popitem()
            self._forget(block)
            self._blank.append(block)

    def check_integrity(self, in_use: Iterable[Sequence[int]] = ()) -> None:
        """Raise AssertionError unless the invariant holds and the references are those of the block lists given."""
        counted = [0] * self.num_blocks
        for blocks in in_use:
            for block in blocks:
                counted[block] += 1
        blank, kept = set(self._blank), set(self._kept)
        problems = [
            block
            for block in range(self.num_blocks)
            if self._references[block] != counted[block]
            or (block in blank) + (block in kept) + (counted[block] > 0) != 1
            or (block in kept and self._digests[block] is None)
            or (block in blank and self._digests[block] is not None)
        ]
        known = {digest: block for block, digest in enumerate(self._digests) if digest is not None}
        followers = sorted(block for blocks in self._followers.values() for block in blocks)
        is_indexed = followers == sorted(known.values()) == sorted(self._contents) and all(self._followers.values())
        if problems or known != self._by_digest or len(blank) != len(self._blank) or not is_indexed:
            raise AssertionError(f"blocks {problems} are in no state or in two; {len(known)} digests are known")

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block] = None
            before, _ = self._contents.pop(block)
            self._followers[before].remove(block)
            if not self._followers[before]:
                del self._followers[before]


def _count_equal(a: Sequence[PositionKey], b: Sequence[PositionKey]) -> int:
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count
