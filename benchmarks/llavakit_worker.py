"""Our side of `benchmarks.cpu_peers`: reads one JSON request a line, answers with one JSON line."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import llavakit
from llavakit.core.types import SamplingParams
from llavakit.diagnostics.generated import make_picture
from llavakit.engine.engine import Engine
from llavakit.engine.generation import Generation
from llavakit.processing.prompt import PreparedPrompt
from llavakit.processing.tokenizer import StreamDecoder


class Worker:
    """A loaded model with its projector. Speaks the language of ``llama_cpp_worker.Worker``."""

    def load(self, *, model: str, projector: str, threads: int, context: int, sequences: int) -> dict[str, float]:
        """Load both files; the projector is found beside the model."""
        del projector, context, sequences
        torch.set_num_threads(threads)
        began = time.perf_counter()
        self.loaded = llavakit.load(model, device="cpu")
        seconds = time.perf_counter() - began
        self.plain = self.loaded.prepare("What is in this picture?")
        return {"seconds": seconds}

    @torch.inference_mode()
    def picture(self, *, pixels: str, size: int) -> dict[str, Any]:
        """Encode a picture; return the time of tower and projector alone."""
        del pixels, size
        values = torch.from_numpy(self.loaded.prepare("?", images=[make_picture(0)]).pixel_values)
        began = time.perf_counter()
        rows = self.loaded.model.encode_images(values)
        return {"seconds": time.perf_counter() - began, "rows": rows.shape[1]}

    def prompt(self, *, ids: list[int]) -> dict[str, float]:
        """Compute a prompt from an empty cache to its first token."""
        began = time.perf_counter()
        self._run([self._prompt(ids)], 1)
        return {"seconds": time.perf_counter() - began}

    def decode(self, *, depth: int, steps: int, batch: int) -> dict[str, float]:
        """Time single steps of ``batch`` sequences; the prompt is not counted."""
        # The first token of an answer comes out of the prompt. No two prompts begin alike: nothing is shared.
        prompts = [self._prompt([1, 200 + row, *range(100, 98 + max(depth, 2))]) for row in range(batch)]
        times = [one.timings.decode_s / steps for one in self._run(prompts, steps + 1)]
        return {"seconds": sum(times) / len(times)}

    @torch.inference_mode()
    def logits(self, *, ids: list[int], path: str) -> dict[str, int]:
        """Write the logits of every position as raw float32."""
        model = self.loaded.model
        tokens = torch.tensor([ids])
        rows = model(model.embed(tokens, None), torch.arange(len(ids))[None])[0].float().contiguous()
        Path(path).write_bytes(rows.numpy().tobytes())
        return {"width": rows.shape[1]}

    def memory(self) -> dict[str, int]:
        """Greatest resident size so far, in bytes."""
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return {"peak_bytes": int(text.split("VmHWM:")[1].split()[0]) * 1024}

    def _prompt(self, ids: list[int]) -> PreparedPrompt:
        return replace(self.plain, token_ids=tuple(ids))

    def _run(self, prompts: list[PreparedPrompt], num_tokens: int) -> list[Generation]:
        engine = Engine(self.loaded.model, make_decoder=lambda: StreamDecoder(self.loaded.tokenizer))
        generations = engine.submit(
            prompts, [SamplingParams(max_new_tokens=num_tokens, ignore_eos=True)] * len(prompts)
        )
        for _ in engine.run(generations):
            pass
        return generations


def main() -> None:
    """Serve until the input ends."""
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("op"))(**request)), flush=True)


if __name__ == "__main__":
    main()
