"""Products with float32 weights against sums in double precision: every instruction set, odd shapes and values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.core.errors import ConfigError
from llavakit.kernels.library import Activation, InstructionSet, load_library
from tests.unit.kernels.guarded_product import run

_LEVELS = load_library().supported
_FLOAT32 = 0


def _run(x: np.ndarray, weights: np.ndarray, level: InstructionSet, num_threads: int = 2) -> np.ndarray:
    return run(x, weights.view(np.uint8), "float32", level=level, num_threads=num_threads)


def _assert_product(found: np.ndarray, x: np.ndarray, weights: np.ndarray) -> None:
    """A sum of k terms in float32: the bound of any order of summation."""
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    bound = 2.0**-24 * (x.shape[1] + 8) * (np.abs(x) @ np.abs(weights).T) + x.shape[1] * 2.0**-149
    assert (np.abs(found - x @ weights.T) <= bound).all()


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
def test_equal_to_the_oracle_at_every_number_of_rows(level: InstructionSet) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((70, 203)).astype(np.float32)
    for num_rows in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 50, 400):
        x = rng.standard_normal((num_rows, 203)).astype(np.float32)
        _assert_product(_run(x, weights, level), x, weights)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_scale(level: InstructionSet, data: st.DataObject) -> None:
    num_rows, num_columns, k = (data.draw(st.integers(1, most)) for most in (20, 40, 90))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    exponent = data.draw(st.integers(-40, 18))
    x = (rng.standard_normal((num_rows, k)) * 10.0**exponent).astype(np.float32)
    weights = rng.standard_normal((num_columns, k)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.1] = 0
    found = _run(x, weights, level, num_threads=data.draw(st.integers(1, 5)))
    _assert_product(found, x, weights)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
def test_a_row_is_the_same_alone_and_among_others(level: InstructionSet) -> None:
    """Rows of a batch, a prompt in pieces, and any number of threads: bit for bit."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 520)).astype(np.float32)
    weights = rng.standard_normal((300, 520)).astype(np.float32)
    together = _run(x, weights, level)
    assert np.array_equal(_run(x, weights, level, num_threads=1), together)
    for first, last in ((0, 1), (7, 9), (100, 106), (293, 300)):
        assert np.array_equal(_run(x[first:last], weights, level, num_threads=3), together[first:last])


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
def test_bias_and_activation(level: InstructionSet) -> None:
    rng = np.random.default_rng(3)
    x, weights, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 33), (17, 33), (17,)))
    out = np.empty((5, 17), dtype=np.float32)
    load_library().matmul(
        weights.ctypes.data, _FLOAT32, x.ctypes.data, out.ctypes.data, num_rows=5, num_columns=17, k=33, num_threads=2,
        bias_address=bias.ctypes.data, activation=Activation.QUICK_GELU, level=level,
    )  # fmt: skip
    plain = x.astype(np.float64) @ weights.T + bias
    np.testing.assert_allclose(out, plain / (1 + np.exp(-1.702 * plain)), rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_stay_in_their_column() -> None:
    x, weights = np.ones((3, 40), dtype=np.float32), np.ones((5, 40), dtype=np.float32)
    weights[1, 3], weights[4, 39] = np.nan, np.inf
    found = _run(x, weights, load_library().best)
    assert np.isnan(found[:, 1]).all()
    assert np.isinf(found[:, 4]).all()
    assert (found[:, [0, 2, 3]] == 40).all()


def test_sizes_that_cannot_be_are_refused() -> None:
    one = np.ones(4, dtype=np.float32)
    for sizes in ({"k": 0}, {"num_rows": -1}, {"num_threads": 0}):
        given = {"num_rows": 1, "num_columns": 1, "k": 4, "num_threads": 1} | sizes
        with pytest.raises(ConfigError, match="out of range"):
            load_library().matmul(one.ctypes.data, _FLOAT32, one.ctypes.data, one.ctypes.data, **given)
