"""The pace of steps on machines that are made up: exactly so many seconds a row."""

from __future__ import annotations

import pytest

from llavakit.scheduling.blocks import BlockManager
from llavakit.scheduling.pace import Pace
from llavakit.scheduling.scheduler import Budget, Scheduler
from llavakit.scheduling.sequence import Sequence

_BASE_S, _ROW_S = 0.1, 0.01


def _seconds(num_answering: int, num_prompt: int, *, factor: float = 1.0) -> float:
    return factor * (_BASE_S + _ROW_S * (num_answering + num_prompt))


def _learned(*, factor: float = 1.0, num_answering: tuple[int, ...] = (1, 8)) -> Pace:
    pace = Pace(4.0)
    for num in num_answering:
        pace.learn(num_answering=num, num_prompt=0, seconds=_seconds(num, 0, factor=factor))
    pace.learn(num_answering=8, num_prompt=64, seconds=_seconds(8, 64, factor=factor))
    return pace


@pytest.mark.parametrize("factor", [0.001, 1.0, 50.0])
@pytest.mark.parametrize("num_answering", [1, 4, 8])
def test_a_step_takes_what_it_may_and_fills_whole_tiles(factor: float, num_answering: int) -> None:
    pace = _learned(factor=factor)
    num = pace.num_prompt(num_running=8, num_answering=num_answering, with_picture=False)
    assert num is not None
    allowed_s = 4 * _seconds(8, 0, factor=factor)
    assert _seconds(num_answering, num, factor=factor) <= allowed_s * 1.001
    assert _seconds(num_answering, num + 16, factor=factor) > allowed_s
    assert (num + num_answering) % 16 == 0


def test_a_picture_takes_its_part() -> None:
    pace = _learned()
    without = pace.num_prompt(num_running=8, num_answering=8, with_picture=False)
    beside = pace.num_prompt(num_running=8, num_answering=8, with_picture=True)
    assert without is not None
    assert beside is not None
    assert _seconds(8, beside) + pace.picture_s(8) <= 4 * _seconds(8, 0)
    assert without - beside >= 16
    assert _learned(factor=0.001).picture_s(8) <= _seconds(8, 0, factor=0.001)


def test_nothing_is_said_before_something_is_known() -> None:
    pace = Pace(4.0)
    assert pace.num_prompt(num_running=2, num_answering=1, with_picture=False) is None
    pace.learn(num_answering=1, num_prompt=0, seconds=0.1)
    pace.learn(num_answering=1, num_prompt=3, seconds=9.0)  # too few to learn from
    assert pace.num_prompt(num_running=2, num_answering=1, with_picture=False) is None


def test_more_answers_than_were_ever_seen_are_estimated() -> None:
    pace = _learned(num_answering=(1,))
    assert pace.allowance_s(8) == pytest.approx(4 * _seconds(8, 0), rel=0.1)


def test_what_disturbs_one_step_changes_little_and_what_lasts_is_learned() -> None:
    pace = _learned()
    before = pace.allowance_s(8)
    assert before is not None
    pace.learn(num_answering=8, num_prompt=0, seconds=10 * _seconds(8, 0))
    assert (pace.allowance_s(8) or 0) < 2 * before
    for _ in range(50):
        pace.learn(num_answering=8, num_prompt=0, seconds=3 * _seconds(8, 0))
    assert pace.allowance_s(8) == pytest.approx(3 * before, rel=0.05)


def test_the_scheduler_fills_a_step_by_the_pace() -> None:
    budget = Budget(prompt_tokens=512, mixed_tokens=4, max_slowdown=4.0)
    scheduler = Scheduler(BlockManager(400), 16, budget)
    scheduler.add(Sequence(0, [1, 2, 3], b"root", (), max_len=200))

    def step() -> list[int]:
        done = scheduler.schedule()
        lengths = [chunk.length for chunk in done.chunks]
        scheduler.learn(done, seconds=_seconds(done.num_answering, sum(lengths) - done.num_answering))
        for chunk in done.chunks:
            scheduler.computed(chunk.sequence, chunk.length)
            if chunk.has_logits:
                scheduler.append(chunk.sequence, 7)
        return lengths

    assert step() == [3]
    assert step() == [1]
    scheduler.add(Sequence(1, list(range(100, 800)), b"root", (), max_len=900))
    assert step() == [1, 4]  # what a position takes is not known yet, and four say little
    scheduler.budget = Budget(prompt_tokens=512, mixed_tokens=16, max_slowdown=4.0)
    assert step() == [1, 16]
    # With two that run a step may take 0.48 s: 0.11 s for the answer, 37 positions of 0.01 s, down to a whole tile.
    assert step() == [1, 31]
