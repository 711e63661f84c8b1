"""The full 7B shape in bfloat16: load it, ask it about a picture, measure memory, compare tokens with transformers.

    python -m benchmarks.full_7b --dir FOLDER            writes 14 GB of random weights there, removes them at the end

Three sides, each in a process of its own on the same files: `llavakit.load`; llavakit's
`LlavaForConditionalGeneration` with torch's products alone, like transformers'; and transformers. The last two get the
ids and pixels that the first one prepared. The second must give transformers' tokens, all of them: operation by
operation it is the same. The first multiplies single rows itself, several times as fast and not in the same order of
sums: two such sides can only agree where a choice is larger than a rounding, and random weights put the two best logits
within one unit of bfloat16 at some 7 % of the steps: the gap at the first difference is reported, and must not exceed
one unit. The bar for memory: the peak of resident pages at most
1.05 x weights + key-value cache + 0.5 GB, mapped weights counted.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llavakit
from benchmarks.common import ROOT, make_manifest, make_table, write_result
from benchmarks.random_checkpoint import SHAPES, write_checkpoint
from llavakit.core.shapes import kv_bytes_per_token, weight_bytes
from llavakit.core.types import SamplingParams
from llavakit.diagnostics.generated import encode_jpeg, make_picture
from llavakit.diagnostics.memory import drop_page_cache, read_memory

_QUESTION = "What is in this picture?"
_ALLOWED_FACTOR, _ALLOWED_EXTRA = 1.05, 0.5e9
_PROMPT_FILE = "prompt.npz"


def run_ours(folder: Path, new_tokens: int) -> dict[str, Any]:
    """Load, answer, and leave the prompt for the other side."""
    before = read_memory()
    began = time.perf_counter()
    model = llavakit.load(folder, dtype="bfloat16", device="cpu", preset="hf")
    load_s = time.perf_counter() - began
    picture = encode_jpeg(make_picture(0))
    prompt = model.prepare(_QUESTION, images=[picture])
    assert prompt.pixel_values is not None  # noqa: S101 - it has a picture
    np.savez(folder / _PROMPT_FILE, ids=np.array(prompt.token_ids), pixels=prompt.pixel_values)
    began = time.perf_counter()
    stream = model.stream(
        _QUESTION, images=[picture], sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    )
    result = stream.result
    answer_s = time.perf_counter() - began
    num_positions = len(prompt.token_ids) + new_tokens
    weights = weight_bytes(model.config, "bfloat16")
    kv = kv_bytes_per_token(model.config, "bfloat16") * num_positions
    timings = result.timings
    return {
        "token_ids": list(result.token_ids), "load_s": load_s, "answer_s": answer_s,
        "vision_s": timings.image_encode_s, "prompt_s": timings.prefill_s, "num_prompt_tokens": len(prompt.token_ids),
        "decode_tokens_per_s": timings.decode_tokens_per_s, "weight_bytes": weights, "kv_bytes": kv,
        "allowed_bytes": _ALLOWED_FACTOR * weights + kv + _ALLOWED_EXTRA,
        **_memory_fields(), "resident_before_load": before.resident if before else None,
    }  # fmt: skip


def run_dropin(folder: Path, new_tokens: int) -> dict[str, Any]:
    """Load the same files by transformers' interface, here, and answer the same prompt with torch's products."""
    return _run_interface(llavakit, folder, new_tokens, prepare=lambda model: model.model.use_torch_products())


def run_theirs(folder: Path, new_tokens: int) -> dict[str, Any]:
    """Load the same files in transformers and answer the same prompt."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return _run_interface(transformers, folder, new_tokens)


def _run_interface(
    library: Any, folder: Path, new_tokens: int, prepare: Callable[[Any], None] = lambda _: None
) -> dict[str, Any]:
    """Answer the prompt by the interface that both libraries have."""
    saved = np.load(folder / _PROMPT_FILE)
    began = time.perf_counter()
    model = library.LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True, attn_implementation="sdpa"
    )
    load_s = time.perf_counter() - began
    prepare(model)
    ids = torch.from_numpy(saved["ids"])[None]
    settings = library.GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=2,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    model.generation_config = library.GenerationConfig(pad_token_id=2)
    clock: list[float] = []
    began = time.perf_counter()
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings,
        pixel_values=torch.from_numpy(saved["pixels"]).to(torch.bfloat16), streamer=_Clock(clock),
    )  # fmt: skip
    answer_s = time.perf_counter() - began
    best = [logits[0].float().topk(2).values.tolist() for logits in output.logits]
    times = clock[1:]
    return {
        "token_ids": output.sequences[0, ids.shape[1] :].tolist(), "load_s": load_s, "answer_s": answer_s,
        "first_token_s": times[0] - began, "decode_tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
        "gaps_in_units": [_gap_in_units(first, second) for first, second in best], **_memory_fields(),
    }  # fmt: skip


def _gap_in_units(first: float, second: float) -> float:
    """By how many units in the last of bfloat16's 8 binary digits two logits differ."""
    return (first - second) / 2.0 ** (math.frexp(max(abs(first), abs(second)))[1] - 8)


