"""Who computes what in the next step. Plain Python: positions and blocks are counted, no tensor is touched.

Each step takes one position (and a draft) of every answer that is running, and fills what is left of a budget with
pieces of prompts. While answers run the budget is small, so that those who read them do not wait for somebody's
picture: a fixed number of positions, or as many as the measured pace of steps allows. Prompts with little left to
compute go first, but whoever waits long enough goes before them.

A request whose beginning another one is computing right now waits for it rather than computing it twice. When blocks
run out the youngest running request gives its own back and waits again; what it has computed mostly stays findable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llavakit.scheduling.blocks import BlockManager, PositionKey
from llavakit.scheduling.pace import Pace
from llavakit.scheduling.sequence import ImageSpan, Sequence, State

__all__ = ["Budget", "Chunk", "Copy", "Scheduler", "Step"]

# Waiting for another request's blocks is worth it from so many positions on.
_MIN_SHARED_POSITIONS = 64
# How long a picture may hold up those who are reading their answers, where nothing is known of the pace.
_PICTURE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a step.

    Parameters
    ----------
    max_running : int
        Requests that have blocks at a time.
    prompt_tokens : int
        Positions of prompts in a step in which no answer runs.
    mixed_tokens : int
        The same while answers run, as long as ``max_slowdown`` is None or the pace of steps is not known yet.
    max_slowdown : float, optional
        While answers run, prompts and pictures may make a step so many times as long as one in which all requests that
        run were answering; `llavakit.scheduling.pace` learns how many positions that is.
    """

    max_running: int = 8
    prompt_tokens: int = 512
    mixed_tokens: int = 32
    max_slowdown: float | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, start + length) of a sequence; the last of them give logits if ``has_logits``.

    ``num_draft`` of the positions are guesses behind the sequence's last token.
    """

    sequence: Sequence
    start: int
    length: int
    has_logits: bool
    num_draft: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """The first ``length`` positions of block ``source`` are wanted in block ``target`` as well."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Step:
    """What to compute: chunks together in one pass, and a picture to go on encoding.

    ``copies`` are made before anything is computed, in their order: a source may be another one's target in the same
    step, or be written to by it. ``image_s`` is how long the picture may take of this step; None for to its end.
    ``num_answering`` positions of the chunks are tokens of answers.
    """

    chunks: tuple[Chunk, ...] = ()
    copies: tuple[Copy, ...] = ()
    image: tuple[Sequence, ImageSpan] | None = None
    image_s: float | None = None
    num_answering: int = 0
    preempted: tuple[Sequence, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.chunks and not self.copies and self.image is None


@dataclass
class Scheduler:
    """The waiting and the running requests of one engine.

    Parameters
    ----------
    blocks : BlockManager
    block_size : int
    budget : Budget
    """

    blocks: BlockManager
    block_size: int
    budget: Budget
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        slowdown = self.budget.max_slowdown
        self._pace = None if slowdown is None else Pace(slowdown)

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self.waiting.append(sequence)

    def can_ever_fit(self, num_positions: int) -> bool:
        """Whether a request of so many positions fits into the cache when it is alone."""
        return self._num_blocks(num_positions) <= self.blocks.num_blocks

    def schedule(self, *, on_start: Callable[[Sequence], None] | None = None) -> Step:
        """Decide the next step.

        Parameters
        ----------
        on_start : callable, optional
            Called with each request that begins to run, once more after it was sent back: it says which pictures are
            ready before it is decided what to compute.
        """
        preempted: list[Sequence] = []
        num_running = len(self.running)
        copies = self._admit()
        if on_start is not None:
            for sequence in self.running[num_running:]:
                on_start(sequence)
        # A sequence sent back while later ones were looked at computes nothing in this step.
        chunks = [chunk for chunk in self._decodes(preempted) if chunk.sequence.state is State.RUNNING]
        num_answering = sum(chunk.length for chunk in chunks)
        image = self._next_image()
        if num_answering:
            left, image_s = self._room_beside(num_answering, with_picture=image is not None)
        else:
            left, image_s = self.budget.prompt_tokens, None
        chunks += self._prompts(left)
        return Step(tuple(chunks), tuple(copies), image, image_s, num_answering, tuple(preempted))

    def learn(self, step: Step, *, seconds: float) -> None:
        """Take note of how long the pass over a step's chunks took."""
        if self._pace is not None:
            num_prompt = sum(chunk.length for chunk in step.chunks) - step.num_answering
            self._pace.learn(num_answering=step.num_answering, num_prompt=num_prompt, seconds=seconds)

    def find(self, sequence: Sequence) -> tuple[list[int], tuple[int, int] | None]:
        """Look for a sequence's beginning in the cache.

        Returns
        -------
        blocks : list of int
            Whole blocks that can be used as they are.
        part : tuple of int, optional
            A block that goes on in the same way for some positions, and for how many.
        """
        # The last position is always computed: its logits choose the next token.
        num_wanted = len(sequence.keys) - 1
        found = self.blocks.match(sequence.chain(self.block_size)[: num_wanted // self.block_size])
        end = len(found) * self.block_size
        return found, self.blocks.match_part(
            sequence.digest_before(len(found), self.block_size),
            sequence.keys[end : min(end + self.block_size, num_wanted)],
        )

    def computed(self, sequence: Sequence, num_positions: int) -> list[tuple[int, bytes]]:
        """Take note that positions were computed; return the blocks that became full, with their digests."""
        sequence.num_computed += num_positions
        return self._register(sequence)

    def register(self, sequence: Sequence, idx: int, block: int) -> bool:
        """Say that a block holds what is to stand in block ``idx`` of a sequence; False if another one does already."""
        return self.blocks.register(
            block,
            sequence.chain(self.block_size)[idx],
            before=sequence.digest_before(idx, self.block_size),
            keys=sequence.keys[idx * self.block_size : (idx + 1) * self.block_size],
        )

    def append(self, sequence: Sequence, key: PositionKey) -> None:
        """Add a chosen token."""
        sequence.keys.append(key)

    def finish(self, sequence: Sequence) -> None:
        """End a request, wherever it is or if it never was queued, and give its blocks back."""
        if sequence.state is State.ENDED:
            return
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        sequence.move_to(State.ENDED)
        self._release(sequence)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is accounted for and no sequence is in two places."""
        self.blocks.check_integrity(sequence.blocks for sequence in self.running)
        if any(sequence.blocks for sequence in self.waiting):
            raise AssertionError("a waiting sequence holds blocks")
        for sequence in self.running:
            if sequence.num_computed > len(sequence.blocks) * self.block_size:
                raise AssertionError(f"sequence {sequence.sequence_id} has computed more than its blocks hold")

    # Admission.

    def _admit(self) -> list[Copy]:
        copies: list[Copy] = []
        being_computed: set[bytes] = set()
        for sequence in self.running:
            if not sequence.is_decoding:
                being_computed.update(sequence.chain(self.block_size)[len(sequence.digests) :])
        for sequence in self._in_turn():
            if len(self.running) >= self.budget.max_running:
                break
            digests = sequence.chain(self.block_size)
            found, part = self.find(sequence)
            shared = _count_shared(digests[len(found) :], being_computed)
            sequence.is_held = shared > 0 and (sequence.is_held or shared * self.block_size >= _MIN_SHARED_POSITIONS)
            if sequence.is_held:
                continue
            if not self._start(sequence, found, num_copied=part[1] if part else 0):
                break  # first come, first served: a smaller one that would fit does not overtake for ever
            if part is not None:
                source, length = part
                self.blocks.touch(source)
                # The source may just have been given away to be written to: copies come before that.
                copies.append(Copy(source, sequence.blocks[len(found)], length))
            being_computed.update(digests[len(found) :])
        return copies

    def _in_turn(self) -> Iterable[Sequence]:
        """Order those that wait: first whoever ran before, then one of each tenant after the other."""
        by_tenant: dict[str, deque[Sequence]] = {}
        for sequence in self.waiting:
            by_tenant.setdefault("" if sequence.num_preemptions else sequence.tenant, deque()).append(sequence)
        order = [s for s in self.waiting if s.num_preemptions]
        queues = [deque(s for s in queue if not s.num_preemptions) for queue in by_tenant.values()]
        while any(queues):
            order += [queue.popleft() for queue in queues if queue]
        return order

    def _start(self, sequence: Sequence, found: list[int], *, num_copied: int) -> bool:
        needed = self._num_blocks(len(sequence.keys)) - len(found)
        # Whoever runs may need one more block soon; without it a request that was sent back would be again, and again.
        spare = len(self.running)
        if needed + spare > self.blocks.num_free - self.blocks.count_kept(found):
            return False
        self.blocks.acquire(found)
        fresh = self.blocks.allocate(needed)
        if fresh is None:
            raise AssertionError("free blocks were miscounted")
        self.waiting.remove(sequence)
        sequence.move_to(State.RUNNING)
        sequence.blocks = [*found, *fresh]
        sequence.num_computed = len(found) * self.block_size + num_copied
        sequence.digests = sequence.chain(self.block_size)[: len(found)]
        sequence.waited_steps = 0
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
        self.running.append(sequence)
        return True

    # The parts of a step.

    def _decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        chunks = []
        for sequence in list(self.running):
            if sequence.state is not State.RUNNING or not sequence.is_decoding:
                continue
            num_draft = min(len(sequence.draft), sequence.max_len - len(sequence.keys))
            if num_draft and not self._grow(sequence, len(sequence.keys) + num_draft, None):
                num_draft = 0  # a guess is not worth anybody's blocks
            if self._grow(sequence, len(sequence.keys), preempted):
                chunks.append(
                    Chunk(sequence, sequence.num_computed, 1 + num_draft, has_logits=True, num_draft=num_draft)
                )
        return chunks

    def _room_beside(self, num_answering: int, *, with_picture: bool) -> tuple[int, float]:
        """Positions of prompts, and seconds for a picture, beside so many tokens of answers."""
        if self._pace is None:
            return self.budget.mixed_tokens, _PICTURE_S
        num = self._pace.num_prompt(
            num_running=len(self.running), num_answering=num_answering, with_picture=with_picture
        )
        return (
            self.budget.mixed_tokens if num is None else min(num, self.budget.prompt_tokens),
            self._pace.picture_s(len(self.running)),
        )

    def _prompts(self, left: int) -> list[Chunk]:
        waiting = [s for s in self.running if s.state is State.RUNNING and not s.is_decoding]
        # Least left to compute first; a step of waiting weighs as much as a step of computing.
        waiting.sort(key=lambda s: (s.num_missing - s.waited_steps * self.budget.mixed_tokens, s.sequence_id))
        chunks = []
        for sequence in waiting:
            length = min(left, sequence.num_computable())
            if length < 1:
                sequence.waited_steps += left < 1
                continue
            chunks.append(Chunk(sequence, sequence.num_computed, length, has_logits=length == sequence.num_missing))
            sequence.waited_steps = 0
            left -= length
        return chunks

    def _next_image(self) -> tuple[Sequence, ImageSpan] | None:
        """Return the picture to encode: of the request that has waited longest for one."""
        for sequence in self.running:
            image = sequence.first_missing_image()
            if image is not None:
                return sequence, image
        return None

    def _grow(self, sequence: Sequence, num_positions: int, preempted: list[Sequence] | None) -> bool:
        """Give a sequence room for so many positions; send younger ones back if ``preempted`` may be added to."""
        missing = self._num_blocks(num_positions) - len(sequence.blocks)
        if missing <= 0:
            return True
        while (fresh := self.blocks.allocate(missing)) is None:
            if preempted is None:
                return False
            youngest = max(self.running, key=lambda s: s.sequence_id)
            self._preempt(youngest)
            preempted.append(youngest)
            if youngest is sequence:
                return False
        sequence.blocks += fresh
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.move_to(State.WAITING)
        sequence.num_preemptions += 1
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    # Blocks.

    def _register(self, sequence: Sequence) -> list[tuple[int, bytes]]:
        """Give digests to the blocks that are full now."""
        num_full = sequence.num_computed // self.block_size
        num_known = len(sequence.digests)
        if num_full == num_known:
            return []
        chain = sequence.chain(self.block_size)
        fresh = range(num_known, num_full)
        registered = [
            (sequence.blocks[idx], chain[idx]) for idx in fresh if self.register(sequence, idx, sequence.blocks[idx])
        ]
        sequence.digests += chain[num_known:num_full]
        return registered

    def _release(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.digests, sequence.draft = [], [], ()

    def _num_blocks(self, num_positions: int) -> int:
        return -(-num_positions // self.block_size)


def _count_shared(digests: Iterable[bytes], being_computed: set[bytes]) -> int:
    count = 0
    for digest in digests:
        if digest not in being_computed:
            break
        count += 1
    return count
