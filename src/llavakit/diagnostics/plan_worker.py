"""One run of a model in a process of its own, for `llavakit.diagnostics.plan_check`: memory and times as JSON.

python -m llavakit.diagnostics.plan_worker '{"model": ..., ...}'
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import fmean, harmonic_mean
from typing import TYPE_CHECKING, Any

from llavakit.diagnostics.memory import read_memory

if TYPE_CHECKING:
    from llavakit.core.types import SamplingParams
    from llavakit.engine.engine import Engine
    from llavakit.engine.generation import EnginePrompt

__all__ = ["run"]

_MACHINE_SECONDS = 2.0
# Beside every token: not much, since each time it is allocated anew, and for a moment.
_LEAST_READ_BYTES, _READ_SECONDS = 256 << 20, 0.05
_MEASURED_TOKENS = 16  # of an answer, evenly spread


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load, answer one prompt, and say what it took.

    ``request`` has ``model`` (path or name), ``num_threads``, ``kv_dtype``, ``num_images``, ``num_prompt_tokens``,
    ``num_new_tokens`` and ``num_rounds``. Memory is that of the first answer. Every further round measures the machine
    and answers once more, so that speeds and limits are of the same minutes; the best of each counts, since a neighbour
    on the machine can only slow them down. How fast memory is read can change from one second to the next, so it is
    measured before and after further tokens, too: ``decode_s`` and ``token_read_gb_per_s`` are the means of these.
    """
    import torch

    from llavakit.api.loading import load
    from llavakit.core.types import SamplingParams
    from llavakit.diagnostics.generated import make_picture
    from llavakit.engine.engine import Engine
    from llavakit.kernels.library import load_library
    from llavakit.kernels.machine import choose_buffer_bytes, measure_machine
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
    params = SamplingParams(max_new_tokens=request["num_new_tokens"], ignore_eos=True)
    times = [_answer(engine, prompt, params)]
    after, limits = read_memory(), []
    tokens: list[tuple[float, float]] = []

    num_bytes = choose_buffer_bytes(request["num_threads"], least_bytes=_LEAST_READ_BYTES)

    def measure_read() -> float:
        return load_library().measure_read(
            num_bytes=num_bytes, num_threads=request["num_threads"], num_streams=1, seconds=_READ_SECONDS
        )

    for _ in range(request["num_rounds"] - 1):
        limits.append(measure_machine(_MACHINE_SECONDS, num_threads=request["num_threads"]))
        engine.reset()
        times.append(_answer(engine, prompt, params, measure_read, tokens))
    found = {name: min(found[name] for found in times) for name in times[0]}
    if tokens:
        found["decode_s"] = fmean(seconds for seconds, _ in tokens)
    return {
        "program_bytes": None if before is None else before.resident,
        "peak_bytes": None if after is None else after.peak_resident,
        "anonymous_bytes": None if after is None else after.anonymous,
        "file_bytes": None if after is None else after.file_backed,
        **found,
        "token_read_gb_per_s": harmonic_mean([read for _, read in tokens]) if tokens else None,
        "num_prompt_tokens": len(prompt.token_ids),
        "instruction_set": load_library().best.name.lower(),
        "rounds": times,
        "tokens": tokens,
        "limits": [asdict(limit) for limit in limits],
    }


def _answer(
    engine: Engine, prompt: EnginePrompt, params: SamplingParams, measure_read: Callable[[], float] | None = None,
    tokens: list[tuple[float, float]] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Answer once; seconds of the pictures, of the prompt and of a further token.

    With ``measure_read``, append to ``tokens`` the seconds of further ones, and the mean of the reads around each.
    """
    (generation,) = engine.submit([prompt], [params])
    stride = max(1, math.ceil((params.max_new_tokens - 1) / _MEASURED_TOKENS))
    events = engine.run([generation])
    next(events)
    for idx in itertools.count():
        is_measured = measure_read is not None and idx % stride == 0
        before = measure_read() if measure_read is not None and is_measured else 0.0
        began = time.perf_counter()
        if next(events, None) is None:
            break
        seconds = time.perf_counter() - began
        if measure_read is not None and tokens is not None and is_measured:
            tokens.append((seconds, (before + measure_read()) / 2))
    timings = generation.timings
    return {
        "vision_s": timings.image_encode_s,
        "prompt_s": timings.prefill_s,
        "decode_s": timings.decode_s / max(1, params.max_new_tokens - 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
