"""The cache's memory: finite from the start, and not committed before it is used."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from llavakit.core.errors import ConfigError
from llavakit.engine.kv_cache import DecodeView, KVCache, PrefillView
from llavakit.model.kv_blocks import BLOCKS
from tests.tiny.random_model import make_config, make_model

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


def test_8_bits_in_pieces_and_beside_others_are_the_same_but_for_edges() -> None:
    """A number between two steps may round either way when a sum runs in another order: a step, here and there."""
    model = make_model(config=make_config(head_dim=32))
    config = model.config.text_config
    embeds = 0.3 * torch.randn((2, 21, config.hidden_size), generator=torch.Generator().manual_seed(1))
    together, apart = (KVCache(config, num_rows=2, max_len=24, dtype=BLOCKS, device=_CPU) for _ in range(2))
    lengths = [20, 13]
    with torch.inference_mode():
        for row, length in enumerate(lengths):
            for cache, cuts in ((together, [0, length]), (apart, [0, 1, 7, length])):
                for start, end in itertools.pairwise(cuts):
                    view = PrefillView(cache, row=row, start=start)
                    positions = torch.arange(start, end)[None]
                    model(embeds[row : row + 1, start:end], positions, cache=view, mask=view.mask(end - start))
        last = torch.stack([embeds[row, length : length + 1] for row, length in enumerate(lengths)])
        view = DecodeView(together, lengths)
        batched = model(last, view.positions, cache=view, mask=view.mask())
        for row, length in enumerate(lengths):
            single = PrefillView(apart, row=row, start=length)
            alone = model(last[row : row + 1], torch.tensor([[length]]), cache=single)
            assert (batched[row] - alone[0]).norm() / alone.norm() < 0.005


def test_8_bits_are_as_near_as_their_rounding() -> None:
    model = make_model(config=make_config(head_dim=32))
    config = model.config.text_config
    embeds = 0.3 * torch.randn((1, 40, config.hidden_size), generator=torch.Generator().manual_seed(1))
    found = {}
    for dtype in (torch.float32, BLOCKS):
        cache = KVCache(config, num_rows=1, max_len=40, dtype=dtype, device=_CPU)
        with torch.inference_mode():
            found[dtype] = model(embeds, torch.arange(40)[None], cache=PrefillView(cache, row=0, start=0))
    error = (found[BLOCKS] - found[torch.float32]).norm() / found[torch.float32].norm()
    # A number's error is at most half of 1/127 of its block's greatest, some 0.5 % of a key in the mean; unequal caches
    # would differ by about as much as the logits themselves.
    assert 0 < error < 0.02


def test_8_bits_need_heads_of_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="multiple of 32 numbers; this model's have 8"):
        make_model().use_kv_blocks()


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
