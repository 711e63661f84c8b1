"""How far two results are apart, and whether that is too far.

In: two tensors, arrays or id sequences. Out: a `StageResult` with numbers and a verdict. Guaranteed: NaN,
infinity, another shape or nothing to compare never pass. Why the tolerances are what they are:
``docs/numerics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

__all__ = [
    "FLOAT32_BOUND",
    "StageResult",
    "Verdict",
    "bound_of",
    "bound_of_stored",
    "compare_exact",
    "compare_ids",
    "compare_tensors",
]

# The bar in float32, derived for one wide layer or a few narrow ones.
FLOAT32_BOUND = 1e-5
_LAYERS_OF_BOUND = 8
# Roundings to the storage format on a layer's way: norm, product, attention, product, sum; norm, product, gate,
# product, sum.
_ROUNDINGS_PER_LAYER = 10
# Error of a product whose inputs are rounded to steps of d: d / sqrt(12) of each input. A block of 256 normal numbers
# has its greatest near 3.2 deviations, so d is 3.2 / 127 of one; 16-bit weights are multiplied with an error of 2.1e-4
# (docs/numerics.md).
_BYTE_UNIT = 3.2 / 127 / math.sqrt(12)
_WORD_UNIT = 2.1e-4


class Verdict(StrEnum):
    """What a stage shows."""

    EQUAL = "equal"  # every bit or every id
    PASS = "pass"  # within the tolerance
    FAIL = "fail"
    SKIPPED = "skipped"  # could not be compared; the detail says why


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """One row of the table.

    Parameters
    ----------
    name : str
    num_compared : int
        Numbers or ids that were compared.
    max_abs_difference : float or None
        Largest absolute difference; None where ids are compared. Infinite when anything is not finite.
    relative_error : float or None
        Frobenius norm of the difference over that of the reference.
    tolerance : float
        Upper bound of the relative error; 0 asks for equality.
    reason : str
        Where the tolerance comes from.
    verdict : Verdict
    detail : str
        What was compared, or the first difference.
    """

    name: str
    num_compared: int
    max_abs_difference: float | None
    relative_error: float | None
    tolerance: float
    reason: str
    verdict: Verdict
    detail: str

    @property
    def is_ok(self) -> bool:
        """Whether the stage does not speak against the model."""
        return self.verdict is not Verdict.FAIL


def bound_of(dtype: torch.dtype, num_layers: int) -> tuple[float, str]:
    """Return the largest relative error that rounding explains after some layers, and why.

    Parameters
    ----------
    dtype : torch.dtype
        Of weights and activations.
    num_layers : int
        Blocks between the input and what is compared.

    Returns
    -------
    bound : float
    reason : str
    """
    if dtype == torch.float32:
        growth = math.sqrt(max(1.0, num_layers / _LAYERS_OF_BOUND))
        return FLOAT32_BOUND * growth, "float32: order of sums, errors of layers add in squares"
    unit = torch.finfo(dtype).eps / 2
    # Each rounding errs by at most one unit; independent ones add in squares; two runs differ by sqrt(2) of one run.
    bound = math.sqrt(2 * _ROUNDINGS_PER_LAYER * max(1, num_layers)) * unit
    name = str(dtype).removeprefix("torch.")
    return bound, f"{name}: {_ROUNDINGS_PER_LAYER} roundings a layer, half an ulp each, added in squares"


def bound_of_stored(num_layers: int, *, is_quantized: bool) -> tuple[float, str]:
    """Return the largest relative error that rounding explains of matrices multiplied as stored, and why.

    Parameters
    ----------
    num_layers : int
        Blocks between the input and what is compared.
    is_quantized : bool
        Whether some of the matrices are in blocks, whose products round their input to 8 bits, and not in 16 bits,
        whose products round both sides to 13.
    """
    unit, name = (_BYTE_UNIT, "8-bit") if is_quantized else (_WORD_UNIT, "13-bit")
    bound = math.sqrt(2 * max(1, num_layers)) * unit
    return bound, f"{name} inputs of products, {unit:.1e} each; two branches a layer, added in squares"


def compare_tensors(
    name: str, pairs: Iterable[tuple[Tensor, Tensor]], *, tolerance: float, reason: str, what: str
) -> StageResult:
    """Compare pairs of tensors (ours, theirs) as one: the norm runs over all of them.

    The norm alone would hide one wrong row among many right ones, so that each pair must also hold the tolerance
    by itself, and so must the worst row of its last axis up to the factor that a row's smaller sample allows.

    Parameters
    ----------
    name : str
    pairs : iterable of tensor pairs
        Ours first. Taken one by one, so that a generator keeps memory flat.
    tolerance : float
        0 asks for equal bits.
    reason, what : str
        For the report.
    """
    max_abs = 0.0
    square_error = square_norm = 0.0
    num_compared = num_unequal = 0
    worst = ""
    for idx, (ours, theirs) in enumerate(pairs):
        if problem := _incomparable(ours, theirs):
            return StageResult(
                name=name, num_compared=num_compared + ours.numel(), max_abs_difference=math.inf,
                relative_error=math.inf, tolerance=tolerance, reason=reason, verdict=Verdict.FAIL,
                detail=f"item {idx}: {problem}",
            )  # fmt: skip
        difference, error, norm, row_error = _measure(ours, theirs)
        num_unequal += difference > 0.0
        max_abs = max(max_abs, difference)
        square_error += error**2
        square_norm += norm**2
        num_compared += ours.numel()
        relative = _ratio(error, norm)
        if not worst and relative > tolerance:
            worst = f"item {idx} alone has the relative error {relative:.2e}"
        elif not worst and row_error > _ROW_FACTOR * tolerance:
            worst = f"a row of item {idx} has the relative error {row_error:.2e}"
    relative = _ratio(math.sqrt(square_error), math.sqrt(square_norm))
    if num_compared == 0:
        worst = "there was nothing to compare"
    elif not worst and relative > tolerance:
        worst = f"the relative error is {relative:.2e}"
    verdict = Verdict.FAIL if worst else Verdict.PASS if num_unequal else Verdict.EQUAL
    return StageResult(
        name=name, num_compared=num_compared, max_abs_difference=max_abs, relative_error=relative,
        tolerance=tolerance, reason=reason, verdict=verdict, detail=worst or what,
    )  # fmt: skip


# The error of one row scatters around that of all rows, and a row may be much smaller than the rest, with the
# error of its larger neighbours in attention. A row that is wrong is off by about 1, 4 orders above this.
_ROW_FACTOR = 10.0


def _incomparable(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"the shapes are {tuple(ours.shape)} and {tuple(theirs.shape)}"
    for whose, tensor in (("our", ours), ("their", theirs)):
        num_bad = int((~torch.isfinite(tensor)).sum())
        if num_bad:
            return f"{num_bad} of {tensor.numel()} of {whose} numbers are NaN or infinite"
    return ""


def _measure(ours: Tensor, theirs: Tensor) -> tuple[float, float, float, float]:
    """Largest difference, norm of the difference, norm of theirs, worst relative error of a row."""
    if ours.numel() == 0:
        return 0.0, 0.0, 0.0, 0.0
    if torch.equal(ours, theirs):
        return 0.0, 0.0, float(theirs.double().norm()), 0.0
    wide = theirs.double()
    difference = ours.double() - wide
    errors = difference.flatten(0, -2).norm(dim=-1) if difference.dim() > 1 else difference.norm()[None]
    norms = wide.flatten(0, -2).norm(dim=-1) if wide.dim() > 1 else wide.norm()[None]
    rows = torch.where(norms > 0, errors / norms, torch.where(errors > 0, math.inf, 0.0))
    return float(difference.abs().max()), float(errors.norm()), float(norms.norm()), float(rows.max())


def _ratio(error: float, norm: float) -> float:
    if norm > 0:
        return error / norm
    return 0.0 if error == 0 else math.inf


def compare_exact(name: str, pairs: Iterable[tuple[Tensor, Tensor]], *, reason: str, what: str) -> StageResult:
    """Compare pairs of tensors that must be equal bit for bit."""
    return compare_tensors(name, pairs, tolerance=0.0, reason=reason, what=what)


def compare_ids(
    name: str, pairs: Iterable[tuple[Sequence[int], Sequence[int]]], *, reason: str, what: str
) -> StageResult:
    """Compare pairs of id sequences (ours, theirs) that must be equal.

    An empty pair is fine, no pair at all is not.
    """
    num_pairs = num_ids = 0
    detail = ""
    for idx, (ours, theirs) in enumerate(pairs):
        num_pairs += 1
        num_ids += max(len(ours), len(theirs))
        if not detail and list(ours) != list(theirs):
            detail = f"item {idx}: {first_difference(ours, theirs)}"
    if not num_pairs:
        detail = "there was nothing to compare"
    return StageResult(
        name=name, num_compared=num_ids, max_abs_difference=None, relative_error=None, tolerance=0.0, reason=reason,
        verdict=Verdict.FAIL if detail else Verdict.EQUAL, detail=detail or what,
    )  # fmt: skip


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Say where two id sequences part."""
    for position, (mine, their) in enumerate(zip(ours, theirs, strict=False)):
        if mine != their:
            return f"at position {position} ours is {mine}, theirs {their}"
    return f"ours has {len(ours)} ids, theirs {len(theirs)}"
