"""The comparator finds every planted error, and passes what rounding alone explains."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llavakit.diagnostics.compare import (
    FLOAT32_BOUND,
    StageResult,
    Verdict,
    bound_of,
    compare_exact,
    compare_ids,
    compare_tensors,
)


def _reference(seed: int = 0) -> Tensor:
    return torch.randn(4, 50, 32, generator=torch.Generator().manual_seed(seed))


def _compare(ours: Tensor, theirs: Tensor, tolerance: float = FLOAT32_BOUND) -> StageResult:
    return compare_tensors("stage", [(ours, theirs)], tolerance=tolerance, reason="why", what="what")


def test_equal_tensors_are_equal() -> None:
    result = _compare(_reference(), _reference())
    assert (result.verdict, result.max_abs_difference, result.relative_error) == (Verdict.EQUAL, 0.0, 0.0)
    assert result.num_compared == 4 * 50 * 32
    assert result.is_ok


def test_another_order_of_sums_passes_but_is_not_called_equal() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(64, 4096, generator=generator), torch.randn(4096, 64, generator=generator)
    order = torch.randperm(4096, generator=generator)
    result = _compare(left[:, order] @ right[order], left @ right)
    assert result.verdict is Verdict.PASS
    assert result.relative_error is not None
    assert 0 < result.relative_error < FLOAT32_BOUND


def _flip_sign(x: Tensor) -> None:
    x[1, 2, 3] *= -1


def _enlarge_one(x: Tensor) -> None:
    x[0, 0, 0] += 0.5


def _scale_all(x: Tensor) -> None:
    x *= 1.001


def _swap_rows(x: Tensor) -> None:
    x[0, [3, 4]] = x[0, [4, 3]]


def _swap_items(x: Tensor) -> None:
    x[[0, 1]] = x[[1, 0]]


def _zero_a_row(x: Tensor) -> None:
    x[2, 7] = 0


def _shift_columns(x: Tensor) -> None:
    x[...] = x.roll(1, dims=-1)


def _add_a_bias(x: Tensor) -> None:
    x += 1e-3


def _plant_nan(x: Tensor) -> None:
    x[3, 49, 31] = math.nan


def _plant_infinity(x: Tensor) -> None:
    x[3, 49, 31] = -math.inf


@pytest.mark.parametrize(
    "plant",
    [
        _flip_sign, _enlarge_one, _scale_all, _swap_rows, _swap_items, _zero_a_row, _shift_columns, _add_a_bias,
        _plant_nan, _plant_infinity,
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_ours_wrong", [True, False])
def test_planted_errors_are_found(plant: Callable[[Tensor], None], is_ours_wrong: bool) -> None:
    good, bad = _reference(), _reference()
    plant(bad)
    result = _compare(bad, good) if is_ours_wrong else _compare(good, bad)
    assert result.verdict is Verdict.FAIL
    assert not result.is_ok
    assert result.detail != "what"


@given(row=st.integers(0, 199), scale=st.sampled_from([0.0, -1.0, 1.1]))
def test_one_wrong_row_among_many_is_found_where_the_norm_alone_would_hide_it(row: int, scale: float) -> None:
    theirs = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    theirs[row] *= 1e-4  # a small row: its error is lost in the norm of all
    ours = theirs.clone()
    ours[row] *= scale
    result = _compare(ours, theirs, tolerance=1e-3)
    assert result.relative_error is not None
    assert result.relative_error < 1e-3
    assert result.verdict is Verdict.FAIL
    assert "row" in result.detail


def test_one_wrong_item_among_many_is_found() -> None:
    pairs = [(_reference(seed), _reference(seed)) for seed in range(20)]
    pairs[13] = (_reference(13) * 1.00005, _reference(13))
    result = compare_tensors("stage", iter(pairs), tolerance=FLOAT32_BOUND, reason="why", what="what")
    assert result.verdict is Verdict.FAIL
    assert "item 13" in result.detail


def test_nothing_to_compare_fails() -> None:
    assert compare_tensors("stage", [], tolerance=1.0, reason="", what="").verdict is Verdict.FAIL
    assert compare_ids("ids", [], reason="", what="").verdict is Verdict.FAIL


def test_other_shapes_fail_even_when_they_broadcast() -> None:
    result = _compare(torch.ones(1, 4), torch.ones(3, 4))
    assert result.verdict is Verdict.FAIL
    assert "(1, 4)" in result.detail
    assert "(3, 4)" in result.detail


def test_a_reference_of_zeros_allows_no_error() -> None:
    zeros = torch.zeros(2, 3)
    assert _compare(zeros, zeros).verdict is Verdict.EQUAL
    assert _compare(zeros + 1e-30, zeros).verdict is Verdict.FAIL


def test_exact_comparison_allows_no_bit() -> None:
    theirs = _reference()
    ours = theirs.clone()
    ours[0, 0, 0] = torch.nextafter(ours[0, 0, 0], torch.tensor(9.0))
    assert compare_exact("pixels", [(ours, theirs)], reason="", what="").verdict is Verdict.FAIL
    assert compare_exact("pixels", [(theirs, theirs)], reason="", what="").verdict is Verdict.EQUAL


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.integers(0, 9), max_size=8))
def test_ids_are_equal_or_not(ours: list[int], theirs: list[int]) -> None:
    result = compare_ids("ids", [(ours, theirs)], reason="", what="what")
    assert (result.verdict is Verdict.EQUAL) == (ours == theirs)
    assert result.relative_error is None


def test_the_first_different_id_is_named() -> None:
    result = compare_ids("ids", [([1, 2], [1, 2]), ([1, 2, 3], [1, 9, 3])], reason="", what="")
    assert result.detail == "item 1: at position 1 ours is 2, theirs 9"


def test_bounds_grow_with_depth_and_with_coarser_numbers() -> None:
    assert bound_of(torch.float32, 1)[0] == FLOAT32_BOUND
    assert bound_of(torch.float32, 32)[0] == pytest.approx(2 * FLOAT32_BOUND)
    for layers in (1, 24, 40):
        bounds = [bound_of(dtype, layers)[0] for dtype in (torch.float32, torch.float16, torch.bfloat16)]
        assert bounds == sorted(bounds)
        assert bounds[-1] < 0.15  # a wrong layer is off by about 1
