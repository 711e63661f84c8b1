"""llavakit beside transformers: one process, one set of weights in memory, taking turns.

    python -m benchmarks.transformers_peer --shape 7b-2-layers --dtype bfloat16
    python -m benchmarks.transformers_peer --model llava:tiny --dtype float32
    python -m benchmarks.transformers_peer --shape 7b-2-layers --dtype float16 --default

Both libraries compute on the same tensors (transformers is handed ours), with the same number of threads, in the order
A B A B, so that a busy neighbour meets both. Each side is called as its users call it: our engine, their `generate`,
and token times taken where tokens come out. Loading is timed in fresh processes, also in turns, from files in the page
cache to the first token, imports left out. With `--default` our side loads the files as it does where nobody names a
dtype, and transformers computes in that of the files, which is its default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import llavakit
from benchmarks.common import ROOT, make_manifest, make_table, summarise, write_result
from benchmarks.random_checkpoint import SHAPES, write_checkpoint
from llavakit.api.loaded_model import LoadedModel
from llavakit.core.types import SamplingParams
from llavakit.diagnostics.generated import make_picture
from llavakit.diagnostics.reference import Reference
from llavakit.engine.engine import Engine
from llavakit.processing.prompt import PreparedPrompt
from llavakit.processing.tokenizer import StreamDecoder
from llavakit.weights.store import resolve

_QUESTION = "What is in this picture?"
_COLUMNS = ("stage", "llavakit", "min to max", "transformers", "their min to max", "speed ratio", "of pairs faster")
Measure = Callable[[], float]


class TokenClock:
    """Takes the time of every token that transformers gives out; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _value: Any) -> None:
        """Take the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: the last token has been timed."""


def compare(
    loaded: LoadedModel, reference: Reference, *, prompt_tokens: int, new_tokens: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Measure every stage on both sides; yield one row per stage as soon as it is measured."""
    loaded = loaded.with_preset("hf")
    question = loaded.prepare(_QUESTION, images=[make_picture(0)])
    words = _make_words(loaded, prompt_tokens)
    pixels = torch.from_numpy(question.pixel_values)

    @torch.inference_mode()
    def our_vision() -> float:
        began = time.perf_counter()
        loaded.model.encode_images(pixels)
        return time.perf_counter() - began

    def their_vision() -> float:
        began = time.perf_counter()
        reference.encode_images(pixels)
        return time.perf_counter() - began

    stages: dict[str, tuple[Measure, Measure]] = {
        "picture through tower and projector": (our_vision, their_vision),
        f"prompt of {len(words.token_ids)} words to first token": (
            lambda: _our_times(loaded, words, 1)[0], lambda: _their_times(reference, words, 1)[0]
        ),
        f"picture question of {len(question.token_ids)} tokens to first token": (
            lambda: _our_times(loaded, question, 1)[0], lambda: _their_times(reference, question, 1)[0]
        ),
        "one further token": (
            lambda: _per_token(_our_times(loaded, question, new_tokens)),
            lambda: _per_token(_their_times(reference, question, new_tokens)),
        ),
    }  # fmt: skip
    for name, (ours, theirs) in stages.items():
        yield _row(name, *_take_turns(ours, theirs, rounds))


def _our_times(loaded: LoadedModel, prompt: PreparedPrompt, num_tokens: int) -> list[float]:
    """Seconds from the call to every token. A new engine has no cached prefix and no cached picture."""
    began = time.perf_counter()
    engine = Engine(loaded.model, make_decoder=lambda: StreamDecoder(loaded.tokenizer))
    generations = engine.submit([prompt], [SamplingParams(max_new_tokens=num_tokens, ignore_eos=True)])
    return [time.perf_counter() - began for _ in engine.run(generations)]


def _their_times(reference: Reference, prompt: PreparedPrompt, num_tokens: int) -> list[float]:
    clock = TokenClock()
    pixels = None if prompt.pixel_values is None else torch.from_numpy(prompt.pixel_values)
    began = time.perf_counter()
    reference.generate([prompt.token_ids], pixels, max_new_tokens=num_tokens, streamer=clock)
    return [moment - began for moment in clock.times[1:]]


def _per_token(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def _make_words(loaded: LoadedModel, count: int) -> PreparedPrompt:
    prompt = loaded.prepare(_QUESTION)
    ids = loaded.tokenizer.encode(" many words" * count)[: count - len(prompt.token_ids)]
    return replace(prompt, token_ids=(*prompt.token_ids[:-1], *ids, prompt.token_ids[-1]))


def _take_turns(ours: Measure, theirs: Measure, rounds: int) -> tuple[list[float], list[float]]:
    """Run A B B A A B ...; the first round is not counted. Neither side always follows the other."""
    times: tuple[list[float], list[float]] = ([], [])
    for idx in range(rounds + 1):
        for side in (0, 1) if idx % 2 else (1, 0):
            seconds = (ours, theirs)[side]()
            if idx:
                times[side].append(seconds)
    return times


def _row(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    num_faster = sum(mine <= their for mine, their in zip(ours, theirs, strict=True))
    return {
        "stage": name,
        "llavakit": _show(median(ours)),
        "min to max": f"{_show(min(ours))} to {_show(max(ours))}",
        "transformers": _show(median(theirs)),
        "their min to max": f"{_show(min(theirs))} to {_show(max(theirs))}",
        "speed ratio": round(median(theirs) / median(ours), 3),
        "of pairs faster": f"{num_faster}/{len(ours)}",
        "ours": {**summarise(ours), "all_s": ours},
        "theirs": {**summarise(theirs), "all_s": theirs},
    }


def _show(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def compare_loading(
    folder: Path, *, dtype: str, is_default: bool, num_threads: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Time loading, and loading up to the first token, in fresh processes."""
    times: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for idx in range(rounds + 1):
        for side in ("ours", "theirs") if idx % 2 else ("theirs", "ours"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.transformers_peer", "--child", side, "--model", str(folder),
                 "--dtype", dtype, "--threads", str(num_threads), *(["--default"] if is_default else [])],
                cwd=ROOT, capture_output=True, text=True, check=True,
            )  # fmt: skip
            if idx:
                times[side].append(json.loads(done.stdout.splitlines()[-1]))
    names = {"load_s": "load, warm page cache", "first_s": "load to first token of a picture question"}
    for key, name in names.items():
        yield _row(name, [run[key] for run in times["ours"]], [run[key] for run in times["theirs"]])


