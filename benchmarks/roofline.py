"""Draw the last run of `benchmarks.quantized_products` as a roofline.

    python -m benchmarks.roofline docs/roofline.svg

Across: operations for every byte of weights, which grow with the rows. Upwards: operations a second. The roofs are what
the same run measured: reading memory on the left, products of 8 bits and of bfloat16 on the right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.common import RESULTS

mpl.use("svg")
import matplotlib.pyplot as plt

_DRAWN = {
    "llavakit q4_k": ("o", "tab:blue"), "llavakit q6_k": ("s", "tab:cyan"), "llavakit q8_0": ("^", "tab:purple"),
    "llavakit float16": ("D", "tab:green"), "OpenVINO u4, group 32": ("v", "tab:orange"),
    "ONNX Runtime 4-bit, block 32": ("<", "tab:brown"), "torch bfloat16": ("x", "tab:red"),
    "torch int8 (_int_mm)": ("+", "tab:pink"), "torch int4, group 32": ("1", "tab:gray"),
}  # fmt: skip


def read_last_run(commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the manifest and the only row of the last run of a commit, or else of those whose commit begins so."""
    lines = (RESULTS / "quantized_products.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in reversed(lines)]
    for is_meant in (str.__eq__, str.startswith):
        for run in runs:
            if is_meant(run["manifest"]["commit"], commit):
                return run["manifest"], run["rows"][0]
    raise SystemExit(f"no run of quantized_products is of commit {commit}; benchmarks/results names those there are.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", default="", help="draw the last run of this commit (default: the last of all)")
    options = parser.parse_args()
    manifest, run = read_last_run(options.commit)
    num_columns, k = run["shape"]
    limits = run["limits"]
    mpl.rcParams["svg.hashsalt"] = "roofline"
    figure, axes = plt.subplots(figsize=(8, 5))
    intensities = [0.5 * 2 ** (step / 8) for step in range(120)]
    for name, key, style in (("8-bit products", "int8_gops", "-"), ("bfloat16 products", "bf16_gflops", "--")):
        roof = limits[key]
        if roof is None:  # not every processor has such products
            continue
        axes.plot(intensities, [min(roof, limits["read_gb_per_s"] * at) for at in intensities], style, color="black",
                  linewidth=1, label=f"limit of reading and of {name}")  # fmt: skip
    for product in run["products"]:
        if product["product"] not in _DRAWN:
            continue
        marker, color = _DRAWN[product["product"]]
        rows = sorted(int(num) for num in product["times"])
        ops = [2 * num * num_columns * k for num in rows]
        rates = [num / product["times"][str(m)]["median_s"] / 1e9 for num, m in zip(ops, rows, strict=True)]
        axes.plot([num / product["weight_bytes"] for num in ops], rates, marker=marker, color=color, linewidth=0.8,
                  label=product["product"])  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.set_xlabel("operations for every byte of weights")
    axes.set_ylabel("10^9 operations a second")
    axes.set_title(f"{num_columns} x {k}, {manifest['num_threads']} threads, {manifest['cpu']}, {manifest['commit']}")
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
