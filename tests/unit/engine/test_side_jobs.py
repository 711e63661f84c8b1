"""Work beside running answers takes no more than half of the time."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from llavakit.engine import side_jobs
from llavakit.engine.side_jobs import SideJobs


def test_pieces_wait_as_long_as_the_last_one_took_unless_nothing_else_is_to_be_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    done_at_s = []
    monkeypatch.setattr(side_jobs, "time", SimpleNamespace(monotonic=lambda: now_s))

    def pieces() -> Generator[None, None, None]:
        nonlocal now_s
        while True:
            done_at_s.append(now_s)
            now_s += 2
            yield

    jobs = SideJobs()
    jobs.add(pieces(), Future())
    for _ in range(9):
        jobs.advance(is_alone=False)
        now_s += 0.5  # a step of the engine
    assert done_at_s == [0, 4, 8]
    before = len(done_at_s)
    for _ in range(3):
        jobs.advance(is_alone=True)
    assert len(done_at_s) - before == 3