class _Clock:
    """Takes the time of every token that transformers gives out."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def put(self, _value: Any) -> None:
        self._times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: the last token has been timed."""


def _memory_fields() -> dict[str, Any]:
    memory = read_memory()
    if memory is None:
        return {}
    return {
        "peak_bytes": memory.peak_resident, "own_bytes": memory.anonymous, "mapped_bytes": memory.file_backed,
        "proportional_bytes": memory.proportional,
    }  # fmt: skip


def _read(files: list[Path]) -> None:
    """Bring the files into the page cache: whoever is first would otherwise read them for both."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def _run_apart(side: str, options: argparse.Namespace) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.full_7b", "--child", side, "--dir", str(options.dir), "--new-tokens",
         str(options.new_tokens), "--threads", str(options.threads)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the {side} process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _rows(ours: dict[str, Any], dropin: dict[str, Any] | None, theirs: dict[str, Any] | None) -> list[dict[str, Any]]:
    them, dropin = theirs or {}, dropin or {}

    def row(what: str, mine: str, their: str | None, bar: str = "", other: str | None = None) -> dict[str, Any]:
        return {"what": what, "llavakit": mine, "with torch's products": other, "transformers": their, "bar": bar}

    def gb(value: float | None) -> str | None:
        return None if value is None else f"{value / 1e9:.2f} GB"

    def seconds(value: float | None) -> str | None:
        return None if value is None else f"{value:.2f} s"

    first_s = ours["vision_s"] + ours["prompt_s"]

    def both(what: str, mine: str | None, field: str, write: Callable[[Any], str | None], bar: str = "") -> None:
        rows.append(row(what, mine or "", write(them.get(field)), bar, write(dropin.get(field))))

    def rate(value: float | None) -> str | None:
        return None if value is None else f"{value:.2f}"

    rows = [row("weights", gb(ours["weight_bytes"]) or "", None)]
    both("peak memory", gb(ours["peak_bytes"]), "peak_bytes", gb, f"<= {gb(ours['allowed_bytes'])}")
    both("of it its own, at the end", gb(ours["own_bytes"]), "own_bytes", gb)
    both("load", seconds(ours["load_s"]), "load_s", seconds)
    both("tower, projector, prompt to first token", seconds(first_s), "first_token_s", seconds)
    both("further tokens a second", rate(ours["decode_tokens_per_s"]), "decode_tokens_per_s", rate)
    if theirs is not None:
        num_tokens = len(theirs["token_ids"])
        counts = [_count_equal(side, theirs) if side else None for side in (ours, dropin)]
        mine, other = (None if count is None else f"{count} of {num_tokens}" for count in counts)
        rows.append(row("equal tokens", mine or "", None, "all", other))
        gaps = [
            None if count in (None, num_tokens) else f"{theirs['gaps_in_units'][count]:.3g} units" for count in counts
        ]
        if any(gaps):
            rows.append(row("gap there of transformers' two best logits", gaps[0] or "", None, "<= 1 unit", gaps[1]))
        rows.append(row("different tokens among them", str(len(set(ours["token_ids"]))), None))
    return rows


def _count_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Count the tokens before the first difference."""
    pairs = list(zip(ours["token_ids"], theirs["token_ids"], strict=True))
    return next((idx for idx, (mine, their) in enumerate(pairs) if mine != their), len(pairs))


def _is_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    num_equal = _count_equal(ours, theirs)
    return num_equal == len(theirs["token_ids"]) or bool(theirs["gaps_in_units"][num_equal] <= 1)


_SIDES = {"ours": run_ours, "dropin": run_dropin, "theirs": run_theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="a folder on a disk with 14 GB to spare")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the weights")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each side")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--child", choices=tuple(_SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(_SIDES[options.child](options.dir, options.new_tokens)))
        return
    if not (options.dir / "config.json").is_file():
        write_checkpoint(options.dir, SHAPES[options.shape], dtype="bfloat16", progress=True)
        options.is_ours = True
    try:
        results = {}
        for side in ("ours",) if options.without_transformers else tuple(_SIDES):
            files = list(options.dir.iterdir())
            if options.cold:
                drop_page_cache(files)
            else:
                _read(files)
            results[side] = _run_apart(side, options)
    finally:
        (options.dir / _PROMPT_FILE).unlink(missing_ok=True)
        if not options.keep and getattr(options, "is_ours", False):
            shutil.rmtree(options.dir)
    rows = _rows(results["ours"], results.get("dropin"), results.get("theirs"))
    manifest = make_manifest(num_threads=options.threads)
    write_result("full_7b", manifest, [{"shape": options.shape, "is_cold": options.cold, **results}])
    print(f"\n{options.shape}, bfloat16, {options.threads} threads, commit {manifest['commit']}\n")
    print(make_table(rows, ("what", "llavakit", "with torch's products", "transformers", "bar")))
    is_small_enough = results["ours"]["peak_bytes"] <= results["ours"]["allowed_bytes"]
    theirs = results.get("theirs")
    is_equal = theirs is None or all(_is_equal(side, theirs) for side in results.values())
    sys.exit(0 if is_small_enough and is_equal else 1)


if __name__ == "__main__":
    main()
