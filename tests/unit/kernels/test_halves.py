"""Products with float16 and bfloat16 weights against the slow oracle: every instruction set, odd shapes and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.core.errors import CapacityError, ConfigError
from llavakit.kernels.library import Activation, InstructionSet, load_library
from llavakit.kernels.structures import Matrix
from llavakit.model.stored_matrix import StoredMatrix
from llavakit.weights.ggml_types import type_by_name
from tests.unit.kernels.guarded_product import run

_LEVELS = load_library().supported
_MAX_FEW_ROWS = 4
_TYPES = ("float16", "bfloat16")


def _store(weights: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of the weights (n, k), and the numbers they then are."""
    stored = torch.from_numpy(weights.astype(np.float32)).to(getattr(torch, dtype))
    return stored.view(torch.uint8).numpy(), stored.double().numpy()


def _round(values: np.ndarray, span: int, greatest_number: int) -> np.ndarray:
    """Every span of a row to integers of at most ``greatest_number`` times a scale, as the kernel rounds."""
    out = np.zeros(values.shape, dtype=np.float64)
    for start in range(0, values.shape[1], span):
        part = values[:, start : start + span].astype(np.float32)
        greatest = np.abs(part).max(axis=1, keepdims=True)
        is_zero = greatest < 2.0**-112
        factor = np.where(is_zero, np.float32(0), np.float32(greatest_number) / np.where(is_zero, 1, greatest))
        numbers = np.rint(part * factor.astype(np.float32)).astype(np.float64)
        out[:, start : start + span] = numbers * (greatest / np.float32(greatest_number))
    return out


def _assert_product(found: np.ndarray, x: np.ndarray, weights: np.ndarray) -> None:
    """Few rows: float32 sums of k terms. Many: of two terms per 128, whose three factors are rounded once each."""
    k = x.shape[1]
    x = x.astype(np.float32).astype(np.float64)
    if len(x) > _MAX_FEW_ROWS:
        x, weights = _round(x, 128, 8191), _round(weights, 64, 4095)
        num_terms = k / 64 + 8
    else:
        num_terms = k + 8
    # A subnormal product or scale is rounded by more than its own size allows.
    bound = 2.0**-24 * num_terms * (np.abs(x) @ np.abs(weights).T) * 2 + k * 2.0**-126
    assert (np.abs(found - x @ weights.T) <= bound).all()


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
def test_equal_to_the_oracle_at_every_number_of_rows(dtype: str, level: InstructionSet) -> None:
    rng = np.random.default_rng(1)
    stored, weights = _store(rng.standard_normal((70, 700)), dtype)
    for num_rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33, 48, 50, 100):
        x = rng.standard_normal((num_rows, 700)).astype(np.float32)
        _assert_product(run(x, stored, dtype, level=level), x, weights)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
def test_a_row_is_the_same_wherever_it_lies(dtype: str, level: InstructionSet) -> None:
    """The last of 17, 33 and 577 rows has a vector to itself, and is multiplied along the row."""
    rng = np.random.default_rng(4)
    stored, _ = _store(rng.standard_normal((77, 300)), dtype)
    x = rng.standard_normal((592, 300)).astype(np.float32)
    whole = run(x, stored, dtype, level=level)
    for num_rows in (17, 25, 33, 577):
        assert np.array_equal(run(x[:num_rows], stored, dtype, level=level), whole[:num_rows])


