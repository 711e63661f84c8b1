"""``llavakit bench``: where the time of an answer goes, each part as a share of what the machine can do.

In: a model's name. Out: a `BenchReport`, one row per part, median and spread. The share of a part is the time that
the machine's measured limits would need (bytes over memory bandwidth or operations over arithmetic rate, whichever
is longer) over the time it took. The first run of every repeated part is reported apart and not counted.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from llavakit.api.loaded_model import LoadedModel
from llavakit.api.loading import load
from llavakit.core.errors import ConfigError
from llavakit.core.shapes import decode_flops, kv_bytes_per_token, prefill_flops, projector_flops, vision_flops
from llavakit.core.types import SamplingParams
from llavakit.core.version import __version__
from llavakit.diagnostics.generated import encode_jpeg, make_picture
from llavakit.diagnostics.memory import MemoryUse, drop_page_cache, read_memory
from llavakit.engine.engine import Engine
from llavakit.kernels.machine import MachineLimits, measure_machine
from llavakit.model.storage import count_bytes, count_types, has_quantized, has_words
from llavakit.processing.image import preprocess
from llavakit.processing.prompt import PreparedPrompt
from llavakit.processing.sources import open_image
from llavakit.processing.tokenizer import StreamDecoder
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

__all__ = ["BenchPart", "BenchReport", "bench_loaded", "bench_model"]

ProgressFn = Callable[[str, int, int], None]
_QUESTION = "What is in this picture?"
_WORD = " word"
_MACHINE_SECONDS = 2.0
_BEFORE_FIRST_TOKEN = ("picture file", "resize", "vision tower", "projector", "prompt")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPart:
    """One row: a part of an answer.

    Parameters
    ----------
    name : str
    median_s, min_s, max_s : float
        Over the counted runs.
    first_s : float or None
        The run before the counted ones; None where every run is counted.
    num_runs : int
    amount, unit : float, str
        How much of what is done in one run: ``640 tokens``.
    limit_s : float or None
        The least time that the machine's measured limits allow; None where they do not apply: a load maps files, and
        reads hardly any of them.
    bound_by : str or None
        ``memory`` or ``arithmetic``: which of the two limits that is.
    """

    name: str
    median_s: float
    min_s: float
    max_s: float
    first_s: float | None
    num_runs: int
    amount: float
    unit: str
    limit_s: float | None = None
    bound_by: str | None = None

    @property
    def rate(self) -> float:
        """Amount per second."""
        return self.amount / self.median_s if self.median_s > 0 else 0.0

    @property
    def share(self) -> float | None:
        """Share of the machine's limit, 0 to about 1."""
        return self.limit_s / self.median_s if self.limit_s is not None and self.median_s > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """What was measured.

    Parameters
    ----------
    machine : MachineLimits or None
        None where the model runs on a GPU: the limits measured are those of the processor.
    cached_share : float or None
        Share of the model's files that stayed in the page cache for the cold start; above 0 the cold start was not
        quite cold, None where that could not be told.
    memory : MemoryUse or None
        At the end, of the whole process, all parts above included.
    """

    model: str
    dtype: str
    device: str
    version: str
    torch_version: str
    num_threads: int
    num_prompt_tokens: int
    num_new_tokens: int
    weight_bytes: int
    kv_bytes: int
    machine: MachineLimits | None
    cached_share: float | None
    parts: tuple[BenchPart, ...]
    memory: MemoryUse | None

    def to_json(self) -> str:
        """Return the report as one JSON object, rates and shares included."""
        content = asdict(self)
        content["parts"] = [{**asdict(part), "rate": part.rate, "share": part.share} for part in self.parts]
        return json.dumps(content, ensure_ascii=False)


