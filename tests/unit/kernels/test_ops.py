"""What lies between the products against torch in double precision: every instruction set, odd sizes and values."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llavakit.core.errors import ConfigError
from llavakit.kernels.library import Activation, InstructionSet, load_library
from llavakit.kernels.structures import AttentionCall
from llavakit.model.kv_blocks import read_blocks, round_slowly

_LIBRARY = load_library()
_LEVELS = _LIBRARY.supported
_levels = st.sampled_from(_LEVELS)
# An exponential is right to 2e-7; what is made of it adds a few roundings of 6e-8.
_BOUND = 1e-6


def _random(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _guarded(count: int) -> Tensor:
    return torch.full((count + 16,), 12345.0)


def _check_guard(out: Tensor) -> Tensor:
    assert bool((out[-16:] == 12345.0).all())
    return out[:-16]


@given(level=_levels, count=st.integers(1, 5000), scale=st.sampled_from([1e-20, 1.0, 30.0, 1e30]),
       num_threads=st.integers(1, 3), seed=st.integers(0, 1000))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_swiglu(level: InstructionSet, count: int, scale: float, num_threads: int, seed: int) -> None:
    gate, up, out = _random((count,), seed, scale), _random((count,), seed + 1), _guarded(count)
    _LIBRARY.swiglu(gate.data_ptr(), up.data_ptr(), out.data_ptr(), count=count, num_threads=num_threads, level=level)
    expected = F.silu(gate.double()) * up.double()
    # What torch would call 1e-300 is 1e-38 here.
    assert torch.allclose(_check_guard(out).double(), expected, rtol=_BOUND, atol=1e-36 * max(scale, 1))


@given(level=_levels, num_rows=st.integers(1, 20), width=st.integers(1, 600),
       scale=st.sampled_from([1e-8, 1.0, 1e10]), seed=st.integers(0, 1000))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_rms_norm(level: InstructionSet, num_rows: int, width: int, scale: float, seed: int) -> None:
    x, weight, out = _random((num_rows, width), seed, scale), _random((width,), seed + 1), _guarded(num_rows * width)
    _LIBRARY.rms_norm(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), eps=1e-5, num_rows=num_rows, width=width, num_threads=2,
        level=level,
    )  # fmt: skip
    wide = x.double()
    expected = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert torch.allclose(_check_guard(out).view(num_rows, width).double(), expected, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
def test_a_norm_of_a_sum_is_the_sum_and_its_norm(level: InstructionSet) -> None:
    for num_rows, width in ((1, 1), (3, 37), (9, 256), (40, 1000)):
        x, added, weight = _random((num_rows, width), 0), _random((num_rows, width), 1), _random((width,), 2)
        total, apart, out = x + added, _guarded(x.numel()), _guarded(x.numel())
        sizes: dict[str, Any] = {
            "eps": 1e-5, "num_rows": num_rows, "width": width, "num_threads": 2, "level": level
        }  # fmt: skip
        _LIBRARY.rms_norm(total.data_ptr(), weight.data_ptr(), apart.data_ptr(), **sizes)
        rows, in_place = x.clone(), x.clone()
        _LIBRARY.add_rms_norm(rows.data_ptr(), added.data_ptr(), weight.data_ptr(), out.data_ptr(), **sizes)
        _LIBRARY.add_rms_norm(
            in_place.data_ptr(), added.data_ptr(), weight.data_ptr(), in_place.data_ptr(), **sizes
        )  # fmt: skip
        assert torch.equal(rows, total)
        assert torch.equal(_check_guard(out), _check_guard(apart))
        assert torch.equal(in_place.flatten(), apart[:-16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
def test_keys_are_stored_where_the_slots_say(level: InstructionSet, dtype: torch.dtype) -> None:
    shapes = [(1, 1, 32), (5, 3, 96), (70, 2, 64)]
    if dtype != torch.uint8:
        shapes.append((3, 2, 18))  # no whole vectors
    for num_rows, num_heads, head_dim in shapes:
        x = _random((num_rows, num_heads, head_dim), 0)
        # Halfway cases, subnormals, what is too great, and no number at all.
        special = torch.tensor([65519.9, 65520.0, -1e30, 2**-24, 2**-25, 2049.0, -0.0, torch.inf, torch.nan, 6.1e-5])
        x[0, 0, :10] = special if dtype == torch.float16 else x[0, 0, :10]
        stored = round_slowly(x) if dtype == torch.uint8 else x.to(dtype)
        width = stored.shape[-1]
        order = torch.randperm(num_rows + 3, generator=torch.Generator().manual_seed(1))[:num_rows]
        cache = torch.zeros((num_rows + 3, num_heads, width), dtype=dtype)
        slots = order * cache.stride(0)
        expected = cache.clone()
        expected[order] = stored
        _LIBRARY.store_positions(
            x.data_ptr(), slots.data_ptr(), cache.data_ptr(), num_rows=num_rows, num_heads=num_heads, head_dim=head_dim,
            kv_type={torch.float32: 0, torch.float16: 1, torch.uint8: 8}[dtype], head_stride=width, num_threads=2,
            level=level,
        )  # fmt: skip
        assert torch.equal(cache.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
def test_rotary(level: InstructionSet, is_interleaved: bool) -> None:
    for num_positions, num_heads, head_dim in ((1, 1, 2), (3, 5, 6), (70, 4, 64), (5, 32, 128)):
        x = _random((num_positions, num_heads, head_dim), 0)
        angles = _random((num_positions, head_dim // 2), 1, 10)
        out, cosines, sines = _guarded(x.numel()), angles.cos(), angles.sin()
        _LIBRARY.rotary(
            x.data_ptr(), cosines.data_ptr(), sines.data_ptr(), out.data_ptr(), num_positions=num_positions,
            num_heads=num_heads, head_dim=head_dim, is_interleaved=is_interleaved, num_threads=2, level=level,
        )  # fmt: skip
        pairs = x.view(*x.shape[:-1], -1, 2).unbind(-1) if is_interleaved else x.chunk(2, dim=-1)
        first, second = pairs
        expected = torch.cat(
            (first * cosines[:, None] - second * sines[:, None], second * cosines[:, None] + first * sines[:, None]), -1
        )
        assert torch.allclose(_check_guard(out).view(x.shape), expected, atol=2e-6)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("num_rows", [1, 3, 7, 17, 50])
def test_a_product_ends_with_bias_and_activation(level: InstructionSet, num_rows: int) -> None:
    for num_columns, k in ((1, 64), (45, 100), (70, 256)):
        weights = _random((num_columns, k), 1).half()
        x, bias = _random((num_rows, k), 2), _random((num_columns,), 3)
        plain, ended = _guarded(num_rows * num_columns), _guarded(num_rows * num_columns)
        for out, extra in (
            (plain, {}),
            (ended, {"bias_address": bias.data_ptr(), "activation": Activation.QUICK_GELU}),
        ):
            _LIBRARY.matmul(
                weights.data_ptr(), 1, x.data_ptr(), out.data_ptr(), num_rows=num_rows, num_columns=num_columns, k=k,
                num_threads=2, level=level, **extra,
            )  # type: ignore[arg-type]  # fmt: skip
        product = _check_guard(plain).view(num_rows, num_columns).double() + bias.double()
        expected = product * torch.sigmoid(1.702 * product)
        assert torch.allclose(_check_guard(ended).view(expected.shape).double(), expected, rtol=2e-6, atol=1e-5)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, num_keys: list[int], *, is_causal: bool, level: InstructionSet,
    table: Tensor | None = None, num_threads: int = 2,
) -> Tensor:  # fmt: skip
    batch, num_queries, num_heads, head_dim = query.shape
    out, counts = _guarded(query.numel()), torch.tensor(num_keys)
    call = AttentionCall()
    call.query, call.keys, call.values = query.data_ptr(), key.data_ptr(), value.data_ptr()
    call.out, call.num_keys = out.data_ptr(), counts.data_ptr()
    call.query_strides[:] = (query.stride(0), query.stride(2), query.stride(1))
    call.key_strides[:], call.value_strides[:] = key.stride()[:3], value.stride()[:3]
    call.batch, call.num_queries, call.num_heads, call.head_dim = batch, num_queries, num_heads, head_dim
    call.num_kv_heads, call.kv_type = key.shape[1], {torch.float32: 0, torch.float16: 1, torch.uint8: 8}[key.dtype]
    call.is_causal, call.scale = is_causal, head_dim**-0.5
    if table is not None:
        call.block_table, call.table_stride = table.data_ptr(), table.stride(0)
        call.block_size, call.num_blocks = key.shape[2], len(key)
    _LIBRARY.attention(call, num_threads=num_threads, level=level)
    return _check_guard(out).view(batch, num_queries, num_heads, head_dim)


def _attend_slowly(query: Tensor, key: Tensor, value: Tensor, num_keys: list[int], *, is_causal: bool) -> Tensor:
    batch, num_queries, num_heads, head_dim = query.shape
    out = torch.zeros(query.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(num_heads):
            group = num_heads // key.shape[1]
            k, v = (stored[b, h // group, : num_keys[b]].double() for stored in (key, value))
            for t in range(num_queries):
                seen = num_keys[b] - num_queries + t + 1 if is_causal else num_keys[b]
                scores = k[:seen] @ query[b, t, h].double() * head_dim**-0.5
                out[b, t, h] = torch.softmax(scores, -1) @ v[:seen]
    return out


@given(
    level=_levels, batch=st.integers(1, 3), num_queries=st.integers(1, 70), num_kv_heads=st.integers(1, 2),
    group=st.integers(1, 2), head_dim=st.sampled_from([4, 12, 16, 64, 128, 272]), num_before=st.integers(0, 130),
    is_causal=st.booleans(), stored_as=st.sampled_from(["float32", "float16", "blocks"]),
    block_size=st.sampled_from([1, 2, 16, 64]),
    scale=st.sampled_from([1e-3, 1.0, 20.0]), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_attention(
    level: InstructionSet, batch: int, num_queries: int, num_kv_heads: int, group: int, head_dim: int, num_before: int,
    is_causal: bool, stored_as: str, block_size: int, scale: float, seed: int,
) -> None:  # fmt: skip
    """Rows of different lengths in one cache, whose other slots hold NaN: nobody may look there."""
    num_keys = [num_queries + (num_before * (b + 1)) // batch for b in range(batch)]
    query = _random((batch, num_queries, num_kv_heads * group, head_dim), seed, scale)
    cache = torch.full((2, batch, num_kv_heads, max(num_keys) + 3, head_dim), torch.nan)
    for b, count in enumerate(num_keys):
        cache[:, b, :, :count] = _random((2, num_kv_heads, count, head_dim), seed + 1 + b)
    if stored_as == "blocks":
        assume(head_dim % 32 == 0)
        key, value = round_slowly(cache)
        seen_key, seen_value = (read_blocks(stored, torch.float32) for stored in (key, value))
    else:
        key, value = cache.half() if stored_as == "float16" else cache
        seen_key, seen_value = key, value
    found = _attend(query, key, value, num_keys, is_causal=is_causal, level=level)
    score = _score_error(query, seen_key)
    tolerance = (2e-6 + 2 * score) * 4
    if _is_in_words(query, key, is_causal=is_causal, level=level):
        expected = _attend_in_words(query, key, value, num_keys)
        # A score that is off by so little turns a few weights to the next word; a word is 1/8191 of a weight of 1.
        tolerance = tolerance + (16 + 8191 * 8 * score) / 8191
    else:
        expected = _attend_slowly(query, seen_key, seen_value, num_keys, is_causal=is_causal)
    assert torch.allclose(found.double(), expected, rtol=0, atol=tolerance)
    tables, (keys, values) = _scatter(key, value, num_keys, block_size, seed)
    assert torch.equal(_attend(query, keys, values, num_keys, is_causal=is_causal, level=level, table=tables), found)


@pytest.mark.parametrize("level", _LIBRARY.supported, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_of_many_queries_does_not_depend_on_threads(level: InstructionSet, is_causal: bool) -> None:
    # 291 queries are three blocks, or ten where more threads share them; the last tile has one vector, partly filled.
    query = _random((1, 291, 2, 128), 11)
    key, value = _random((2, 1, 2, 340, 128), 12)
    found = _attend(query, key, value, [340], is_causal=is_causal, level=level, num_threads=1)
    expected = _attend_slowly(query, key, value, [340], is_causal=is_causal)
    assert torch.allclose(found.double(), expected, rtol=0, atol=(2e-6 + 2 * _score_error(query, key)) * 4)
    for num_threads in (2, 7):
        again = _attend(query, key, value, [340], is_causal=is_causal, level=level, num_threads=num_threads)
        assert torch.equal(again, found)


def _score_error(query: Tensor, key: Tensor) -> float:
    """A score's rounding, 2^-24 of the sum of its products' sizes: a relative error of the weight."""
    return 2.0**-24 * query.shape[3] * float(query.abs().max()) * float(key.float().nan_to_num().abs().max())


def _is_in_words(query: Tensor, key: Tensor, *, is_causal: bool, level: InstructionSet) -> bool:
    head_dim, is_float = query.shape[3], key.dtype == torch.float32
    is_tower_like = is_float and not is_causal and query.shape[1] > 4 and head_dim % 16 == 0 and head_dim <= 64
    return is_tower_like and level >= InstructionSet.AVX512_VNNI


def _to_words(x: Tensor, most: int, dims: tuple[int, ...]) -> Tensor:
    """Round to whole multiples of the greatest magnitude over ``dims``, divided by ``most``."""
    scale = x.abs().amax(dims, keepdim=True) / most
    return torch.where(scale > 0, (x / scale).round() * scale, torch.zeros_like(x))


def _attend_in_words(query: Tensor, key: Tensor, value: Tensor, num_keys: list[int]) -> Tensor:
    """As ``_attend_slowly`` without a mask, of numbers rounded to words as attention_words.inc says."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for b, h in itertools.product(range(query.shape[0]), range(query.shape[2])):
        kv_head = h // (query.shape[2] // key.shape[1])
        q = _to_words(query[b, :, h].double() * query.shape[3] ** -0.5, 8191, (1,))
        k = _to_words(key[b, kv_head, : num_keys[b]].double(), 4095, (1,))
        scores = q @ k.T
        top, total = scores.amax(1, keepdim=True), torch.zeros(len(q), 1, dtype=torch.float64)
        for first in range(0, num_keys[b], 64):
            v = _to_words(value[b, kv_head, first : min(first + 64, num_keys[b])].double(), 4095, (0,))
            weights = (scores[:, first : first + 64] - top).exp()
            out[b, :, h] += _to_words(weights, 8191, (1,)) @ v
            total += weights.sum(1, keepdim=True)
        out[b, :, h] /= total
    return out


