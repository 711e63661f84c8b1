"""What single products say of each type: operations of a weight, from records of `benchmarks.quantized_products`.

One row takes the slower of reading its weights and of unpacking and multiplying them; many rows take one unpacking and
then their operations. The newest record that has a type counts, for kernels change. Operations are counted in the
machine's plain float32 ones.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS
from llavakit.planner.formulas import slower_of

__all__ = ["ProductShares", "fit_products"]

# Operations of a weight before any product is seen, and how far they may be off, as a logarithm; what a time is off.
_OPERATIONS = (5.5, 0.5)
_TIME_SPREAD = 0.08
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class ProductShares:
    """Operations of a weight by type, shares of the arithmetic rate that many rows reach, and the records used.

    ``pass_rates`` are a type's share over ``quant_share``; the latter is the median of 8-bit products.
    """

    row_operations: dict[str, float]
    pass_operations: dict[str, float]
    pass_rates: dict[str, float]
    quant_share: float
    half_share: float
    dates: dict[str, str]


def fit_products(instruction_set: str, path: Path = RESULTS / "quantized_products.jsonl") -> ProductShares:
    """Read every type off the newest record of these instructions that has it."""
    newest: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for row in record["rows"]:
            if _instructions_of(row) != instruction_set:
                continue
            for product in row["products"]:
                maker, _, name = product["product"].partition(" ")
                if maker == "llavakit":
                    newest[name] = (record["manifest"]["date"], row, product)
    if not newest:
        raise SystemExit(f"no products with {instruction_set} are stored; run python -m benchmarks.quantized_products.")
    rows = {name: _one_row(row, product) for name, (_, row, product) in newest.items()}
    many = {name: _many_rows(row, product, is_half=name in _HALF) for name, (_, row, product) in newest.items()}
    quant = [share for name, (share, _) in many.items() if name not in _HALF]
    half = [share for name, (share, _) in many.items() if name in _HALF]
    return ProductShares(
        row_operations=rows,
        pass_operations={name: operations for name, (_, operations) in many.items()},
        pass_rates={
            name: 1.0 if name in _HALF else float(f"{share / np.median(quant):.3g}")
            for name, (share, _) in many.items()
        },
        quant_share=float(np.median(quant)),
        half_share=float(np.median(half)),
        dates={name: date for name, (date, _, _) in newest.items()},
    )


def _instructions_of(row: dict[str, Any]) -> str:
    """Instructions of a record's machine; the first records do not name them, and were all made with VNNI."""
    named = row.get("instruction_set")
    if named is not None:
        return str(named)
    return "avx512_bf16" if row["limits"]["bf16_gflops"] is not None else "avx512_vnni"


def _plain_rate(row: dict[str, Any]) -> float:
    """Plain float32 operations per second: measured, or half of those in bfloat16."""
    limits = row["limits"]
    return float(limits.get("fp32_gflops") or limits["bf16_gflops"] / 2) * 1e9


def _one_row(row: dict[str, Any], product: dict[str, Any]) -> float:
    """Operations of a weight for one row: the most likely ones.

    Reads are as fast as the probe or as the fastest product of the record, whichever is faster: on a busy host either
    may have met the slower memory. A product that is bound by reading says little of its operations, and keeps what was
    thought before.
    """
    seconds = [(p["weight_bytes"] / p["times"]["1"]["min_s"]) for p in row["products"] if "llavakit" in p["product"]]
    read_s = product["weight_bytes"] / max(row["limits"]["read_gb_per_s"] * 1e9, *seconds)
    weights = math.prod(row["shape"])
    tried = np.geomspace(1.0, 200.0, 2000)
    planned = np.array([slower_of(read_s, weights * float(one) / _plain_rate(row)) for one in tried])
    off = np.log(planned / product["times"]["1"]["min_s"]) / _TIME_SPREAD
    before = np.log(tried / _OPERATIONS[0]) / _OPERATIONS[1]
    return float(f"{tried[np.argmin(off**2 + before**2)]:.3g}")


def _many_rows(row: dict[str, Any], product: dict[str, Any], *, is_half: bool) -> tuple[float, float]:
    """Share of the arithmetic rate, and operations of one unpacking, from two numbers of rows."""
    counts = sorted(int(count) for count in product["times"])[-2:]
    few, many = (product["times"][str(count)]["min_s"] for count in counts)
    weights = math.prod(row["shape"])
    a_row_s = (many - few) / (counts[1] - counts[0])
    rate = row["limits"]["int8_gops"] * (0.5e9 if is_half else 1e9)
    unpacking_s = max(few - counts[0] * a_row_s, 0.0)
    return 2 * weights / (a_row_s * rate), float(f"{unpacking_s * _plain_rate(row) / weights:.3g}")