def bench_model(
    model: str | Path,
    *,
    dtype: str | None = None,
    device: str | None = None,
    mmproj: str | Path | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int = 32,
    repeats: int = 5,
    on_progress: ProgressFn | None = None,
) -> BenchReport:
    """Measure a model, loading it cold and warm.

    Parameters
    ----------
    model : str or Path
    dtype, device : str, optional
    mmproj : str or Path, optional
        As for `llavakit.load`.
    prompt_tokens : int, optional
        Length of the prompt, its picture included; by default the picture and 64 tokens, as the context allows.
    new_tokens : int, default 32
        At least 2.
    repeats : int, default 5
        Counted runs of every part.
    on_progress : callable, optional
        Called with the part's name, steps done and steps in all.

    Returns
    -------
    BenchReport

    Raises
    ------
    ConfigError
        If a count is out of range or the prompt does not fit into the context.
    StoreError, WeightsError
        As `llavakit.load`.
    """
    _check_counts(new_tokens, repeats)
    report = on_progress or (lambda _name, _done, _total: None)
    picture = encode_jpeg(make_picture(0))

    def start() -> tuple[LoadedModel, float, float]:
        gc.collect()
        began = time.perf_counter()
        loaded = load(model, dtype=dtype, device=device, mmproj=mmproj)
        loaded_at = time.perf_counter()
        loaded.chat(_QUESTION, images=[picture], max_new_tokens=1)
        return loaded, loaded_at - began, time.perf_counter() - began

    report("load, cold", 0, 1)
    cached_share = drop_page_cache(open_resolved(resolve(model, mmproj=mmproj)).weight_files)
    loaded, load_s, first_s = start()
    parts = [_single("load, cold", load_s, 1, "load"), _single("first token, cold start", first_s, 1, "answer")]
    report("load, cold", 1, 1)
    warm = []
    for idx in range(repeats):
        report("load, warm", idx, repeats)
        del loaded
        loaded, load_s, first_s = start()
        warm.append((load_s, first_s))
    report("load, warm", repeats, repeats)
    parts.append(_part("load, warm", [load for load, _ in warm], 1, "load", has_first=False))
    parts.append(_part("first token, warm start", [first for _, first in warm], 1, "answer", has_first=False))
    measured = bench_loaded(
        loaded, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, on_progress=on_progress
    )
    return replace(measured, parts=tuple(_with_first_token_limit([*parts, *measured.parts])), cached_share=cached_share)


def bench_loaded(
    loaded: LoadedModel,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 32,
    repeats: int = 5,
    machine: MachineLimits | None = None,
    on_progress: ProgressFn | None = None,
) -> BenchReport:
    """Measure a loaded model; see `bench_model`.

    Parameters
    ----------
    machine : MachineLimits, optional
        Measured now if absent.

    Raises
    ------
    ConfigError
        If a count is out of range or the prompt does not fit into the context.
    """
    _check_counts(new_tokens, repeats)
    report = on_progress or (lambda _name, _done, _total: None)
    picture = encode_jpeg(make_picture(0))
    prompt = _make_prompt(loaded, picture, prompt_tokens, new_tokens)
    if machine is None and loaded.device.type == "cpu":
        report("limits of the machine", 0, 1)
        machine = measure_machine(_MACHINE_SECONDS, num_threads=torch.get_num_threads())
        report("limits of the machine", 1, 1)
    limits = _Limits(loaded, machine)
    parts = _picture_parts(loaded, picture, limits, repeats, report)
    parts += _answer_parts(loaded, prompt, limits, new_tokens, repeats, report)
    parts = _with_first_token_limit(parts)
    num_tokens = len(prompt.token_ids)
    return BenchReport(
        model=loaded.name,
        dtype=limits.storage,
        device=str(loaded.device),
        version=__version__,
        torch_version=str(torch.__version__),
        num_threads=torch.get_num_threads(),
        num_prompt_tokens=num_tokens,
        num_new_tokens=new_tokens,
        weight_bytes=count_bytes(loaded.model),
        kv_bytes=kv_bytes_per_token(loaded.config, limits.kv_dtype) * (num_tokens + new_tokens),
        machine=machine,
        cached_share=None,
        parts=tuple(parts),
        memory=read_memory(),
    )


