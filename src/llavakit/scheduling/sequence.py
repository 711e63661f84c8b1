"""One request as the scheduler sees it: what stands at its positions, how far it is computed, where it lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from llavakit.scheduling.blocks import PositionKey, chain_digests

__all__ = ["ImageSpan", "Sequence", "State"]


class State(Enum):
    """A sequence waits, runs, and has ended; a running one may be sent back to wait."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


_NEXT = {
    State.WAITING: (State.RUNNING, State.ENDED),
    State.RUNNING: (State.WAITING, State.ENDED),
    State.ENDED: (),
}


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """A picture's place in the prompt: its digest, first position and number of positions."""

    digest: str
    start: int
    length: int

    @property
    def end(self) -> int:
        """First position after it."""
        return self.start + self.length


@dataclass(eq=False)
class Sequence:
    """A request that was admitted.

    Attributes
    ----------
    sequence_id : int
        Counts up with arrival.
    keys : list of PositionKey
        Of the prompt and of every token chosen so far; the last one is not computed yet.
    root : bytes
        What its chain of digests starts from.
    images : tuple of ImageSpan
    max_len : int
        Positions it can ever have.
    tenant : str
    num_computed : int
        Positions whose keys and values are in its blocks.
    num_cached : int
        Positions that were found in the cache when it first ran.
    blocks : list of int
    digests : list of bytes
        Of its full blocks that are computed.
    draft : tuple of int
        Tokens guessed to follow; they are computed in the next step and kept if they are right.
    ready_images : set of str
        Digests of pictures whose features are at hand; never more than `needed_images`.
    num_preemptions : int
        How often it was sent back to wait.
    waited_steps : int
        Steps since it ran that had no room for it.
    is_held : bool
        Whether it waits for another request to compute what both begin with.
    """

    sequence_id: int
    keys: list[PositionKey]
    root: bytes
    images: tuple[ImageSpan, ...]
    max_len: int
    tenant: str = ""
    num_computed: int = 0
    num_cached: int | None = None
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    draft: tuple[int, ...] = ()
    ready_images: set[str] = field(default_factory=set)
    state: State = State.WAITING
    num_preemptions: int = 0
    waited_steps: int = 0
    is_held: bool = False
    _chain: list[bytes] = field(default_factory=list)

    def move_to(self, state: State) -> None:
        """Change the state; only the transitions of the table above are possible."""
        if state not in _NEXT[self.state]:
            raise AssertionError(f"sequence {self.sequence_id} cannot go from {self.state} to {state}")
        self.state = state

    def chain(self, block_size: int) -> list[bytes]:
        """Digests of all blocks that its keys fill, computed or not. Keys are only ever added, so they are kept."""
        known = len(self._chain)
        self._chain += chain_digests(
            self._chain[-1] if self._chain else self.root, self.keys[known * block_size :], block_size=block_size
        )
        return self._chain

    def digest_before(self, idx: int, block_size: int) -> bytes:
        """Digest of everything before block ``idx``."""
        return self.chain(block_size)[idx - 1] if idx else self.root

    @property
    def num_missing(self) -> int:
        """Positions to compute before the next token can be chosen."""
        return len(self.keys) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether only its last token is missing."""
        return self.num_missing == 1

    @property
    def needed_images(self) -> set[str]:
        """Digests of the pictures whose features are to be computed with; none while it waits."""
        if self.state is not State.RUNNING:
            return set()
        return {image.digest for image in self.images if image.end > self.num_computed}

    def first_missing_image(self) -> ImageSpan | None:
        """Return the first picture that is needed and has no features yet."""
        for image in self.images:
            if image.end > self.num_computed and image.digest not in self.ready_images:
                return image
        return None

    def num_computable(self) -> int:
        """Positions that can be computed now: up to the first picture without features."""
        image = self.first_missing_image()
        end = len(self.keys) if image is None else max(image.start, self.num_computed)
        return end - self.num_computed