@given(
    dtype=st.sampled_from(_TYPES), level=st.sampled_from(_LEVELS), num_rows=st.integers(1, 70),
    num_columns=st.integers(1, 70), k=st.integers(1, 400), x_scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e30]),
    scale=st.sampled_from([1e-7, 1e-3, 1.0, 1e3]), num_threads=st.integers(1, 4), seed=st.integers(0, 2**32 - 1),
    offset=st.integers(0, 63),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_odd_shapes_scales_and_addresses(
    dtype: str, level: InstructionSet, num_rows: int, num_columns: int, k: int, x_scale: float, scale: float,
    num_threads: int, seed: int, offset: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    stored, weights = _store(rng.standard_normal((num_columns, k)) * scale * 10.0 ** rng.integers(-3, 1, k), dtype)
    memory = np.zeros(stored.size + 64, dtype=np.uint8)  # at an address that is aligned for nothing
    moved = memory[offset : offset + stored.size].reshape(stored.shape)
    moved[:] = stored
    x = (rng.standard_normal((num_rows, k)) * x_scale).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0.0
    _assert_product(run(x, moved, dtype, level=level, num_threads=num_threads), x, weights)


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("num_rows", [1, 6, 20])
def test_the_ends_of_every_range(dtype: str, level: InstructionSet, num_rows: int) -> None:
    """All products of a span alike and greatest: where integer sums would overflow, they do it here."""
    k = 512
    for value in (1.0, -1.0, 60000.0, 2.0**-24):
        stored, weights = _store(np.full((5, k), value), dtype)
        for sign in (1.0, -1.0):
            x = np.full((num_rows, k), sign, dtype=np.float32)
            _assert_product(run(x, stored, dtype, level=level), x, weights)
    stored, _ = _store(np.ones((5, k)), dtype)
    assert (run(np.zeros((num_rows, k)), stored, dtype, level=level) == 0).all()
    assert np.abs(run(np.full((num_rows, k), 1e-42), stored, dtype, level=level)).max() <= k * 1e-41


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("num_rows", [1, 6, 20])
def test_what_is_not_finite_stays_so(num_rows: int, level: InstructionSet) -> None:
    stored, _ = _store(np.ones((4, 256)), "float16")
    damaged = np.ones((4, 256))
    for value in (np.nan, np.inf):
        x = np.ones((num_rows, 256), dtype=np.float32)
        x[-1, 7] = value
        found = run(x, stored, "float16", level=level)
        assert not np.isfinite(found[-1]).any()
        assert np.isfinite(found[:-1]).all()
        damaged[2, 7] = value
        found = run(np.ones((num_rows, 256)), _store(damaged, "float16")[0], "float16", level=level)
        assert not np.isfinite(found[:, 2]).any()
        assert np.isfinite(found[:, :2]).all()


def test_rounding_to_words_costs_less_than_bfloat16_does() -> None:
    """A span's greatest number is at most the root of its length times its root mean square, so the relative noise
    of a product is at most (11.3 / 8191 + 8 / 4095) / sqrt(12); normal numbers stay at a third of it.
    """
    rng = np.random.default_rng(3)
    for make in (rng.standard_normal, lambda shape: rng.standard_t(2, shape)):
        stored, weights = _store(make((64, 1024)) * 0.02, "float16")
        x = make((40, 1024)).astype(np.float32)
        exact = x.astype(np.float64) @ weights.T
        error = np.linalg.norm(run(x, stored, "float16", level=load_library().best) - exact) / np.linalg.norm(exact)
        halves = torch.from_numpy(x).bfloat16() @ torch.from_numpy(weights).bfloat16().T
        assert error < (128**0.5 / 8191 + 8 / 4095) / 12**0.5
        assert error < np.linalg.norm(halves.double().numpy() - exact) / np.linalg.norm(exact) / 3


@pytest.mark.parametrize("dtype", _TYPES)
def test_result_does_not_depend_on_threads(dtype: str) -> None:
    rng = np.random.default_rng(7)
    stored, _ = _store(rng.standard_normal((1200, 96)), dtype)
    for num_rows in (1, 4, 7, 30):
        x = rng.standard_normal((num_rows, 96)).astype(np.float32)
        alone = run(x, stored, dtype, level=load_library().best, num_threads=1)
        for num_threads in (7, 150):  # of more than 64 several begin with the same columns
            assert np.array_equal(alone, run(x, stored, dtype, level=load_library().best, num_threads=num_threads))


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize("dtype", _TYPES)
def test_expansion_is_exact(dtype: str, level: InstructionSet) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    numbers = torch.from_numpy(every.view(np.int16)).view(getattr(torch, dtype)).float().numpy()
    found = load_library().dequantize(every.view(np.uint8), type_by_name(dtype).type_id, 1 << 16, level=level)
    is_nan = np.isnan(numbers)
    assert np.array_equal(np.isnan(found), is_nan)
    assert np.array_equal(found[~is_nan], numbers[~is_nan])


@pytest.mark.parametrize("level", _LEVELS, ids=lambda level: level.name.lower())
@pytest.mark.parametrize(
    ("num_rows", "k", "num_between", "num_columns"),
    # Computed without storing what lies between, where the cache is large enough: a row to itself, vectors that are
    # full and not, more rows than go at once. Then: few rows, columns that fill no strip.
    [(577, 40, 1024, 40), (576, 40, 1024, 16), (570, 130, 2048, 33), (965, 40, 1024, 16), (3, 128, 1024, 40),
     (577, 100, 992, 20)],
)  # fmt: skip
def test_a_pair_of_products_is_one_after_the_other(
    num_rows: int, k: int, num_between: int, num_columns: int, level: InstructionSet
) -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((num_rows, k)) * np.exp(rng.standard_normal((num_rows, 1)) * 9)).astype(np.float32)
    x[num_rows // 2] = 0
    bias = rng.standard_normal(num_between).astype(np.float32)
    for dtypes in (_TYPES, ("float16", "float16"), ("bfloat16", "q8_0"), ("float32", "float16")):
        shapes = ((num_between, k), (num_columns, num_between))
        stored = [_encode(rng.standard_normal(shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        found, expected = _multiply_pair(x, stored, dtypes, shapes, bias, Activation.QUICK_GELU, level)
        assert np.array_equal(found, expected)
    assert np.isfinite(expected).all()
    # Of zeros nothing is left without a bias; what is not finite stays in its row, and is not finite there.
    shapes, dtypes = ((num_between, k), (num_columns, num_between)), ("float16", "float16")
    stored = [_encode(rng.standard_normal(shape), "float16") for shape in shapes]
    x[0, 3], x[-1, 5] = np.nan, np.inf
    found, expected = _multiply_pair(x, stored, dtypes, shapes, None, Activation.NONE, level)
    assert np.array_equal(found[1:-1], expected[1:-1])
    assert (found[num_rows // 2] == 0).all()
    assert not np.isfinite(found[[0, -1]]).any()


def _multiply_pair(
    x: np.ndarray, stored: list[np.ndarray], dtypes: tuple[str, ...], shapes: tuple[tuple[int, int], ...],
    bias: np.ndarray | None, activation: Activation, level: InstructionSet,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the result of one call, and of two."""
    library, num_rows = load_library(), len(x)
    (num_between, k), (num_columns, _) = shapes
    types = [type_by_name(dtype).type_id for dtype in dtypes]
    between, expected = (np.empty((num_rows, width), np.float32) for width in (num_between, num_columns))
    found = np.full(expected.size + 16, np.float32(12345))
    address = None if bias is None else bias.ctypes.data
    library.matmul(
        stored[0].ctypes.data, types[0], x.ctypes.data, between.ctypes.data, num_rows=num_rows, k=k,
        num_columns=num_between, num_threads=2, bias_address=address, activation=activation, level=level,
    )  # fmt: skip
    library.matmul(
        stored[1].ctypes.data, types[1], between.ctypes.data, expected.ctypes.data, num_rows=num_rows, k=num_between,
        num_columns=num_columns, num_threads=2, level=level,
    )  # fmt: skip
    library.matmul_pair(
        Matrix(stored[0].ctypes.data, num_between, k, types[0], 0),
        Matrix(stored[1].ctypes.data, num_columns, num_between, types[1], 0), x.ctypes.data, found.ctypes.data,
        num_rows=num_rows, num_threads=2, first_bias_address=address, activation=activation, level=level,
    )  # fmt: skip
    assert (found[-16:] == 12345).all()
    return found[:-16].reshape(expected.shape), expected


def _encode(weights: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in ("float32", *_TYPES):
        return StoredMatrix.quantize(torch.from_numpy(weights), dtype).data
    return torch.from_numpy(weights).to(getattr(torch, dtype)).view(torch.uint8).numpy()


def test_pairs_that_do_not_fit_are_refused() -> None:
    library, x = load_library(), np.zeros((4, 64), np.float32)
    weights = np.zeros((64, 64), np.float16)
    first = Matrix(weights.ctypes.data, 64, 64, 1, 0)
    for second in (
        Matrix(weights.ctypes.data, 64, 32, 1, 0), Matrix(weights.ctypes.data, -1, 64, 1, 0),
        Matrix(weights.ctypes.data, 64, 64, 12, 0),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            library.matmul_pair(first, second, x.ctypes.data, x.ctypes.data, num_rows=4, num_threads=1)
    with pytest.raises(CapacityError):
        library.matmul_pair(
            first, Matrix(weights.ctypes.data, 64, 64, 99, 0), x.ctypes.data, x.ctypes.data, num_rows=4, num_threads=1
        )
