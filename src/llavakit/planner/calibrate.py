"""Fit the speed model to measured rows, and say how wrong it is: ``python -m llavakit.planner.calibrate``.

Tokens and prompts take work over rate plus a time per layer. The work of a token is to read the weights and, on Apple's
GPUs, to unpack them, whichever is slower. Prompts on NVIDIA's cards also take an energy per operation over the rated
power, since large chips in small power limits do not reach their clocks. Per family of devices there is
one efficiency and one time per layer, per era of builds one factor on each, and all have priors, so that a family with
three rows leans on the others. Parameters are logarithms, fitted together to logarithms of times by Gauss-Newton.

Writes ``data/calibration.json``: parameters, and for every row what is predicted when its device is left out of the
fit. That error, and no other, is published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.planner.measured import WORKS, MeasuredRow, Work, era_of, has_joules, list_rows
from llavakit.planner.records import SpeedFit
from llavakit.planner.speed import ERAS, MIN_OTHER_DEVICES

__all__ = ["Residual", "calibrate", "leave_one_out"]

# Before any row is seen: efficiency, and its spread; time per layer, and its spread; spread of an era's factor.
_PRIORS = {
    "decode": (0.85, 0.25, 60e-6, 0.7, 0.4),
    "prompt": (0.4, 0.8, 150e-6, 1.0, 0.7),
}
# Joules of an 8-bit operation on NVIDIA's cards before any row is seen, and the spread.
_JOULES = (2e-12, 1.0)
# A family's efficiency is near that of its parent; its own rows move it. Of families with few devices that share no
# memory system or no program with the others little is known beforehand.
_FAMILY_SPREAD = {"decode": 0.15, "prompt": 0.5}
_FAR_FAMILIES = ("arc", "cpu", "vulkan on nvidia")
_FAR_SPREAD = 0.6
# Where the unpacking of weights can be slower than the reading of them: operations of a weight before any row is seen,
# and the spread. Two are the product itself.
_UNPACKING_MAKERS = ("apple",)
_OPERATIONS = {"half": (4.0, 0.5), "quant": (8.0, 0.7), "k": (12.0, 0.7)}
# What a family leans on instead of the parent of all: the memory of the one, the program of the other.
_LEANS_ON = {"vulkan on nvidia": ("nvidia", "radeon")}
# Makers whose kernels for 16 bits and for quantized weights reach different shares, and not the same in every era.
_KIND_MAKERS = ("nvidia",)
_KIND_SPREAD = 0.12
_ROW_SPREAD = 0.06
_DEVICE_SPREAD_FLOOR = 0.05


@dataclass(frozen=True)
class Residual:
    """A row's prediction from a fit that has not seen its device.

    ``num_others`` counts the devices of its family, and of those that it leans on, which the fit has seen.
    """

    device: str
    model: str
    quant: str
    family: str
    era: str
    measured: float
    predicted: float
    source: str
    num_others: int

    @property
    def error(self) -> float:
        """Relative error of the speed."""
        return self.predicted / self.measured - 1

    @property
    def is_covered(self) -> bool:
        """Whether enough other devices of its kind were seen for the prediction to be one."""
        return self.num_others >= MIN_OTHER_DEVICES


def _efficiency_terms(kind: str, work: Work) -> list[tuple[str, float]]:
    """Name the factors of a row's efficiency, with the spread that each has before any row is seen."""
    own = "half" if work.kind == "half" else "quantized"
    width = _FAR_SPREAD if work.family in _FAR_FAMILIES else _FAMILY_SPREAD[kind]
    families = [work.family, *_LEANS_ON.get(work.family, ())[:1]]
    if kind == "prompt":
        terms = [(f"efficiency, {family}, {own}", width) for family in families]
    else:
        terms = [(f"efficiency, {family}", width) for family in families]
        if work.family.split()[0] in _KIND_MAKERS:
            terms += [(f"efficiency, {work.family}, {own}", _KIND_SPREAD)]
            terms += [(f"efficiency, {work.family}, {own} in {work.era}", _KIND_SPREAD)]
    if work.era:
        terms.append((f"efficiency in {work.era}", _PRIORS[kind][4] * 0.5))
    return terms


def _layer_terms(kind: str, work: Work) -> list[tuple[str, float]]:
    """Name the factors of a row's time per layer, likewise."""
    families = [work.family, *_LEANS_ON.get(work.family, ())[1:]]
    terms = [(f"layer, {family}", _PRIORS[kind][3]) for family in families]
    return [*terms, (f"layer in {work.era}", _PRIORS[kind][4])] if work.era else terms