class _Limits:
    """Least times that the machine allows."""

    def __init__(self, loaded: LoadedModel, machine: MachineLimits | None) -> None:
        model = loaded.model
        self.config = loaded.config
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self.kv_dtype = "q8_0" if model.has_kv_blocks else str(model.kv_dtype).removeprefix("torch.")
        self.storage = ", ".join(count_types(model)) if has_quantized(model) else self.dtype
        self._machine = machine
        self.tower_bytes, self.projector_bytes = (
            count_bytes(model.vision_tower),
            count_bytes(model.multi_modal_projector),
        )
        # A step reads one row of the embeddings, which is nothing, unless they are the head as well.
        head_bytes = count_bytes(model.lm_head)
        self._decoder_bytes = sum(count_bytes(layer) for layer in model.language_model.layers) + head_bytes
        self._is_quantized, self._has_words = has_quantized(model), has_words(model)

    def decode_bytes(self, num_context_tokens: int) -> int:
        """Bytes that one further token must read: the decoder, the head, and the cache."""
        return self._decoder_bytes + num_context_tokens * kv_bytes_per_token(self.config, self.kv_dtype)

    def of(self, *, flops: float, num_bytes: float, is_decoder: bool = False) -> dict[str, Any]:
        """Return the fields of a part that does this much."""
        if self._machine is None:
            return {}
        rate = self._machine.fp32_gflops
        # float16 is widened to float32 on a processor (llavakit.model.layers); bfloat16 and integers have instructions.
        if self.dtype == "bfloat16" and self._machine.bf16_gflops is not None:
            rate = self._machine.bf16_gflops
        if self._machine.int8_gops is not None:
            if is_decoder and self._is_quantized:
                rate = self._machine.int8_gops
            elif self._has_words:  # two bytes a number, half as many at a time
                rate = self._machine.int8_gops / 2
        arithmetic_s = flops / (rate * 1e9)
        memory_s = num_bytes / (self._machine.read_gb_per_s * 1e9)
        bound_by = "memory" if memory_s > arithmetic_s else "arithmetic"
        return {"limit_s": max(arithmetic_s, memory_s), "bound_by": bound_by}


def _with_first_token_limit(parts: list[BenchPart]) -> list[BenchPart]:
    """Give first tokens the sum of the limits of what has to be done before them."""
    before = [part for part in parts if part.name in _BEFORE_FIRST_TOKEN and part.limit_s is not None]
    if not before:
        return parts
    least_s = sum(part.limit_s or 0.0 for part in before)
    bound_by = max(before, key=lambda part: part.limit_s or 0.0).bound_by
    return [
        replace(part, limit_s=least_s, bound_by=bound_by) if part.name.startswith("first token") else part
        for part in parts
    ]


def _picture_parts(
    loaded: LoadedModel, picture: bytes, limits: _Limits, repeats: int, report: ProgressFn
) -> list[BenchPart]:
    def decode() -> Any:
        opened = open_image(picture, policy=loaded.policy)
        opened.image.load()
        return opened.image

    image = decode()
    config, model = loaded.config, loaded.model
    num_levels = 3 * image.width * image.height  # of a byte; what is read or written at least
    pixels = torch.from_numpy(preprocess(image, loaded.preset.image))[None].to(loaded.device)
    with torch.inference_mode():
        patches = model.vision_tower(pixels)
        return [
            _timed("picture file", decode, loaded, repeats, report, amount=1, unit="picture",
                   **limits.of(flops=0, num_bytes=len(picture) + num_levels)),
            _timed("resize", lambda: preprocess(image, loaded.preset.image), loaded, repeats, report, amount=1,
                   unit="picture", **limits.of(flops=0, num_bytes=num_levels + pixels.nbytes)),
            _timed("vision tower", lambda: model.vision_tower(pixels), loaded, repeats, report, amount=1,
                   unit="picture", **limits.of(flops=vision_flops(config), num_bytes=limits.tower_bytes)),
            _timed("projector", lambda: model.multi_modal_projector(patches), loaded, repeats, report, amount=1,
                   unit="picture", **limits.of(flops=projector_flops(config), num_bytes=limits.projector_bytes)),
        ]  # fmt: skip


