"""llama.cpp's side of `benchmarks.cpu_peers`: reads one JSON request a line, answers with one JSON line.

Runs under an interpreter that has llama-cpp-python, which need not be ours; nothing else is imported but NumPy.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import sys
import time
from typing import Any

import llama_cpp  # type: ignore[import-not-found, unused-ignore]

try:
    from llama_cpp import mtmd_cpp  # type: ignore[import-not-found, unused-ignore]
except (ImportError, OSError, FileNotFoundError):  # a build without the vision part
    mtmd_cpp = None

_BATCH = 512


class Worker:
    """A loaded model with its projector."""

    def load(self, *, model: str, projector: str, threads: int, context: int, sequences: int) -> dict[str, float]:
        """Load both files; the time ends when the first token could be computed."""
        began = time.perf_counter()
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, _BATCH, _BATCH
        params.n_seq_max, params.n_threads, params.n_threads_batch = sequences, threads, threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        if not self.model or not self.context:
            raise RuntimeError("llama.cpp did not load the model")
        if mtmd_cpp is None or not projector:
            self.vision = None
            return {"seconds": time.perf_counter() - began}
        vision = mtmd_cpp.mtmd_context_params_default()
        vision.use_gpu, vision.n_threads, vision.print_timings = False, threads, False
        if hasattr(vision, "warmup"):
            vision.warmup = False
        self.vision = mtmd_cpp.mtmd_init_from_file(projector.encode(), self.model, vision)
        if not self.vision:
            raise RuntimeError("llama.cpp did not load the projector")
        return {"seconds": time.perf_counter() - began}

    def picture(self, *, pixels: str, size: int, height: int | None = None) -> dict[str, Any]:
        """Encode a picture, raw RGB in a file, square by default; return the time of tower and projector alone."""
        with pathlib.Path(pixels).open("rb") as file:
            data = file.read()
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        bitmap = mtmd_cpp.mtmd_bitmap_init(size, height or size, buffer)
        text = mtmd_cpp.mtmd_input_text()
        text.text, text.add_special, text.parse_special = mtmd_cpp.mtmd_default_marker(), True, True
        if hasattr(text, "text_len"):
            text.text_len = len(text.text)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if mtmd_cpp.mtmd_tokenize(self.vision, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError("llama.cpp did not take the picture")
        for idx in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, idx)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                began = time.perf_counter()
                if mtmd_cpp.mtmd_encode_chunk(self.vision, chunk):
                    raise RuntimeError("llama.cpp did not encode the picture")
                seconds = time.perf_counter() - began
                num_rows = int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk))
                self.features = mtmd_cpp.mtmd_get_output_embd(self.vision)
                self.num_rows = num_rows
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        return {"seconds": seconds, "rows": num_rows}

    def save_features(self, *, path: str, width: int) -> dict[str, float]:
        """Write the last picture's features as raw float32."""
        with pathlib.Path(path).open("wb") as file:
            file.write(ctypes.string_at(self.features, self.num_rows * width * 4))
        return {}

    def prompt(self, *, ids: list[int]) -> dict[str, float]:
        """Compute a prompt from an empty cache to the logits of its last token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        began = time.perf_counter()
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            self._decode([(token, start + idx, 0) for idx, token in enumerate(part)], last=start + _BATCH >= len(ids))
        return {"seconds": time.perf_counter() - began}

    def decode(self, *, depth: int, steps: int, batch: int) -> dict[str, float]:
        """Time single steps of ``batch`` sequences that have ``depth`` tokens each; the prompt is not counted."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        for sequence in range(batch):
            for start in range(0, depth, _BATCH):
                size = min(_BATCH, depth - start)
                self._decode([(100 + start + idx, start + idx, sequence) for idx in range(size)], last=False)
        times = []
        for step in range(steps + 1):
            began = time.perf_counter()
            self._decode([(7 + step, depth + step, sequence) for sequence in range(batch)], last=True, all_rows=True)
            times.append(time.perf_counter() - began)
        return {"seconds": sorted(times[1:])[steps // 2]}

    def logits(self, *, ids: list[int], path: str) -> dict[str, float]:
        """Write the logits of every position as raw float32."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        with pathlib.Path(path).open("wb") as file:
            for start in range(0, len(ids), _BATCH):
                part = ids[start : start + _BATCH]
                rows = [(token, start + idx, 0) for idx, token in enumerate(part)]
                self._decode(rows, last=True, all_rows=True)
                for idx in range(len(part)):
                    file.write(ctypes.string_at(llama_cpp.llama_get_logits_ith(self.context, idx), width * 4))
        return {"width": width}

    def memory(self) -> dict[str, int]:
        """Greatest resident size so far, in bytes."""
        with pathlib.Path("/proc/self/status").open(encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return {"peak_bytes": int(lines["VmHWM"].split()[0]) * 1024}

    def _decode(self, entries: list[tuple[int, int, int]], *, last: bool, all_rows: bool = False) -> None:
        batch = self.batch
        batch.n_tokens = len(entries)
        for idx, (token, position, sequence) in enumerate(entries):
            batch.token[idx], batch.pos[idx] = token, position
            batch.n_seq_id[idx], batch.seq_id[idx][0] = 1, sequence
            batch.logits[idx] = last and (all_rows or idx == len(entries) - 1)
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp did not decode")
        llama_cpp.llama_synchronize(self.context)


def main() -> None:
    """Serve until the input ends. What the library prints to standard output must not mix with the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(getattr(worker, request.pop("op"))(**request)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
