"""ONNX Runtime's side of `benchmarks.quantized_products`: reads one JSON request a line, answers with one JSON line.

Runs under an interpreter that has onnx and onnxruntime, which need not be ours; nothing else is imported but NumPy.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-not-found, unused-ignore]
from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found, unused-ignore]

_GROUP = 32
_ROUNDS_TO_8_BITS = 4  # the accuracy level at which activations are rounded, the fastest one
_FLUSHED_BYTES = 128 * 1024**2


class Worker:
    """One product with 4-bit weights."""

    def prepare(self, *, num_columns: int, k: int, threads: int, seed: int) -> dict[str, Any]:
        """Build the product with random weights; return how far it is from the same weights in float32."""
        rng = np.random.default_rng(seed)
        num_groups = k // _GROUP
        numbers = rng.integers(0, 16, (num_columns, num_groups, _GROUP), dtype=np.uint8)
        packed = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
        scales = (rng.random((num_columns, num_groups)) * 0.01).astype(np.float32)
        node = helper.make_node(
            "MatMulNBits", ["x", "weights", "scales"], ["out"], domain="com.microsoft", K=k, N=num_columns, bits=4,
            block_size=_GROUP, accuracy_level=_ROUNDS_TO_8_BITS,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, num_columns])],
            [numpy_helper.from_array(packed, "weights"), numpy_helper.from_array(scales.reshape(-1), "scales")],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        self._k, self._other = k, np.ones(_FLUSHED_BYTES // 8)
        sample = rng.standard_normal((64, k), dtype=np.float32)
        expected = sample @ ((numbers.astype(np.float32) - 8) * scales[..., None]).reshape(num_columns, k).T
        (found,) = self._session.run(None, {"x": sample})
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        return {"error": error, "version": onnxruntime.__version__}

    def multiply(self, *, num_rows: int, repeats: int) -> dict[str, Any]:
        """Time products with num_rows rows, one by one; the weights come from memory and not from a cache."""
        x = np.random.default_rng(1).standard_normal((num_rows, self._k), dtype=np.float32)
        self._session.run(None, {"x": x})
        seconds = []
        for _ in range(repeats):
            self._other.sum()
            began = time.perf_counter()
            self._session.run(None, {"x": x})
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
