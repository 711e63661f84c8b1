"""The cache's memory: finite from the start, and not committed before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from llavakit.engine.kv_cache import DecodeView, KVCache
from tests.tiny.random_model import make_config

_CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slots_that_a_mask_hides_hold_numbers(dtype: torch.dtype) -> None:
    config = make_config().text_config
    # Leave NaN behind in memory that the next allocation of the same size is likely to get.
    for _ in range(4):
        torch.full(
            (config.num_hidden_layers, 2, config.num_key_value_heads, 40, config.head_dim), torch.nan, dtype=dtype
        )
    cache = KVCache(config, num_rows=2, max_len=40, dtype=dtype, device=_CPU)
    view = DecodeView(cache, [3, 30])
    new = torch.ones(2, config.num_key_value_heads, 1, config.head_dim, dtype=dtype)
    keys, values = view.update(0, new, new)
    assert keys.dtype == dtype
    assert keys.shape == (2, config.num_key_value_heads, 31, config.head_dim)
    assert bool((keys[0, :, 4:] == 0).all())
    assert bool((values[0, :, 4:] == 0).all())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_reserving_a_long_context_commits_no_memory() -> None:
    program = """
import resource, torch
from llavakit.engine.kv_cache import KVCache
from tests.tiny.random_model import make_config
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config, cpu = make_config().text_config, torch.device("cpu")
cache = KVCache(config, num_rows=64, max_len=1 << 17, dtype=torch.float32, device=cpu)
print(cache.keys.nbytes + cache.values.nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reserved_bytes, committed_bytes = map(int, done.stdout.split())
    assert reserved_bytes == 2 * 2 * 64 * 2 * (1 << 17) * 8 * 4
    # The page tables and Python's own objects; 16 MiB of 2 GiB leaves room for both.
    assert committed_bytes < 16 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_a_short_prompt_commits_its_own_share_only() -> None:
    """A head's row is 1 MiB here, as in 7B: pages of 2 MiB would commit all of it with the first slot."""
    program = """
import resource, torch
from dataclasses import replace
from llavakit.engine.kv_cache import KVCache, PrefillView
from tests.tiny.random_model import make_config
config, cpu = replace(make_config().text_config, num_key_value_heads=4, head_dim=128), torch.device("cpu")
cache = KVCache(config, num_rows=16, max_len=4096, dtype=torch.bfloat16, device=cpu)
ones = torch.ones(1, 4, 40, 128, dtype=torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for row in range(16):
    for layer_idx in range(2):
        PrefillView(cache, row=row, start=0).update(layer_idx, ones, ones)
print(cache.keys.nbytes + cache.values.nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reserved_bytes, committed_bytes = map(int, done.stdout.split())
    assert reserved_bytes == 2 * 2 * 16 * 4 * 4096 * 128 * 2
    # 40 of 4,096 slots are 1 % of 256 MiB, in pages of up to 64 KiB 6 %.
    assert committed_bytes < reserved_bytes // 8