def test_powers_of_the_weights_in_words_are_right_to_3e_6() -> None:
    """The polynomial of ``word_power``, with its coefficients, in float32; the weights are then rounded to 6e-5."""
    text = (Path(__file__).parents[3] / "csrc" / "attention_words.inc").read_text(encoding="utf-8")
    coefficients = [np.float32(found) for found in re.findall(r"set1_ps\(([0-9.e-]+)f \* kTop\)", text)]
    assert len(coefficients) == 5
    r = np.linspace(-0.5, 0.5, 100_001).astype(np.float32)
    p = np.full_like(r, coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * r + coefficient
    assert np.abs(p / np.exp2(r.astype(np.float64)) - 1).max() < 3e-6


def test_attention_in_words_is_close_to_attention() -> None:
    """As in a vision tower: what rounding adds stays below what 16-bit weights leave."""
    query, key, value = _random((1, 577, 2, 64), 0, 2.0), _random((1, 2, 577, 64), 1, 2.0), _random((1, 2, 577, 64), 2)
    expected = _attend_slowly(query, key, value, [577], is_causal=False)
    for level in _LEVELS:
        found = _attend(query, key, value, [577], is_causal=False, level=level)
        assert (found.double() - expected).norm() / expected.norm() < 1e-3


def _scatter(
    key: Tensor, value: Tensor, num_keys: list[int], block_size: int, seed: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Put rows (B, K, S, E) into blocks (num_blocks, K, block_size, E) in random order; return which are whose."""
    counts = [-(-num // block_size) for num in num_keys]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    tables = torch.full((len(counts), max(counts) + 1), -1, dtype=torch.int32)
    stores = []
    for stored in (key, value):
        empty = 255 if stored.dtype == torch.uint8 else torch.nan
        blocks = torch.full((len(order), stored.shape[1], block_size, stored.shape[3]), empty, dtype=stored.dtype)
        at = 0
        for row, count in enumerate(counts):
            tables[row, :count] = order[at : at + count]
            for idx in range(count):
                part = stored[row, :, idx * block_size : min((idx + 1) * block_size, num_keys[row])]
                blocks[int(order[at + idx]), :, : part.shape[1]] = part
            at += count
        stores.append(blocks)
    return tables, (stores[0], stores[1])


@given(
    level=_levels, num_blocks=st.integers(1, 300), num_threads=st.integers(1, 3), seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 1.0, 1e6, 1e30]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_rounding_to_blocks(level: InstructionSet, num_blocks: int, num_threads: int, seed: int, scale: float) -> None:
    x = _random((num_blocks, 32), seed, scale)
    x[0, 3] = x[0].abs().max() * 2  # a greatest number that is met exactly
    if seed % 5 == 0:
        x[-1, 7] = torch.nan
    out = torch.full((num_blocks * 34 + 16,), 77, dtype=torch.uint8)
    _LIBRARY.round_blocks(x.data_ptr(), out.data_ptr(), num_blocks=num_blocks, num_threads=num_threads, level=level)
    assert bool((out[-16:] == 77).all())
    found, expected = out[:-16].view(num_blocks, 34), round_slowly(x)
    numbers, wanted = read_blocks(found, torch.float32), read_blocks(expected, torch.float32)
    assert torch.equal(numbers.nan_to_num(nan=-1.0), wanted.nan_to_num(nan=-1.0))
    assert bool(wanted[-1].isnan().all()) == (seed % 5 == 0)
    if scale in (1e-3, 1.0):  # half a step, and the scale's own rounding, 2^-11 of it, over 127 steps
        whole = x[:-1] if seed % 5 == 0 else x
        step = whole.abs().amax(-1, keepdim=True) / 127
        assert bool(((wanted[: len(whole)] - whole).abs() <= step * (0.5 + 127 / 2048 + 1e-3)).all())


@pytest.mark.parametrize("num_queries", [1, 40])
def test_scores_far_apart_and_not_finite(num_queries: int) -> None:
    query = torch.ones((1, num_queries, 1, 64)) * 1e4
    key, value = _random((1, 1, 100, 64), 1), _random((1, 1, 100, 64), 2)
    found = _attend(query, key, value, [100], is_causal=False, level=_LIBRARY.best)
    # In words a value is half of 1/4095 of its block's greatest off.
    bound = float(value.abs().max()) / 8190 if num_queries > 4 else 1e-6
    assert torch.allclose(found[0, 0, 0], value[0, 0, key[0, 0].sum(-1).argmax()], atol=bound)
    query[0, -1, 0, 3] = torch.nan
    found = _attend(query, key, value, [100], is_causal=False, level=_LIBRARY.best)
    assert bool(found[0, -1].isnan().all())
    assert bool(found[0, :-1].isfinite().all())


def test_sizes_out_of_range_are_refused() -> None:
    query, key = torch.ones((1, 3, 1, 16)), torch.ones((1, 1, 5, 16))
    with pytest.raises(ConfigError, match="out of range"):
        _attend(query, key, key, [2], is_causal=True, level=_LIBRARY.best)
    with pytest.raises(ConfigError, match="out of range"):
        _attend(query, key, key, [0], is_causal=False, level=_LIBRARY.best)
    assert np.isfinite(_attend(query, key, key, [3], is_causal=True, level=_LIBRARY.best).numpy()).all()


@pytest.mark.parametrize("table", [[0, 2], [0, -1], [0]])
def test_blocks_that_there_are_none_of_are_refused(table: list[int]) -> None:
    query, blocks = torch.ones((1, 1, 1, 16)), torch.ones((2, 1, 4, 16))
    with pytest.raises(ConfigError, match="out of range"):
        _attend(
            query, blocks, blocks, [5], is_causal=True, level=_LIBRARY.best,
            table=torch.tensor([table], dtype=torch.int32),
        )  # fmt: skip


def test_blocks_of_an_odd_size_are_refused() -> None:
    query, blocks = torch.ones((1, 1, 1, 16)), torch.ones((2, 1, 3, 16))
    with pytest.raises(ConfigError, match="out of range"):
        _attend(
            query, blocks, blocks, [3], is_causal=True, level=_LIBRARY.best,
            table=torch.zeros((1, 2), dtype=torch.int32),
        )  # fmt: skip