def _answer_parts(
    loaded: LoadedModel, prompt: PreparedPrompt, limits: _Limits, new_tokens: int, repeats: int, report: ProgressFn
) -> list[BenchPart]:
    config, num_tokens = loaded.config, len(prompt.token_ids)
    params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    prefill_s, first_s, decode_s = [], [], []
    for idx in range(repeats + 1):
        report("answer", idx, repeats + 1)
        # A new engine has no cached prefix and no cached picture.
        engine = Engine(loaded.model, make_decoder=lambda: StreamDecoder(loaded.tokenizer))
        began = time.perf_counter()
        (generation,) = engine.submit([prompt], [params])
        events = engine.run([generation])
        next(events)
        first_s.append(time.perf_counter() - began + prompt.image_decode_s + prompt.image_resize_s)
        for _ in events:
            pass
        prefill_s.append(generation.timings.prefill_s)
        decode_s.append(generation.timings.decode_s)
    report("answer", repeats + 1, repeats + 1)
    decode_at = num_tokens + new_tokens // 2  # the middle of the answer
    prompt_limit = limits.of(flops=prefill_flops(config, num_tokens), num_bytes=limits.decode_bytes(0), is_decoder=True)
    token_limit = limits.of(
        flops=decode_flops(config, decode_at), num_bytes=limits.decode_bytes(decode_at), is_decoder=True
    )
    if token_limit:
        token_limit["limit_s"] *= new_tokens - 1
    return [
        _part("prompt", prefill_s, num_tokens, "tokens", **prompt_limit),
        _part("first token", first_s, 1, "answer"),
        _part("further tokens", decode_s, new_tokens - 1, "tokens", **token_limit),
    ]


def _make_prompt(loaded: LoadedModel, picture: bytes, prompt_tokens: int | None, new_tokens: int) -> PreparedPrompt:
    """Make a prompt of the wanted length: the picture's question, and words before its last token."""
    prompt = loaded.prepare(_QUESTION, images=[picture])
    shortest, context = len(prompt.token_ids), loaded.config.max_context_tokens
    wanted = prompt_tokens
    if wanted is None:
        wanted = max(shortest, min(loaded.config.num_image_tokens + 64, context - new_tokens))
    if not shortest <= wanted <= context - new_tokens:
        raise ConfigError(
            f"a prompt of {wanted} tokens was asked for; with its picture it has at least {shortest}, and with "
            f"{new_tokens} new tokens at most {context - new_tokens} fit into the context. Choose between them."
        )
    words = loaded.tokenizer.encode(_WORD * (wanted - shortest))[: wanted - shortest]
    return replace(prompt, token_ids=(*prompt.token_ids[:-1], *words, prompt.token_ids[-1]))


def _timed(
    name: str, run: Callable[[], object], loaded: LoadedModel, repeats: int, report: ProgressFn, **fields: Any
) -> BenchPart:
    seconds = []
    for idx in range(repeats + 1):
        report(name, idx, repeats + 1)
        began = time.perf_counter()
        run()
        if loaded.device.type == "cuda":
            torch.cuda.synchronize(loaded.device)
        seconds.append(time.perf_counter() - began)
    report(name, repeats + 1, repeats + 1)
    return _part(name, seconds, fields.pop("amount"), fields.pop("unit"), **fields)


def _part(
    name: str, seconds: list[float], amount: float, unit: str, *, has_first: bool = True, **limit: Any
) -> BenchPart:
    counted = seconds[1:] if has_first else seconds
    return BenchPart(
        name=name, median_s=median(counted), min_s=min(counted), max_s=max(counted),
        first_s=seconds[0] if has_first else None, num_runs=len(counted), amount=amount, unit=unit, **limit,
    )  # fmt: skip


def _single(name: str, seconds: float, amount: float, unit: str) -> BenchPart:
    return _part(name, [seconds], amount, unit, has_first=False)


def _check_counts(new_tokens: int, repeats: int) -> None:
    if new_tokens < 2 or repeats < 1:
        raise ConfigError(f"new_tokens is {new_tokens} and repeats {repeats}; at least 2 and 1 are needed.")
