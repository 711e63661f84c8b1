"""Blocks of pictures that outlive a restart: on the disk when nobody waits, brought back for a picture met before."""

from __future__ import annotations

from collections.abc import Sequence

from llavakit.engine.disk_store import DiskStore
from llavakit.engine.paged_cache import BLOCK_SIZE, BlockPool
from llavakit.scheduling.scheduler import Scheduler
from llavakit.scheduling.sequence import Sequence as ScheduledSequence

__all__ = ["PictureBlocks"]


class PictureBlocks:
    """Between the blocks of a cache and a store on the disk.

    Parameters
    ----------
    pool : BlockPool
    scheduler : Scheduler
        Whose blocks they are.
    disk : DiskStore, optional
        Without one nothing is kept and nothing is found.
    """

    def __init__(self, pool: BlockPool, scheduler: Scheduler, disk: DiskStore | None) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._disk = disk
        # Digests of those that are not on the disk yet, by block: one that is used again takes its place.
        self._unsaved: dict[int, bytes] = {}

    @property
    def has_unsaved(self) -> bool:
        """Whether a block waits to be put on the disk."""
        return bool(self._unsaved)

    def note(self, sequence: ScheduledSequence, full: Sequence[tuple[int, bytes]]) -> None:
        """Note the blocks of pictures among those of a sequence that have just become full, with their digests."""
        if self._disk is None or not full:
            return
        end = max((image.end for image in sequence.images), default=0)
        num_before = len(sequence.digests) - len(full)
        for idx, (block, digest) in enumerate(full):
            if (num_before + idx) * BLOCK_SIZE < end and digest.hex() not in self._disk:
                self._unsaved[block] = digest

    def save_one(self) -> None:
        """Put one block on the disk. Among answers it would cost a tenth of the time of everybody."""
        if self._disk is None or self._disk.is_full:
            return
        block = next(iter(self._unsaved))
        digest = self._unsaved.pop(block)
        if self._scheduler.blocks.match([digest]) == [block]:  # else its memory was needed meanwhile
            self._disk.put(digest.hex(), self._pool.read(block))

    def restore(self, sequence: ScheduledSequence) -> None:
        """Bring the blocks of a sequence's pictures back that were met before a restart."""
        if self._disk is None or not sequence.images:
            return
        blocks = self._scheduler.blocks
        chain = sequence.chain(BLOCK_SIZE)
        held = blocks.match(chain)
        blocks.acquire(held)
        try:
            for idx, digest in enumerate(chain[len(held) :], start=len(held)):
                if digest.hex() not in self._disk or (fresh := blocks.allocate(1)) is None:
                    break
                held += fresh
                data = self._disk.get(digest.hex())
                if data is None or len(data) != self._pool.num_block_bytes:
                    break
                self._pool.write(fresh[0], data)
                self._scheduler.register(sequence, idx, fresh[0])
        finally:
            blocks.release(held)