class _Fit:
    """One joint fit of one kind of work."""

    def __init__(self, kind: str, works: Sequence[Work]) -> None:
        self.kind = kind
        efficiency, spread, layer_s, layer_spread, _ = _PRIORS[kind]
        # Names of parameters, their prior means and spreads; "all" is the parent of every family.
        means = {"efficiency, all": math.log(efficiency), "layer, all": math.log(layer_s)}
        spreads = {"efficiency, all": spread, "layer, all": layer_spread}
        means["joules"], spreads["joules"] = math.log(_JOULES[0]), _JOULES[1]
        for name, (operations, width) in _OPERATIONS.items():
            means[f"operations, {name}"], spreads[f"operations, {name}"] = math.log(operations), width
        for work in works:
            for name, width in (*_efficiency_terms(kind, work), *_layer_terms(kind, work)):
                means.setdefault(name, 0.0)
                spreads.setdefault(name, width)
        self._names = list(means)
        self._prior = np.array([means[name] for name in self._names])
        self._spread = np.array([spreads[name] for name in self._names])
        self._index = {name: idx for idx, name in enumerate(self._names)}
        self.values = self._solve(works)

    def _solve(self, works: Sequence[Work]) -> np.ndarray:
        values = self._prior.copy()
        if not works:
            return values
        measured = np.log([work.measured_s for work in works])
        # Rows of one device share what the model does not know of it: many of them count little more than one.
        counts = {work.row.device.name: 0 for work in works}
        for work in works:
            counts[work.row.device.name] += 1
        weights = np.array([1 / (_ROW_SPREAD * math.sqrt(counts[work.row.device.name] ** 0.5)) for work in works])
        for _ in range(30):
            predicted, slopes = self._linearize(works, values)
            left = np.concatenate([(measured - predicted) * weights, (self._prior - values) / self._spread])
            matrix = np.concatenate([slopes * weights[:, None], np.diag(1 / self._spread)])
            step = np.linalg.lstsq(matrix, left, rcond=None)[0]
            values = values + np.clip(step, -0.5, 0.5)
            if np.abs(step).max() < 1e-9:
                break
        return values

    def _linearize(self, works: Sequence[Work], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of times (N,), and their derivatives (N, parameters)."""
        of_efficiency, of_layers, of_operations = np.zeros((3, len(works), len(values)))
        for idx, work in enumerate(works):
            of_efficiency[idx, self._indices("efficiency, all", _efficiency_terms(self.kind, work))] = 1
            of_layers[idx, self._indices("layer, all", _layer_terms(self.kind, work))] = 1
            of_operations[idx, self._index[f"operations, {work.kind}"]] = 1
        ideal_s, unpacking_s, per_watt, layers = np.array(
            [(w.ideal_s, w.unpacking_s, w.per_watt, w.layers) for w in works]
        ).T
        over_rate = ideal_s / np.exp(of_efficiency @ values)
        unpacking = unpacking_s * np.exp(of_operations @ values)
        # The slower of the two, as `formulas.slower_of` has it, and what each adds to its derivative.
        work_s = (over_rate**4 + unpacking**4) ** 0.25
        of_work = (unpacking**4)[:, None] * of_operations - (over_rate**4)[:, None] * of_efficiency
        in_layers = layers * np.exp(of_layers @ values)
        over_power = per_watt * np.exp(values[self._index["joules"]])
        total = work_s + in_layers + over_power
        slopes = (in_layers / total)[:, None] * of_layers + of_work / (work_s**3 * total)[:, None]
        slopes[:, self._index["joules"]] += over_power / total
        return np.log(total), slopes

    def _indices(self, parent: str, terms: Sequence[tuple[str, float]]) -> list[int]:
        names = (parent, *(name for name, _ in terms))
        return [self._index[name] for name in names if name in self._index]

    def predict_s(self, work: Work) -> float:
        """Time of a row."""
        return math.exp(float(self._linearize([work], self.values)[0][0]))

    @property
    def joules(self) -> float:
        """Energy of an operation on NVIDIA's cards."""
        return math.exp(float(self.values[self._index["joules"]]))

    def operations(self, kind: str, family: str) -> float:
        """Operations of a weight; 0 where they are no limit."""
        if family.split()[0] not in _UNPACKING_MAKERS:
            return 0.0
        return math.exp(float(self.values[self._index[f"operations, {kind}"]]))

    def terms(self, kind: str, family: str, era: str) -> tuple[float, float]:
        """Efficiency, and time per layer."""
        work = Work(None, 1.0, 0.0, 0.0, 1.0, 1.0, kind, family, era)  # type: ignore[arg-type]
        return (
            math.exp(float(self.values[self._indices("efficiency, all", _efficiency_terms(self.kind, work))].sum())),
            math.exp(float(self.values[self._indices("layer, all", _layer_terms(self.kind, work))].sum())),
        )


def leave_one_out(kind: str, rows: Sequence[MeasuredRow] | None = None) -> list[Residual]:
    """Predict every row from a fit without its device.

    Parameters
    ----------
    kind : {"decode", "prompt"}
    rows : sequence of MeasuredRow, optional
        By default those of the table.
    """
    works = [work for row in (list_rows() if rows is None else rows) if (work := WORKS[kind](row)) is not None]
    residuals = []
    for device in sorted({work.row.device.name for work in works}):
        seen = [work for work in works if work.row.device.name != device]
        fit = _Fit(kind, seen)
        for work in works:
            if work.row.device.name == device:
                row, amount = work.row, 1 if kind == "decode" else work.row.prompt_tokens
                measured, predicted = amount / work.measured_s, amount / fit.predict_s(work)
                others = _count_devices([other.row for other in seen], row.family)
                residuals.append(
                    Residual(device, row.model, row.quant, row.family, row.era, measured, predicted, row.source, others)
                )
    return residuals


def _count_devices(rows: Sequence[MeasuredRow], family: str) -> int:
    families = (family, *_LEANS_ON.get(family, ()))
    return len({row.device.name for row in rows if row.family in families})


def _spread_of(residuals: Sequence[Residual], family: str) -> float:
    """Root mean square of log errors of left-out devices of a family, drawn to that of all where it has few."""
    own = [math.log(r.predicted / r.measured) ** 2 for r in residuals if r.family == family]
    everyone = sum(math.log(r.predicted / r.measured) ** 2 for r in residuals) / len(residuals)
    return max(_DEVICE_SPREAD_FLOOR, math.sqrt((sum(own) + 4 * everyone) / (len(own) + 4)))


def calibrate() -> dict[str, Any]:
    """Fit everything and return what is stored."""
    works = {kind: [w for row in list_rows() if (w := make(row)) is not None] for kind, make in WORKS.items()}
    fits = {kind: _Fit(kind, found) for kind, found in works.items()}
    residuals = {kind: leave_one_out(kind) for kind in works}
    families = sorted({row.family for row in list_rows()})
    stored = []
    for family in families:
        for era in ERAS:
            key = era_of(family, era)
            decode_efficiency, decode_layer_s = fits["decode"].terms("quant", family, key)
            half_decode_efficiency, _ = fits["decode"].terms("half", family, key)
            half, prompt_layer_s = fits["prompt"].terms("half", family, key)
            quant, _ = fits["prompt"].terms("quant", family, key)
            stored.append(
                SpeedFit(
                    family=family,
                    era=era,
                    num_devices=_count_devices(list_rows(), family),
                    half_decode_efficiency=_round(min(half_decode_efficiency, 1.0)),
                    decode_efficiency=_round(min(decode_efficiency, 1.0)),
                    half_operations=_round(fits["decode"].operations("half", family)),
                    quant_operations=_round(fits["decode"].operations("quant", family)),
                    k_operations=_round(fits["decode"].operations("k", family)),
                    prompt_joules=_round(fits["prompt"].joules) if has_joules(family) else 0.0,
                    decode_layer_s=_round(decode_layer_s),
                    decode_spread=_round(_spread_of(residuals["decode"], family)),
                    half_prompt_efficiency=_round(half),
                    quant_prompt_efficiency=_round(quant),
                    prompt_layer_s=_round(prompt_layer_s),
                    prompt_spread=_round(_spread_of(residuals["prompt"], family)),
                )
            )
    return {
        "fits": [asdict(fit) for fit in stored],
        "residuals": {
            kind: [{**asdict(r), "predicted": _round(r.predicted)} for r in found] for kind, found in residuals.items()
        },
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    """Fit and write."""
    content = calibrate()
    file = Path(__file__).parent / "data" / "calibration.json"
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for kind, residuals in content["residuals"].items():
        found = [Residual(**entry) for entry in residuals]
        for name in ("covered", "not covered", *sorted({r.family for r in found})):
            own = [abs(r.error) for r in found if name in (r.family, "covered" if r.is_covered else "not covered")]
            if own:
                print(f"{kind}, {name}: {len(own)} rows, mean {sum(own) / len(own):.1%}, worst {max(own):.1%}")


if __name__ == "__main__":
    main()
