"""The soak in short; ``python -m tests.soak.run`` is the long one."""

from __future__ import annotations

import pytest

from tests.soak.run import soak


@pytest.mark.slow
def test_a_short_soak_leaves_nothing_and_mixes_nothing_up() -> None:
    found = soak(warm_up_s=5, seconds=20, num_clients=8)
    assert found["num_wrong"] == 0, found["wrong"]
    assert found["num_unexpected"] == 0, found["unexpected"]
    assert found["answered"] > 20
    assert found["hostile"] + found["vanished"] > 0
    assert not any(found["left"].values()), found["left"]
    assert found["exit_status"] == 0, found["log_tail"]
    assert found["after"]["num_threads"] <= found["before"]["num_threads"] + 2
