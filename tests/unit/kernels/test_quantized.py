"""Products with quantized weights against the slow oracle: every type, every instruction set, odd shapes and values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.core.errors import ConfigError
from llavakit.kernels.library import InstructionSet, load_library
from llavakit.weights.dequantize import dequantize
from llavakit.weights.ggml_types import type_by_name
from tests.unit.kernels.guarded_product import run
from tests.unit.kernels.quantized_oracle import K_QUANTS, LEGACY, make_blocks, multiply

_TYPES = (*LEGACY, *K_QUANTS)
_LEVELS = load_library().supported


def assert_close(found: np.ndarray, expected: np.ndarray, magnitudes: np.ndarray, k: int) -> None:
    """Float32 sums of one term per group of 16 or 32 and a few more per block: each rounding at most 2^-24.

    Minimums are taken off products that may be larger than the result, by as much as the sum of the two parts.
    """
    bound = 2.0**-24 * (k / 16 + 64) * (magnitudes * 8 + 1e-30)
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
def test_equal_to_the_oracle_at_every_number_of_rows(dtype: str, level: InstructionSet) -> None:
    k = 768
    blocks = make_blocks(dtype, 70, k, seed=1)
    for num_rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33, 48, 50, 100):
        x = np.random.default_rng(num_rows).standard_normal((num_rows, k)).astype(np.float32)
        expected, magnitudes = multiply(x, blocks, dtype)
        assert_close(run(x, blocks, dtype, level=level), expected, magnitudes, k)


@given(
    dtype=st.sampled_from(_TYPES), level=st.sampled_from(_LEVELS), num_rows=st.integers(1, 70),
    num_columns=st.integers(1, 70), num_groups=st.integers(1, 20), scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e30]),
    num_threads=st.integers(1, 4), seed=st.integers(0, 2**32 - 1), offset=st.integers(0, 63),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_odd_shapes_scales_and_addresses(
    dtype: str, level: InstructionSet, num_rows: int, num_columns: int, num_groups: int, scale: float, num_threads: int,
    seed: int, offset: int,
) -> None:  # fmt: skip
    k = num_groups * type_by_name(dtype).block_length
    blocks = make_blocks(dtype, num_columns, k, seed)
    memory = np.zeros(blocks.size + 64, dtype=np.uint8)  # at an address that is aligned for nothing
    moved = memory[offset : offset + blocks.size].reshape(blocks.shape)
    moved[:] = blocks
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((num_rows, k)) * scale).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0.0
    expected, magnitudes = multiply(x, blocks, dtype)
    assert_close(run(x, moved, dtype, level=level, num_threads=num_threads), expected, magnitudes, k)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("num_rows", [1, 6, 20, 50])
def test_extreme_values(dtype: str, level: InstructionSet, num_rows: int) -> None:
    k = 512
    for fill in (0x00, 0xFF, 0x7F, 0x80):  # all-equal bytes reach the ends of every range at once
        blocks = make_blocks(dtype, 5, k, seed=2)
        halves = make_blocks(dtype, 5, k, seed=3)
        is_half = make_blocks(dtype, 1, k, 2)[0] != make_blocks(dtype, 1, k, 2, scale=0)[0]
        blocks[:] = np.where(is_half, halves, np.uint8(fill))
        if not np.isfinite(dequantize(blocks.reshape(-1), dtype, (5, k))).all():
            continue
        for sign in (1.0, -1.0):
            x = np.full((num_rows, k), sign, dtype=np.float32)
            expected, magnitudes = multiply(x, blocks, dtype)
            assert_close(run(x, blocks, dtype, level=level), expected, magnitudes, k)
    zeros = run(np.zeros((num_rows, k)), make_blocks(dtype, 5, k, seed=4), dtype, level=level)
    assert (zeros == 0).all()
    denormal = run(np.full((num_rows, k), 1e-42), make_blocks(dtype, 5, k, seed=4), dtype, level=level)
    assert (denormal == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("num_rows", [1, 6, 20])
def test_what_is_not_finite_stays_so(value: float, num_rows: int) -> None:
    x = np.ones((num_rows, 256), dtype=np.float32)
    x[-1, 7] = value
    found = run(x, make_blocks("q4_k", 4, 256, seed=5), "q4_k", level=load_library().best)
    assert not np.isfinite(found[-1]).any()
    assert np.isfinite(found[:-1]).all()


@pytest.mark.parametrize("dtype", _TYPES)
def test_result_does_not_depend_on_threads(dtype: str) -> None:
    blocks = make_blocks(dtype, 200, 512, seed=6)
    for num_rows in (1, 4, 7, 30):
        x = np.random.default_rng(7).standard_normal((num_rows, 512)).astype(np.float32)
        alone = run(x, blocks, dtype, level=load_library().best, num_threads=1)
        assert np.array_equal(alone, run(x, blocks, dtype, level=load_library().best, num_threads=7))


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
def test_expansion_is_bit_equal_to_the_reference(dtype: str, level: InstructionSet) -> None:
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is the formats' reference")
    constants = pytest.importorskip("gguf.constants")
    entry = type_by_name(dtype)
    k = 20 * entry.block_length
    blocks = make_blocks(dtype, 9, k, seed=8)
    expected = quants.dequantize(blocks, constants.GGMLQuantizationType(entry.type_id))
    assert np.array_equal(dequantize(blocks.reshape(-1), dtype, (9, k)), expected)
    found = load_library().dequantize(blocks.reshape(-1), entry.type_id, 9 * k, level=level)
    assert np.array_equal(found.reshape(9, k), expected)


def test_sizes_out_of_range_are_refused() -> None:
    x = np.zeros((1, 300), dtype=np.float32)
    with pytest.raises(ConfigError, match="out of range"):
        run(x, make_blocks("q4_k", 2, 256, seed=9), "q4_k", level=load_library().best)
    with pytest.raises(ConfigError, match="out of range"):
        run(x[:, :256], make_blocks("q4_k", 2, 256, seed=9), "q4_k", level=load_library().best, num_threads=0)
