"""The scheduler and its blocks without a model: whatever arrives and ends, nothing is lost or shared."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.scheduling.blocks import BlockManager, PositionKey, chain_digests, root_digest
from llavakit.scheduling.scheduler import Budget, Scheduler, Step
from llavakit.scheduling.sequence import ImageSpan, Sequence, State

_BLOCK = 4


def _scheduler(num_blocks: int = 64, **budget: int) -> Scheduler:
    return Scheduler(BlockManager(num_blocks), _BLOCK, Budget(**{"prompt_tokens": 16, "mixed_tokens": 4, **budget}))


def _sequence(idx: int, keys: list[PositionKey], *, max_len: int | None = None, tenant: str = "") -> Sequence:
    spans: list[ImageSpan] = []
    for position, key in enumerate(keys):
        if isinstance(key, tuple) and key[1] == 0:
            length = sum(isinstance(k, tuple) and k[0] == key[0] for k in keys[position : position + 8])
            spans.append(ImageSpan(key[0], position, length))
    return Sequence(
        idx, list(keys), root_digest("model", tenant), tuple(spans), max_len=max_len or len(keys) + 6, tenant=tenant
    )


class _Player:
    """Does what a step says: keeps what stands in each slot, and checks that it is what should stand there."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.slots: dict[int, PositionKey] = {}
        self.ended: list[Sequence] = []
        self.num_computed = 0

    def step(self) -> Step:
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        for copy in step.copies:
            for offset in range(copy.length):
                self.slots[copy.target * _BLOCK + offset] = self.slots[copy.source * _BLOCK + offset]
        if step.image is not None:
            sequence, image = step.image
            assert sequence.state is State.RUNNING
            sequence.ready_images.add(image.digest)
        for chunk in step.chunks:
            sequence = chunk.sequence
            assert chunk.start == sequence.num_computed
            for position in range(chunk.start):
                slot = sequence.blocks[position // _BLOCK] * _BLOCK + position % _BLOCK
                assert self.slots[slot] == sequence.keys[position], "another sequence wrote over what is needed"
            for position in range(chunk.start, chunk.start + chunk.length):
                slot = sequence.blocks[position // _BLOCK] * _BLOCK + position % _BLOCK
                self.slots[slot] = sequence.keys[position]
            self.num_computed += chunk.length
            self.scheduler.computed(sequence, chunk.length)
            if chunk.has_logits:
                assert sequence.num_missing == 0
                if len(sequence.keys) >= sequence.max_len:
                    self.scheduler.finish(sequence)
                    self.ended.append(sequence)
                else:
                    self.scheduler.append(sequence, 1000 + len(sequence.keys))
        self.scheduler.check_integrity()
        return step

    def play(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.waiting and not self.scheduler.running:
                return
            assert not self.step().is_empty, "nothing to do, though somebody waits"
        raise AssertionError("somebody waits for ever")


@st.composite
def _prompts(draw: st.DrawFn) -> list[list[PositionKey]]:
    """Prompts that share beginnings and pictures."""
    pictures = [[(f"picture{idx}", offset) for offset in range(8)] for idx in range(3)]
    prompts: list[list[PositionKey]] = []
    for _ in range(draw(st.integers(1, 8))):
        keys: list[PositionKey] = [1, 2, 3]
        if draw(st.booleans()):
            keys += pictures[draw(st.integers(0, 2))]
        keys += draw(st.lists(st.integers(10, 12), min_size=1, max_size=20))
        prompts.append(keys)
    return prompts


@settings(max_examples=300, deadline=None)
@given(prompts=_prompts(), num_blocks=st.integers(12, 40), max_running=st.integers(1, 6), seed=st.integers(0, 9))
def test_every_request_ends_once_and_every_slot_holds_what_its_reader_needs(
    prompts: list[list[PositionKey]], num_blocks: int, max_running: int, seed: int
) -> None:
    scheduler = _scheduler(num_blocks, max_running=max_running)
    player = _Player(scheduler)
    rng = random.Random(seed)
    sequences = [_sequence(idx, keys, tenant=rng.choice("ab")) for idx, keys in enumerate(prompts)]
    cancelled = []
    for sequence in sequences:
        assert scheduler.can_ever_fit(sequence.max_len)
        scheduler.add(sequence)
        for _ in range(rng.randrange(4)):
            player.step()
        if rng.random() < 0.2 and scheduler.running:
            victim = rng.choice(scheduler.running)
            scheduler.finish(victim)
            cancelled.append(victim)
    player.play()
    assert sorted(s.sequence_id for s in player.ended + cancelled) == list(range(len(prompts)))
    assert all(sequence.state is State.ENDED for sequence in sequences)
    assert scheduler.blocks.num_free == num_blocks
    scheduler.blocks.forget_kept()
    scheduler.blocks.check_integrity()


def test_a_request_that_never_was_queued_can_be_ended_and_twice_is_no_harm() -> None:
    scheduler = _scheduler()
    sequence = _sequence(0, [1, 2, 3])
    scheduler.finish(sequence)
    scheduler.finish(sequence)
    assert sequence.state is State.ENDED
    scheduler.check_integrity()


def test_a_second_question_about_a_picture_computes_only_its_own_words() -> None:
    scheduler = _scheduler()
    player = _Player(scheduler)
    picture: list[PositionKey] = [("p", offset) for offset in range(8)]
    scheduler.add(_sequence(0, [1, *picture, 7, 7, 7, 20, 21]))
    player.play()
    before = player.num_computed
    second = _sequence(1, [1, *picture, 7, 7, 7, 30, 31, 32], max_len=15)
    scheduler.add(second)
    player.play()
    assert second.num_cached == 12
    assert player.num_computed - before == 3


def test_one_who_parts_in_the_middle_of_a_block_copies_what_is_alike() -> None:
    scheduler = _scheduler()
    player = _Player(scheduler)
    for idx, last in enumerate(([7, 20, 21], [7, 8, 30])):
        scheduler.add(_sequence(idx, [1, 2, 3, 4, 5, *last], max_len=9))
    player.play()
    third = _sequence(2, [1, 2, 3, 4, 5, 7, 8, 40, 41], max_len=9)
    scheduler.add(third)
    step = scheduler.schedule()
    (copy,) = step.copies
    assert (copy.target, copy.length, third.num_cached) == (third.blocks[1], 3, 7)
    assert [(c.start, c.length) for c in step.chunks] == [(7, 2)]
    assert copy.source not in third.blocks


def test_the_last_position_is_computed_even_if_all_is_known() -> None:
    scheduler = _scheduler()
    player = _Player(scheduler)
    for idx in range(2):
        scheduler.add(_sequence(idx, [1, 2, 3, 4, 5, 6, 7, 8], max_len=8))
        player.play()
    again = player.ended[1]
    assert again.num_cached == 7
    assert player.num_computed == 9


def test_a_source_that_is_given_away_in_the_same_step_is_copied_first() -> None:
    scheduler = _scheduler(num_blocks=3)
    player = _Player(scheduler)
    scheduler.add(_sequence(0, [1, 2, 3, 4], max_len=4))
    player.play()
    other = _sequence(1, [1, 2, 3, 9, 10, 11, 12, 13, 14, 15], max_len=12)
    scheduler.add(other)
    step = player.step()
    assert step.copies[0].source in other.blocks
    assert other.num_cached == 3


def test_tenants_with_roots_of_their_own_share_nothing() -> None:
    scheduler = _scheduler()
    player = _Player(scheduler)
    keys: list[PositionKey] = list(range(16))
    scheduler.add(_sequence(0, keys, tenant="a"))
    player.play()
    other = _sequence(1, keys, tenant="b")
    scheduler.add(other)
    player.play()
    assert other.num_cached == 0


def test_two_requests_that_begin_alike_at_the_same_time_compute_it_once() -> None:
    scheduler = _scheduler(prompt_tokens=16)
    player = _Player(scheduler)
    shared: list[PositionKey] = list(range(80))
    first, second = (_sequence(idx, [*shared, 100 + idx], max_len=81) for idx in range(2))
    scheduler.add(first)
    scheduler.add(second)
    player.play()
    assert second.num_cached == 80
    assert player.num_computed == 82


def test_a_long_prompt_takes_small_pieces_while_answers_run() -> None:
    scheduler = _scheduler(mixed_tokens=4, prompt_tokens=16)
    player = _Player(scheduler)
    scheduler.add(_sequence(0, [1, 2, 3], max_len=40))
    player.step()
    scheduler.add(_sequence(1, list(range(50, 90)), max_len=41))
    for _ in range(5):
        step = player.step()
        lengths = {chunk.sequence.sequence_id: chunk.length for chunk in step.chunks}
        assert lengths[0] == 1
        assert lengths[1] == 4


def test_a_short_prompt_does_not_wait_for_a_long_one_and_a_long_one_not_for_ever() -> None:
    scheduler = _scheduler(num_blocks=400, mixed_tokens=4, prompt_tokens=4, max_running=100)
    player = _Player(scheduler)
    scheduler.add(_sequence(0, list(range(100, 160)), max_len=60))
    player.step()
    scheduler.add(_sequence(1, [1, 2, 3], max_len=3))
    player.step()
    assert [s.sequence_id for s in player.ended] == [1]
    for idx in range(2, 80):  # a stream of short ones
        scheduler.add(_sequence(idx, [idx, idx, idx], max_len=3))
        player.step()
    assert 0 in [s.sequence_id for s in player.ended]


def test_the_youngest_gives_its_blocks_back_and_ends_all_the_same() -> None:
    scheduler = _scheduler(num_blocks=8, max_running=4)
    player = _Player(scheduler)
    old, young = _sequence(0, [1, 2, 3], max_len=20), _sequence(1, [5, 6, 7], max_len=20)
    scheduler.add(old)
    scheduler.add(young)
    player.play()
    assert (old.num_preemptions, young.num_preemptions > 0) == (0, True)
    assert len(young.keys) == len(old.keys) == 20


def test_pictures_are_encoded_before_their_positions_are_computed() -> None:
    scheduler = _scheduler()
    sequence = _sequence(0, [1, 2, *[("p", offset) for offset in range(8)], 3])
    scheduler.add(sequence)
    step = scheduler.schedule()
    assert step.image == (sequence, ImageSpan("p", 2, 8))
    assert [(c.start, c.length, c.has_logits) for c in step.chunks] == [(0, 2, False)]
    scheduler.computed(sequence, 2)
    assert scheduler.schedule().chunks == ()
    sequence.ready_images.add("p")
    assert [(c.start, c.length, c.has_logits) for c in scheduler.schedule().chunks] == [(2, 9, True)]


def test_a_draft_takes_room_but_nobodys_blocks() -> None:
    scheduler = _scheduler(num_blocks=3)
    player = _Player(scheduler)
    sequence = _sequence(0, [1, 2, 3], max_len=12)
    scheduler.add(sequence)
    player.step()
    sequence.draft = (8, 9)
    chunk = scheduler.schedule().chunks[0]
    assert (chunk.length, chunk.num_draft, len(sequence.blocks)) == (3, 2, 2)
    sequence.draft = tuple(range(20))
    assert scheduler.schedule().chunks[0].num_draft == sequence.max_len - len(sequence.keys)


def test_digests_chain() -> None:
    root = root_digest("m")
    keys: list[PositionKey] = list(range(12))
    whole = chain_digests(root, keys, block_size=4)
    assert whole == [*chain_digests(root, keys[:4], block_size=4), *chain_digests(whole[0], keys[4:], block_size=4)]
    assert len(set(whole)) == 3
    assert chain_digests(root_digest("n"), keys, block_size=4)[0] != whole[0]
    assert chain_digests(root, [1, ("1", 0)], block_size=2) != chain_digests(root, [1, ("1", 1)], block_size=2)


def test_integrity_check_finds_a_planted_fault() -> None:
    manager = BlockManager(4)
    blocks = manager.allocate(2)
    assert blocks is not None
    manager.check_integrity([blocks])
    with pytest.raises(AssertionError, match="in no state or in two"):
        manager.check_integrity([])


def test_states_change_only_as_they_may() -> None:
    sequence = _sequence(0, [1])
    sequence.move_to(State.ENDED)
    with pytest.raises(AssertionError, match="cannot go"):
        sequence.move_to(State.RUNNING)
