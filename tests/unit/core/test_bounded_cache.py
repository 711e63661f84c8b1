"""A bounded cache stays inside its bound and drops the least recently used."""

from __future__ import annotations

import torch

from llavakit.core.bounded_cache import BoundedCache


def test_least_recently_used_is_dropped_first() -> None:
    one = torch.zeros(4)  # 16 bytes
    cache: BoundedCache[str, torch.Tensor] = BoundedCache(max_bytes=32)
    cache.put("a", one)
    cache.put("b", one)
    assert cache.get("a") is one
    cache.put("c", one)
    assert cache.get("b") is None
    assert cache.get("a") is one
    assert len(cache) == 2


def test_an_entry_over_the_bound_is_kept_alone() -> None:
    cache: BoundedCache[str, torch.Tensor] = BoundedCache(max_bytes=8)
    cache.put("a", torch.zeros(1))
    cache.put("b", torch.zeros(100))
    assert cache.get("a") is None
    assert cache.get("b") is not None


def test_clear_forgets_everything() -> None:
    cache: BoundedCache[str, torch.Tensor] = BoundedCache(max_bytes=100)
    cache.put("a", torch.zeros(1))
    cache.clear()
    assert cache.get("a") is None
    assert len(cache) == 0
