"""Products with quantized weights beside the fastest others, and beside the machine's limits.

    python -m venv FOLDER && FOLDER/bin/pip install openvino onnxruntime onnx numpy
    python -m benchmarks.quantized_products --others FOLDER

One matrix of the 13B (13824 x 5120) and its types, from one row (a token) to 600 (a picture with its question). The
same run multiplies with OpenVINO's and ONNX Runtime's 4-bit weights (groups of 32, dynamic 8-bit activations), with
torch in bfloat16, float32, 8 and 4 bits, and measures what the processor's 8-bit products and its memory allow. All
take turns, so that a busy neighbour meets all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, make_manifest, make_table, summarise, write_result
from benchmarks.cpu_peers import Side
from llavakit.kernels.library import Rate, load_library
from llavakit.model.stored_matrix import StoredMatrix
from llavakit.model.threads import prefer_large_pages

_N, _K = 13824, 5120
_INT4_GROUP = 32
_REST_S = 0.05  # threads of the library before stay awake for a while, and would take part of a processor
_OTHERS = {"openvino": "OpenVINO u4, group 32", "onnxruntime": "ONNX Runtime 4-bit, block 32"}


class Product:
    """One way to multiply: a name, the bytes of its weights, and a call that returns seconds."""

    def __init__(self, name: str, num_bytes: int, run: Callable[[int, int], list[float]]) -> None:
        self.name, self.num_bytes, self.run = name, num_bytes, run


def make_ours(dtype: str, copies: int) -> Product:
    """Multiply by random weights; several copies in turn, so that one row reads memory and not the cache."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((_N, _K), dtype=np.float32) * 0.02)
    if dtype in ("float16", "bfloat16"):
        data = weight.to(getattr(torch, dtype)).view(torch.uint8).numpy().reshape(-1)
        first = StoredMatrix(data, dtype, (_N, _K))
    else:
        first = StoredMatrix.quantize(weight, dtype)
    matrices = [first, *(StoredMatrix(first.data.copy(), dtype, (_N, _K)) for _ in range(copies - 1))]
    return Product(f"llavakit {dtype}", first.data.nbytes, _in_turn([matrix.multiply for matrix in matrices]))


def make_torch(dtype: torch.dtype, copies: int) -> Product:
    """Multiply in torch by dense weights, without rounding the input first."""
    weights = [torch.randn((_N, _K)).mul_(0.02).to(dtype) for _ in range(copies)]
    name = str(dtype).removeprefix("torch.")
    calls = [lambda x, weight=weight: torch.nn.functional.linear(x.to(dtype), weight) for weight in weights]
    return Product(f"torch {name}", weights[0].nbytes, _in_turn(calls))


def make_torch_int8(copies: int) -> Product:
    """Multiply in torch by 8-bit weights, every row of the input rounded to 8 bits with a scale of its own."""
    weights = [torch.randint(-127, 128, (_N, _K), dtype=torch.int8) for _ in range(copies)]
    scales = torch.rand(_N) * 1e-3

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        factor = x.abs().amax(1, keepdim=True) / 127
        return torch._int_mm((x / factor).round_().to(torch.int8), weight.t()) * factor * scales

    calls = [lambda x, weight=weight: multiply(x, weight) for weight in weights]
    return Product("torch int8 (_int_mm)", weights[0].nbytes, _in_turn(calls))


def make_torch_int4(copies: int) -> Product:
    """Multiply in torch by 4-bit weights in groups of 32, in bfloat16."""
    packed = [
        torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (_N, _K), dtype=torch.int32), 1)
        for _ in range(copies)
    ]
    scales = (torch.rand((_K // _INT4_GROUP, _N, 2)) * 1e-3).to(torch.bfloat16)
    calls = [
        lambda x, weight=weight: torch._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), weight, _INT4_GROUP, scales)
        for weight in packed
    ]
    return Product("torch int4, group 32", packed[0].nbytes + scales.nbytes, _in_turn(calls))


def make_other(side: Side, name: str) -> Product:
    """Multiply in another library's process by 4-bit weights with a 16-bit scale for every 32."""

    def ask(num_rows: int, repeats: int) -> list[float]:
        return list(side.ask("multiply", num_rows=num_rows, repeats=repeats)["seconds"])

    return Product(name, _N * _K * 9 // 16, ask)


def _in_turn(calls: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> Callable[[int, int], list[float]]:
    def run(num_rows: int, repeats: int) -> list[float]:
        x = torch.randn((num_rows, _K))
        seconds = []
        with torch.inference_mode():
            calls[-1](x)
            for idx in range(repeats):
                began = time.perf_counter()
                calls[idx % len(calls)](x)
                seconds.append(time.perf_counter() - began)
        return seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--others", type=Path, help="a virtual environment that has openvino, onnxruntime and onnx")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64, 600])
    parser.add_argument(
        "--types", nargs="*", default=["q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q2_k", "q3_k", "float16"]
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prefer_large_pages()  # as with every loaded model; for torch's own products as well
    library = load_library()
    limits = {
        "int8_gops": library.measure_rate(Rate.INT8_DOT, num_threads=options.threads, seconds=1),
        "bf16_gflops": library.measure_rate(Rate.BF16_DOT, num_threads=options.threads, seconds=1),
        "fp32_gflops": library.measure_rate(Rate.FP32_FMA, num_threads=options.threads, seconds=1),
        "read_gb_per_s": library.measure_read(num_bytes=1 << 30, num_threads=options.threads, num_streams=1, seconds=1),
    }
    products = [make_ours(dtype, copies=4) for dtype in options.types]
    products += [make_torch(torch.bfloat16, copies=2), make_torch(torch.float32, copies=2)]
    products += [make_torch_int8(copies=4), make_torch_int4(copies=4)]
    sides = []
    for name, title in _OTHERS.items() if options.others else ():
        side = Side([str(options.others / "bin/python"), str(ROOT / f"benchmarks/{name}_worker.py")])
        told = side.ask("prepare", num_columns=_N, k=_K, threads=options.threads, seed=0)
        print(f"{title}: {told}", file=sys.stderr)
        sides.append(side)
        products.append(make_other(side, title))
    times: dict[tuple[str, int], list[float]] = {}
    for round_idx in range(options.rounds):
        for num_rows in options.rows:
            for product in products if round_idx % 2 == 0 else reversed(products):
                repeats = 8 if num_rows <= 8 else 2
                time.sleep(_REST_S)
                times.setdefault((product.name, num_rows), []).extend(product.run(num_rows, repeats))
    for side in sides:
        side.close()
    rows: list[dict[str, Any]] = []
    for product in products:
        row: dict[str, Any] = {"product": product.name, "weight_bytes": product.num_bytes, "times": {}}
        for num_rows in options.rows:
            seconds = times[product.name, num_rows]
            row["times"][str(num_rows)] = summarise(seconds)
            row[f"{num_rows} rows"] = round(2 * num_rows * _N * _K / median(seconds) / 1e9)
        if 1 in options.rows:
            row["GB/s at 1 row"] = round(product.num_bytes / median(times[product.name, 1]) / 1e9, 1)
        rows.append(row)
    manifest = make_manifest(num_threads=options.threads)
    instruction_set = library.best.name.lower()
    record = {"shape": [_N, _K], "instruction_set": instruction_set, "limits": limits, "products": rows}
    write_result("quantized_products", manifest, [record])
    print(f"{_N} x {_K}, {options.threads} threads, GOP/s; commit {manifest['commit']}; limits {limits}\n")
    print(make_table(rows, ["product", *(f"{num} rows" for num in options.rows), "GB/s at 1 row"]))


if __name__ == "__main__":
    main()
