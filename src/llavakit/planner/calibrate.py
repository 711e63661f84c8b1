"""Fit the speed model to measured rows, and say how wrong it is: ``python -m llavakit.planner.calibrate``.

Tokens and prompts take work over rate plus a time per layer; prompts on NVIDIA's cards also an energy per operation
over the rated power, since large chips in small power limits do not reach their clocks. Per family of devices there is
one efficiency and one time per layer, per era of builds one factor on each, and all have priors, so that a family with
three rows leans on the others. Parameters are logarithms, fitted together to logarithms of times by Gauss-Newton.

Writes ``data/calibration.json``: parameters, and for every row what is predicted when its device is left out of the
fit. That error, and no other, is published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.planner import formulas
from llavakit.planner.devices import Device, list_devices, read_rows
from llavakit.planner.models import PlannedModel, published_config
from llavakit.planner.records import Setting, SpeedFit
from llavakit.planner.speed import ERAS

__all__ = ["MeasuredRow", "Residual", "calibrate", "decode_work", "leave_one_out", "list_rows"]

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
# Where k-quants are bound by arithmetic and not by memory.
_K_FAMILIES = ("apple",)
_ROW_SPREAD = 0.06
_DEVICE_SPREAD_FLOOR = 0.05


@dataclass(frozen=True)
class MeasuredRow:
    """One measured speed: tokens per second of prompts and of answers; None where not measured."""

    device: Device
    model: str
    quant: str
    family: str
    era: str
    prompt_tokens: int
    depth: int
    prompt_speed: float | None
    decode_speed: float | None
    source: str


@dataclass(frozen=True)
class Residual:
    """A row's prediction from a fit that has not seen its device."""

    device: str
    model: str
    quant: str
    family: str
    era: str
    measured: float
    predicted: float
    source: str

    @property
    def error(self) -> float:
        """Relative error of the speed."""
        return self.predicted / self.measured - 1


