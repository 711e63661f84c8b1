"""The soak says no to what it is there to find, whatever the run was like otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from tests.soak.run import are_full, is_good, read_caches

_METRICS = """\
llavakit_image_cache_bytes{{model="llava:tiny"}} {image}
llavakit_image_cache_max_bytes{{model="llava:tiny"}} 1000
llavakit_kv_cache_bytes{{model="llava:tiny"}} 2000
llavakit_kv_cache_max_bytes{{model="llava:tiny"}} 2000
"""


def _found(**changes: Any) -> dict[str, Any]:
    good = {
        "num_wrong": 0, "num_unexpected": 0, "exit_status": 0, "left": {"kv_blocks_in_use": 0.0},
        "caches_before": {"image": 0.99, "kv": 1.0}, "memory_growth": 0.009,
    }  # fmt: skip
    return {**good, **changes}


def test_a_run_that_left_nothing_is_good() -> None:
    assert is_good(_found())


@pytest.mark.parametrize(
    "change",
    [
        {"memory_growth": 0.011},
        {"caches_before": {"image": 0.5, "kv": 1.0}},
        {"caches_before": {"image": 1.0, "kv": -1.0}},
        {"left": {"kv_blocks_in_use": 1.0}},
        {"left": {"kv_blocks_in_use": -1.0}},
        {"exit_status": 1},
        {"num_wrong": 1},
        {"num_unexpected": 1},
    ],
)
def test_whatever_is_not_as_it_must_be_fails_the_run(change: dict[str, Any]) -> None:
    assert not is_good(_found(**change))


def test_a_cache_counts_as_full_by_what_the_server_says() -> None:
    assert are_full(read_caches(_METRICS.format(image=990)))
    assert not are_full(read_caches(_METRICS.format(image=600)))
    assert not are_full(read_caches(""))