def _run_child(side: str, folder: str, dtype: str, *, is_default: bool) -> dict[str, float]:
    """Load once in this process."""
    picture = make_picture(0)
    if side == "ours":
        import llavakit.api.loading  # imports are not timed

        began = time.perf_counter()
        loaded = llavakit.load(folder, dtype=None if is_default else dtype, device="cpu", preset="hf")
        load_s = time.perf_counter() - began
        loaded.chat(_QUESTION, images=[picture], max_new_tokens=1)
        return {"load_s": load_s, "first_s": time.perf_counter() - began}
    import transformers

    name = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    transformers.LlavaForConditionalGeneration  # noqa: B018 - imported now, because it is lazy
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=name, local_files_only=True)
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    load_s = time.perf_counter() - began
    inputs = processor(images=picture, text=f"USER: <image>\n{_QUESTION} ASSISTANT:", return_tensors="pt")
    model.generate(**inputs.to(name), max_new_tokens=1, do_sample=False)
    return {"load_s": load_s, "first_s": time.perf_counter() - began}


@contextmanager
def _provide(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Give a model's name and folder, written for the occasion if a shape was asked for."""
    if options.model:
        yield options.model, resolve(options.model).folder
        return
    if options.dir is not None:
        Path(options.dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        write_checkpoint(Path(folder), SHAPES[options.shape], dtype=options.dtype)
        yield options.shape, Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model's name or folder")
    parser.add_argument("--label", help="what to call it in the results")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), default="7b-2-layers", help="random weights, without --model"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--default", action="store_true", help="name no dtype to llavakit.load")
    parser.add_argument("--dir", type=Path, help="where random weights are written for the occasion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--no-load", action="store_true", help="leave out the fresh processes")
    parser.add_argument("--child", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(_run_child(options.child, options.model, options.dtype, is_default=options.default)))
        return
    manifest = make_manifest(num_threads=options.threads)
    with _provide(options) as (name, folder):
        label = options.label or name
        print(f"{label}, {options.dtype}, {options.threads} threads, commit {manifest['commit']}\n")
        print(make_table([], _COLUMNS), flush=True)
        for row in _measure(folder, options):
            # At once: a run that is interrupted keeps what it has measured.
            columns = {"model": label, "dtype": options.dtype, "is_default": options.default}
            write_result("transformers_peer", manifest, [{**columns, **row}])
            print(make_table([row], _COLUMNS).splitlines()[-1], flush=True)


def _measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    same = llavakit.load(folder, dtype=options.dtype, device="cpu")
    reference = Reference(same.model, same.folder, is_shared=True)
    loaded = llavakit.load(folder, device="cpu") if options.default else same
    room = loaded.config.max_context_tokens - options.new_tokens
    yield from compare(
        loaded, reference, prompt_tokens=min(options.prompt_tokens, room), new_tokens=options.new_tokens,
        rounds=options.rounds,
    )  # fmt: skip
    del loaded, same, reference
    if not options.no_load:
        yield from compare_loading(
            folder, dtype=options.dtype, is_default=options.default, num_threads=options.threads,
            rounds=min(3, options.rounds),
        )  # fmt: skip


if __name__ == "__main__":
    main()
