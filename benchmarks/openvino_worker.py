"""OpenVINO's side of `benchmarks.quantized_products`: reads one JSON request a line, answers with one JSON line.

Runs under an interpreter that has OpenVINO, which need not be ours; nothing else is imported but NumPy.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-not-found, unused-ignore]
from openvino import opset13 as op  # type: ignore[import-not-found, unused-ignore]

_GROUP = 32
_FLUSHED_BYTES = 128 * 1024**2


class Worker:
    """One product with 4-bit weights, compiled."""

    def prepare(self, *, num_columns: int, k: int, threads: int, seed: int) -> dict[str, Any]:
        """Compile the product with random weights; return how far it is from the same weights in float32."""
        rng = np.random.default_rng(seed)
        shape = (num_columns, k // _GROUP, _GROUP)
        numbers = rng.integers(0, 16, shape, dtype=np.uint8)
        flat = numbers.reshape(-1)
        packed = np.ascontiguousarray(flat[0::2] | (flat[1::2] << 4))
        scales = (rng.random((*shape[:2], 1)) * 0.01).astype(np.float16)
        weights = op.constant(ov.Tensor(packed, ov.Shape(shape), ov.Type.u4))
        zero = op.constant(ov.Tensor(np.array([8], np.uint8), ov.Shape([1]), ov.Type.u4))
        wide = op.subtract(op.convert(weights, ov.Type.f16), op.convert(zero, ov.Type.f16))
        rows = op.reshape(op.multiply(wide, op.constant(scales)), op.constant(np.array([num_columns, k])), False)
        x = op.parameter([-1, k], ov.Type.f32)
        model = ov.Model([op.matmul(x, op.convert(rows, ov.Type.f32), False, True)], [x])
        settings = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_GROUP),
        }  # fmt: skip
        compiled = ov.Core().compile_model(model, "CPU", settings)
        self._request, self._k = compiled.create_infer_request(), k
        self._other = np.ones(_FLUSHED_BYTES // 8)
        sample = rng.standard_normal((64, k), dtype=np.float32)
        expected = sample @ ((numbers.astype(np.float32) - 8) * scales.astype(np.float32)).reshape(num_columns, k).T
        found = self._request.infer([sample])[0]
        kinds = [node.get_rt_info()["primitiveType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        return {"error": error, "kernels": [kind for kind in kinds if "gemm" in kind]}

    def multiply(self, *, num_rows: int, repeats: int) -> dict[str, Any]:
        """Time products with num_rows rows, one by one; the weights come from memory and not from a cache."""
        x = np.random.default_rng(1).standard_normal((num_rows, self._k), dtype=np.float32)
        self._request.set_input_tensor(ov.Tensor(x))
        self._request.infer()
        seconds = []
        for _ in range(repeats):
            self._other.sum()
            began = time.perf_counter()
            self._request.infer()
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds}


def main() -> None:
    """Answer until standard input ends."""
    worker = Worker()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("op"))(**request)), flush=True)


if __name__ == "__main__":
    main()
