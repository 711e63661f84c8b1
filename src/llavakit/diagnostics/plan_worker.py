"""One run of a model in a process of its own, for `llavakit.diagnostics.plan_check`: memory and times as JSON.

python -m llavakit.diagnostics.plan_worker '{"model": ..., ...}'
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from typing import Any

from llavakit.diagnostics.memory import read_memory

__all__ = ["run"]


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load, answer one prompt, and say what it took.

    ``request`` has ``model`` (path or name), ``num_threads``, ``kv_dtype``, ``num_images``, ``num_prompt_tokens`` and
    ``num_new_tokens``.
    """
    import torch

    from llavakit.api.loading import load
    from llavakit.core.types import SamplingParams
    from llavakit.diagnostics.generated import make_picture
    from llavakit.engine.engine import Engine
    from llavakit.kernels.library import load_library
    from llavakit.processing.tokenizer import StreamDecoder

    load_library()
    torch.set_num_threads(request["num_threads"])
    # Every library is in memory once the embedded model has answered: what follows is the model's own.
    small = load("llava:tiny", device="cpu")
    small.chat("What is this?", images=[make_picture(0)], max_new_tokens=1)
    del small
    gc.collect()
    before = read_memory()
    loaded = load(request["model"], device="cpu", kv_dtype=request["kv_dtype"])
    # Pictures of different contents, so that each is encoded; then words up to the length.
    pictures = [make_picture(seed) for seed in range(request["num_images"])]
    prompt = loaded.prepare("What is in this picture?", images=pictures)
    image_id = loaded.config.image_token_id
    ids = [prompt.token_ids[0], *(token for token in prompt.token_ids if token == image_id)]
    ids += [prompt.token_ids[-1]] * (request["num_prompt_tokens"] - len(ids))
    prompt = replace(prompt, token_ids=tuple(ids))
    engine = Engine(loaded.model, make_decoder=lambda: StreamDecoder(loaded.tokenizer))
    (generation,) = engine.submit([prompt], [SamplingParams(max_new_tokens=request["num_new_tokens"], ignore_eos=True)])
    for _ in engine.run([generation]):
        pass
    after, timings = read_memory(), generation.timings
    return {
        "program_bytes": None if before is None else before.resident,
        "peak_bytes": None if after is None else after.peak_resident,
        "anonymous_bytes": None if after is None else after.anonymous,
        "file_bytes": None if after is None else after.file_backed,
        "vision_s": timings.image_encode_s,
        "prompt_s": timings.prefill_s,
        "decode_s": timings.decode_s / max(1, request["num_new_tokens"] - 1),
        "num_prompt_tokens": len(prompt.token_ids),
        "instruction_set": load_library().best.name.lower(),
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
