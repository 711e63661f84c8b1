"""The search for scales: never worse than plain rounding, the same bytes everywhere, importance heeded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.core.errors import ConfigError
from llavakit.kernels.library import InstructionSet, load_library
from llavakit.weights.dequantize import dequantize
from llavakit.weights.ggml_types import stored_bytes, type_by_name
from tests.unit.kernels.quantized_oracle import K_QUANTS, LEGACY

LIBRARY = load_library()
TYPES = (*LEGACY, *K_QUANTS)
# Greatest number of a type's own, and how many weights share a scale.
_STEPS = {
    "q4_0": (-8, 7, 32), "q4_1": (0, 15, 32), "q5_0": (-16, 15, 32), "q5_1": (0, 31, 32), "q8_0": (-127, 127, 32),
    "q2_k": (0, 3, 16), "q3_k": (-4, 3, 16), "q4_k": (0, 15, 32), "q5_k": (0, 31, 32), "q6_k": (-32, 31, 16),
}  # fmt: skip


def _quantize(
    x: np.ndarray, dtype: str, *, importance: np.ndarray | None = None, num_threads: int = 1,
    level: InstructionSet | None = None,
) -> np.ndarray:  # fmt: skip
    out = np.full(stored_bytes(dtype, x.size), 0xAB, dtype=np.uint8)
    block_type = type_by_name(dtype).type_id
    LIBRARY.quantize(x, block_type, out, num_threads=num_threads, importance=importance, level=level)
    return out


def _round_trip(x: np.ndarray, dtype: str, importance: np.ndarray | None = None) -> np.ndarray:
    return dequantize(_quantize(x, dtype, importance=importance), dtype, x.shape)


def _round_plainly(x: np.ndarray, dtype: str) -> np.ndarray:
    """From end to end of each group, with scales in full precision: what a quantizer without a search does."""
    low, high, length = _STEPS[dtype]
    groups = x.astype(np.float64).reshape(-1, length)
    if low < 0:
        extreme = groups[np.arange(len(groups)), np.abs(groups).argmax(1)][:, None]
        scale, shift = extreme / low, 0.0
    else:
        shift = np.minimum(groups.min(1, keepdims=True), 0)
        scale = (groups.max(1, keepdims=True) - shift) / high
    numbers = np.clip(np.rint((groups - shift) / np.where(scale == 0, 1, scale)), low, high)
    return (numbers * scale + shift).reshape(x.shape)


def _samples(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    shape = (24, 512)
    if kind == "normal":
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)
    if kind == "heavy-tailed":
        return (rng.standard_t(3, shape) * 0.02).astype(np.float32)
    return (rng.random(shape) * 0.02 + 0.5).astype(np.float32)  # far from zero


@pytest.mark.parametrize("kind", ["normal", "heavy-tailed"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_search_beats_plain_rounding(dtype: str, kind: str) -> None:
    """Though its scales are stored in few bits and those of the plain rounding in full."""
    x = _samples(kind)
    ours, plain = (np.square(x - stored).mean() for stored in (_round_trip(x, dtype), _round_plainly(x, dtype)))
    assert ours < plain


@pytest.mark.parametrize("dtype", TYPES)
def test_bytes_do_not_depend_on_the_machine(dtype: str) -> None:
    x = _samples("heavy-tailed")
    expected = _quantize(x, dtype, level=InstructionSet.PORTABLE)
    for level in LIBRARY.supported:
        for num_threads in (1, 3):
            assert (_quantize(x, dtype, level=level, num_threads=num_threads) == expected).all(), level


@pytest.mark.parametrize("dtype", TYPES)
def test_importance_moves_the_error_to_where_it_weighs_less(dtype: str) -> None:
    x = _samples("normal")
    importance = np.exp(np.random.default_rng(5).standard_normal(512) * 2).astype(np.float32)
    heeded, ignored = (
        (np.square(x - _round_trip(x, dtype, weights)) * importance).sum() for weights in (importance, None)
    )
    assert heeded < ignored
    ones = np.ones(512, dtype=np.float32)
    assert (_quantize(x, dtype, importance=ones) == _quantize(x, dtype)).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_what_a_type_can_hold_exactly_stays_exact(dtype: str) -> None:
    """Zeros; and numbers on the grid of a scale that a half holds."""
    zeros = np.zeros((2, 512), dtype=np.float32)
    assert (_round_trip(zeros, dtype) == 0).all()
    low, high, _ = _STEPS[dtype]
    grid = np.random.default_rng(2).integers(low, high + 1, (2, 512)).astype(np.float32)
    grid[:, ::16], grid[:, 1::16] = low, high
    grid /= 64
    # The scales of k-quants are whole multiples of a factor of their own, which rounds.
    assert np.abs(_round_trip(grid, dtype) - grid).max() <= np.abs(grid).max() * 2**-10


@pytest.mark.parametrize("dtype", TYPES)
def test_extreme_sizes_stay_finite(dtype: str) -> None:
    for scale in (1e-38, 1e-30, 1e-9, 1e4, 1e30):
        x = (np.random.default_rng(1).standard_normal((1, 512)) * scale).astype(np.float32)
        stored = _round_trip(x, dtype)
        assert np.isfinite(stored).all(), scale
        if scale == 1e4 and dtype != "q8_0":  # one weight a thousand times the others
            assert np.square(stored - x).sum() < np.square(x).sum()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(TYPES), st.integers(0, 2**32 - 1), st.floats(1e-2, 1e3), st.floats(-1, 1))
def test_error_is_within_a_step(dtype: str, seed: int, scale: float, shift: float) -> None:
    """Whatever the distribution, though not below the reach of factors of 16 bits."""
    x = ((np.random.default_rng(seed).random((2, 512)) - 0.5 + shift) * scale).astype(np.float32)
    stored = _round_trip(x, dtype)
    plain = _round_plainly(x, dtype)
    # Stored scales have at least 4 bits, so the error is at most a few times that of the plain rounding.
    assert np.sqrt(np.square(stored - x).mean()) <= 3 * np.sqrt(np.square(plain - x).mean()) + 1e-7 * scale


def test_weights_at_any_address() -> None:
    x = _samples("normal")
    raw = np.empty(x.nbytes + 1, dtype=np.uint8)
    moved = np.frombuffer(raw[1:].data, dtype=np.float32).reshape(x.shape)
    moved[:] = x
    assert (_quantize(moved, "q4_k") == _quantize(x, "q4_k")).all()


@pytest.mark.parametrize(("shape", "dtype"), [((2, 128), "q4_k"), ((2, 48), "q8_0")])
def test_rows_of_broken_blocks_are_refused(shape: tuple[int, int], dtype: str) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        LIBRARY.quantize(
            np.zeros(shape, np.float32), type_by_name(dtype).type_id, np.zeros(999, np.uint8), num_threads=1
        )