@lru_cache(maxsize=8)
def _text_model(name: str) -> PlannedModel:
    """Return a language model of the measured rows, as a configuration of ours."""
    if name == "LLaMA-3 8B":
        config = published_config("llava:7b")
        text = replace(config.text_config, vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
    else:
        config = published_config("llava:7b" if "7B" in name else "llava:13b")
        text = replace(config.text_config, vocab_size=32000)
    return PlannedModel(name, replace(config, text_config=text), {})


@lru_cache(maxsize=1)
def list_rows() -> tuple[MeasuredRow, ...]:
    """Return the rows of ``data/speeds.csv`` that are used: one device, one known model."""
    devices = {device.name: device for device in list_devices()}
    rows = []
    for row in read_rows("speeds.csv"):
        if row["is_used"] != "yes" or row["num_devices"] != "1":
            continue
        device = devices[row["device"]]
        if row["backend"] not in (device.backend, "vulkan"):
            continue  # a GPU's machine measured on its processor
        family = "vulkan on nvidia" if row["backend"] == "vulkan" and device.backend == "cuda" else device.family
        rows.append(
            MeasuredRow(
                device,
                row["model"],
                row["quant"],
                family,
                min(max(row["era"][:4], ERAS[0]), ERAS[-1]),
                int(row["prompt_tokens"] or 512),
                int(row["mean_context_tokens"] or 128),
                float(row["prompt_tokens_per_s"]) if row["prompt_tokens_per_s"] else None,
                float(row["decode_tokens_per_s"]) if row["decode_tokens_per_s"] else None,
                row["source"],
            )
        )
    return tuple(rows)


@dataclass(frozen=True)
class _Work:
    """A row as the fit sees it: what efficiency divides, what joules multiply, what a time per layer multiplies."""

    row: MeasuredRow
    ideal_s: float
    per_watt: float
    layers: float
    measured_s: float
    efficiency: str
    family: str
    era: str


def decode_work(row: MeasuredRow) -> _Work | None:
    """Return what a row's token reads; None where its speed was not measured."""
    if row.decode_speed is None:
        return None
    model = _text_model(row.model)
    quant = model.quantize(row.quant)
    cache = formulas.kv_bytes(model.sizes, Setting(), model.sizes.num_layers, row.depth)
    total = quant.head_bytes + sum(quant.layer_bytes) + cache
    return _Work(
        row,
        total / row.device.numbers.bandwidth,
        0.0,
        model.sizes.num_layers + 1,
        1 / row.decode_speed,
        f"{row.family}, k" if quant.is_k and row.family in _K_FAMILIES else row.family,
        row.family,
        _era_of(row.family, row.era),
    )


def _prompt_work(row: MeasuredRow) -> _Work | None:
    if row.prompt_speed is None or row.prompt_tokens < 64:
        return None
    model = _text_model(row.model)
    quant = model.quantize(row.quant)
    tokens = row.prompt_tokens
    sizes = model.sizes
    flops = sizes.linear_flops * tokens + sizes.attention_flops * tokens * (tokens + 1) / 2 + sizes.head_flops
    batches = -(-tokens // 512)
    kind = f"{row.family}, {'half' if quant.is_half else 'quantized'}"
    numbers = row.device.numbers
    per_watt = flops * formulas.operation_cost(quant) / numbers.watts if _has_joules(row.family) else 0.0
    return _Work(
        row,
        flops / formulas.prompt_rate(quant, numbers),
        per_watt,
        sizes.num_layers * batches,
        tokens / row.prompt_speed,
        kind,
        row.family,
        _era_of(row.family, row.era),
    )


def _has_joules(family: str) -> bool:
    return family.startswith("nvidia")


def _era_of(family: str, era: str) -> str:
    """Eras are told apart where rows of several are there."""
    maker = family.split()[0]
    return f"{maker}, {era}" if maker in ("nvidia", "apple") else ""


_WORKS: dict[str, Callable[[MeasuredRow], _Work | None]] = {"decode": decode_work, "prompt": _prompt_work}


class _Fit:
    """One joint fit of one kind of work."""

    def __init__(self, kind: str, works: Sequence[_Work]) -> None:
        self.kind = kind
        efficiency, spread, layer_s, layer_spread, era_spread = _PRIORS[kind]
        # Names of parameters, their prior means and spreads; "all" is the parent of every family.
        means = {"efficiency, all": math.log(efficiency), "layer, all": math.log(layer_s)}
        spreads = {"efficiency, all": spread, "layer, all": layer_spread}
        means["joules"], spreads["joules"] = math.log(_JOULES[0]), _JOULES[1]
        for work in works:
            far = work.family in _FAR_FAMILIES
            names: list[tuple[str, Any]] = [
                (f"efficiency, {work.efficiency}", _FAR_SPREAD if far else _FAMILY_SPREAD[kind]),
                (f"layer, {work.family}", layer_spread),
            ]
            if work.efficiency.endswith(", k"):
                names.append((f"efficiency, {work.family}", _FAMILY_SPREAD[kind]))
            if work.era:
                names += [(f"efficiency in {work.era}", era_spread * 0.5), (f"layer in {work.era}", era_spread)]
            for name, width in names:
                means.setdefault(name, 0.0)
                spreads.setdefault(name, width)
        self._names = list(means)
        self._prior = np.array([means[name] for name in self._names])
        self._spread = np.array([spreads[name] for name in self._names])
        self._index = {name: idx for idx, name in enumerate(self._names)}
        self.values = self._solve(works)

    def _solve(self, works: Sequence[_Work]) -> np.ndarray:
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

    def _linearize(self, works: Sequence[_Work], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of times (N,), and their derivatives (N, parameters)."""
        of_efficiency, of_layers = np.zeros((2, len(works), len(values)))
        for idx, work in enumerate(works):
            of_efficiency[idx, self._of_efficiency(work)] = 1
            of_layers[idx, self._of_layers(work)] = 1
        ideal_s, per_watt, layers = np.array([(w.ideal_s, w.per_watt, w.layers) for w in works]).T
        over_rate = ideal_s / np.exp(of_efficiency @ values)
        in_layers = layers * np.exp(of_layers @ values)
        over_power = per_watt * np.exp(values[self._index["joules"]])
        total = over_rate + in_layers + over_power
        slopes = (in_layers / total)[:, None] * of_layers - (over_rate / total)[:, None] * of_efficiency
        slopes[:, self._index["joules"]] += over_power / total
        return np.log(total), slopes

    def _of_efficiency(self, work: _Work) -> list[int]:
        family = work.efficiency.removesuffix(", k")
        names = {
            "efficiency, all",
            f"efficiency, {family}",
            f"efficiency, {work.efficiency}",
            f"efficiency in {work.era}",
        }
        return [self._index[name] for name in names if name in self._index]

    def _of_layers(self, work: _Work) -> list[int]:
        names = ("layer, all", f"layer, {work.family}", f"layer in {work.era}")
        return [self._index[name] for name in names if name in self._index]

    def _sum(self, values: np.ndarray, indices: list[int]) -> float:
        return float(values[indices].sum())

    def predict_s(self, work: _Work) -> float:
        """Time of a row."""
        return math.exp(float(self._linearize([work], self.values)[0][0]))

    @property
    def joules(self) -> float:
        """Energy of an operation on NVIDIA's cards."""
        return math.exp(float(self.values[self._index["joules"]]))

    def terms(self, efficiency: str, family: str, era: str) -> tuple[float, float]:
        """Efficiency, at most 1, and time per layer."""
        work = _Work(None, 1.0, 0.0, 1.0, 1.0, efficiency, family, era)  # type: ignore[arg-type]
        return (
            math.exp(self._sum(self.values, self._of_efficiency(work))),
            math.exp(self._sum(self.values, self._of_layers(work))),
        )


def leave_one_out(kind: str, rows: Sequence[MeasuredRow] | None = None) -> list[Residual]:
    """Predict every row from a fit without its device.

    Parameters
    ----------
    kind : {"decode", "prompt"}
    rows : sequence of MeasuredRow, optional
        By default those of the table.
    """
    works = [work for row in (list_rows() if rows is None else rows) if (work := _WORKS[kind](row)) is not None]
    residuals = []
    for device in sorted({work.row.device.name for work in works}):
        fit = _Fit(kind, [work for work in works if work.row.device.name != device])
        for work in works:
            if work.row.device.name == device:
                row, amount = work.row, 1 if kind == "decode" else work.row.prompt_tokens
                residuals.append(
                    Residual(
                        device,
                        row.model,
                        row.quant,
                        row.family,
                        row.era,
                        amount / work.measured_s,
                        amount / fit.predict_s(work),
                        row.source,
                    )
                )
    return residuals


def _spread_of(residuals: Sequence[Residual], family: str) -> float:
    """Root mean square of log errors of left-out devices of a family, drawn to that of all where it has few."""
    own = [math.log(r.predicted / r.measured) ** 2 for r in residuals if r.family == family]
    everyone = sum(math.log(r.predicted / r.measured) ** 2 for r in residuals) / len(residuals)
    return max(_DEVICE_SPREAD_FLOOR, math.sqrt((sum(own) + 4 * everyone) / (len(own) + 4)))


def calibrate() -> dict[str, Any]:
    """Fit everything and return what is stored."""
    works = {kind: [w for row in list_rows() if (w := make(row)) is not None] for kind, make in _WORKS.items()}
    fits = {kind: _Fit(kind, found) for kind, found in works.items()}
    residuals = {kind: leave_one_out(kind) for kind in works}
    families = sorted({row.family for row in list_rows()})
    stored = []
    for family in families:
        for era in ERAS:
            key = _era_of(family, era)
            decode_efficiency, decode_layer_s = fits["decode"].terms(family, family, key)
            k_efficiency, _ = fits["decode"].terms(f"{family}, k", family, key)
            half, prompt_layer_s = fits["prompt"].terms(f"{family}, half", family, key)
            quant, _ = fits["prompt"].terms(f"{family}, quantized", family, key)
            stored.append(
                SpeedFit(
                    family=family,
                    era=era,
                    decode_efficiency=_round(min(decode_efficiency, 1.0)),
                    k_decode_efficiency=_round(min(k_efficiency, 1.0)),
                    prompt_joules=_round(fits["prompt"].joules) if _has_joules(family) else 0.0,
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
        errors = [abs(r["predicted"] / r["measured"] - 1) for r in residuals]
        print(f"{kind}: {len(errors)} rows, mean {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}")
        for family in sorted({r["family"] for r in residuals}):
            own = [abs(r["predicted"] / r["measured"] - 1) for r in residuals if r["family"] == family]
            print(f"  {family}: {len(own)} rows, mean {sum(own) / len(own):.1%}, worst {max(own):.1%}")


if __name__ == "__main__":
    main()
