"""``llavakit verify``: a model beside transformers on the same weights, stage by stage.

In: a model's name. Out: a `VerifyReport`, one row per stage. Each stage gets the same inputs on both sides, made
from seeded pictures and questions; a stage that cannot be compared says why. It says nothing about how good the
answers are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llavakit.api.loaded_model import LoadedModel
from llavakit.api.loading import load
from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, NonFiniteError
from llavakit.core.host_memory import read_available_bytes
from llavakit.core.shapes import weight_bytes
from llavakit.core.types import SamplingParams
from llavakit.core.version import __version__
from llavakit.diagnostics.compare import (
    StageResult,
    Verdict,
    bound_of,
    bound_of_stored,
    compare_exact,
    compare_ids,
    compare_tensors,
    first_difference,
)
from llavakit.diagnostics.generated import SAMPLE_TEXTS, make_pictures, make_questions
from llavakit.diagnostics.reference import Reference, import_transformers
from llavakit.engine.engine import Engine
from llavakit.model.storage import has_quantized, is_stored
from llavakit.processing.chat import TextSegment, render, to_messages
from llavakit.processing.image import preprocess
from llavakit.processing.presets import read_json
from llavakit.processing.prompt import PreparedPrompt
from llavakit.processing.tokenizer import StreamDecoder

__all__ = ["VerifyReport", "verify_loaded", "verify_model"]

ProgressFn = Callable[[str, int, int], None]

_NUM_PICTURES = 40
_SMALL_BYTES = 2 * 1024**3
_SMALL_PROMPTS, _LARGE_PROMPTS = 20, 4
_BATCH_SIZE = 4
_MEMORY_RESERVE_BYTES = 2 * 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """How far llavakit and transformers are apart on one model.

    Parameters
    ----------
    model, dtype : str
    versions : dict
        Of llavakit, transformers and torch.
    are_weights_shared : bool
        True where transformers was given our tensors, because the files are of a dialect it does not read or two
        copies do not fit into memory; then a mistake in reading the files would not show.
    stages : tuple of StageResult
        In the order of the computation.
    """

    model: str
    dtype: str
    versions: dict[str, str]
    are_weights_shared: bool
    stages: tuple[StageResult, ...]

    @property
    def is_ok(self) -> bool:
        """Whether no stage failed."""
        return all(stage.is_ok for stage in self.stages)

    def to_json(self) -> str:
        """Return the report as one JSON object; numbers that are not finite become null."""
        content = {**asdict(self), "is_ok": self.is_ok}
        return json.dumps(_without_infinities(content), ensure_ascii=False)


def verify_model(
    model: str | Path,
    *,
    dtype: str | None = None,
    mmproj: str | Path | None = None,
    num_prompts: int | None = None,
    max_new_tokens: int = 64,
    on_progress: ProgressFn | None = None,
) -> VerifyReport:
    """Run a model beside transformers.

    Parameters
    ----------
    model : str or Path
        As for `llavakit.load`.
    dtype, mmproj : optional
        As for `llavakit.load`.
    num_prompts : int, optional
        Questions, with 0 to 3 pictures as the context allows; by default 20, or 4 for models above 2 GiB.
    max_new_tokens : int, default 64
        Greedy tokens of each question.
    on_progress : callable, optional
        Called with the stage's name, steps done and steps in all.

    Returns
    -------
    VerifyReport

    Raises
    ------
    MissingDependencyError
        If transformers is absent; nothing has been loaded then.
    StoreError, WeightsError, ConfigError
        As `llavakit.load`.
    """
    import_transformers()
    loaded = load(model, dtype=dtype, device="cpu", mmproj=mmproj)
    return verify_loaded(loaded, num_prompts=num_prompts, max_new_tokens=max_new_tokens, on_progress=on_progress)


def verify_loaded(
    loaded: LoadedModel,
    *,
    num_prompts: int | None = None,
    max_new_tokens: int = 64,
    on_progress: ProgressFn | None = None,
) -> VerifyReport:
    """Run a loaded model beside transformers; see `verify_model`.

    Raises
    ------
    ConfigError
        If the model is not on the CPU or the counts are below 1.
    """
    if loaded.device.type != "cpu":
        raise ConfigError(f"verify compares on the CPU; the model is on {loaded.device}. Load it with device='cpu'.")
    if num_prompts is None:
        num_prompts = _SMALL_PROMPTS if _bytes_of(loaded) <= _SMALL_BYTES else _LARGE_PROMPTS
    if num_prompts < 1 or max_new_tokens < 1:
        raise ConfigError(f"num_prompts is {num_prompts}, max_new_tokens {max_new_tokens}; both must be at least 1.")
    run = _Run(loaded, num_prompts=num_prompts, max_new_tokens=max_new_tokens, on_progress=on_progress)
    stages = [run.compare_pixels(), run.compare_ids()]
    stages += [run.compare_patches(), run.compare_features(), run.compare_logits()]
    stages += [run.compare_tokens(batch_size=1), run.compare_tokens(batch_size=_BATCH_SIZE)]

    return VerifyReport(
        model=loaded.name,
        dtype=str(loaded.dtype).removeprefix("torch."),
        versions={"llavakit": __version__, "transformers": run.reference.version, "torch": str(torch.__version__)},
        are_weights_shared=run.reference.is_shared,
        stages=tuple(stages),
    )


class _Run:
    """One comparison: both models and the inputs."""

    def __init__(
        self, loaded: LoadedModel, *, num_prompts: int, max_new_tokens: int, on_progress: ProgressFn | None
    ) -> None:
        self.loaded = loaded.with_preset("hf")
        self.config: LlavaConfig = loaded.config
        self._on_progress = on_progress
        self._report("load transformers", 0, 1)
        self.is_stored = is_stored(loaded.model)
        # transformers' products are of float32 matrices; where these do not fit, each is made for its product only.
        self.is_expanded_on_use = self.is_stored and not _fits(loaded)
        self.reference = Reference(
            loaded.model, loaded.folder, is_shared=_must_share(loaded), is_expanded_on_use=self.is_expanded_on_use
        )
        self._report("load transformers", 1, 1)
        self.prompts, self.max_new_tokens = _make_prompts(self.loaded, num_prompts, max_new_tokens)
        pixels = [prompt.pixel_values for prompt in self.prompts if prompt.pixel_values is not None]
        size = self.config.vision_config.image_size
        self.pixels = np.concatenate(pixels) if pixels else np.zeros((0, 3, size, size), np.float32)
        self._logit_error = 0.0

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(stage, done, total)

    def compare_pixels(self) -> StageResult:
        """Compare preset ``hf`` with the PIL back end."""
        reason = "integer resampling, then correctly rounded steps: equal bits"
        try:
            processor = self.reference.make_image_processor()
        except ConfigError as error:
            return _skipped("pixels", str(error))
        pictures = make_pictures(_NUM_PICTURES, seed=100)

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for idx, picture in enumerate(pictures, start=1):
                ours = torch.from_numpy(preprocess(picture, self.loaded.preset.image))
                yield ours, self.reference.process_image(processor, picture)
                self._report("pixels", idx, len(pictures))

        what = f"{len(pictures)} pictures of all modes, 1x1 to 1200x900"
        return compare_exact("pixels", pairs(), reason=reason, what=what)

    def compare_ids(self) -> StageResult:
        """Compare texts, and conversations piece by piece as our templates cut them."""
        try:
            tokenizer = self.reference.make_tokenizer()
        except ConfigError as error:
            return _skipped("ids", str(error))
        texts = list(SAMPLE_TEXTS)
        for template in ("llava-hf", "vicuna_v1"):
            for prompt in make_questions(6, seed=1, max_images=0):
                segments = render(to_messages(prompt.text), template)
                texts += [segment.text for segment in segments if isinstance(segment, TextSegment)]
        with_pictures = "USER: <image>\n<image> What differs? ASSISTANT:" if _has_image_token(self) else ""
        texts += [with_pictures] if with_pictures else []

        def pairs() -> Iterator[tuple[list[int], list[int]]]:
            for idx, text in enumerate(texts, start=1):
                yield self.loaded.tokenizer.encode(text, parse_special=True, add_bos=True), tokenizer(text)["input_ids"]
                self._report("ids", idx, len(texts))

        return compare_ids("ids", pairs(), reason="integers: equal", what=f"{len(texts)} texts and prompt pieces")

    def compare_patches(self) -> StageResult:
        """Compare the tower's states at the feature layer."""
        name, num_layers = "vision features", self.config.num_vision_blocks
        if not len(self.pixels):
            return _skipped(name, "the context is too short for a picture")
        pairs = self._image_pairs(name, self.loaded.model.vision_tower, self.reference.encode_patches)
        bound, reason = self._bound(self.loaded.model.vision_tower, num_layers)
        what = f"{len(self.pixels)} pictures through {num_layers} blocks"
        return compare_tensors(name, pairs, tolerance=bound, reason=reason, what=what)

    def compare_features(self) -> StageResult:
        """Compare what the language model sees of a picture."""
        name = "projected features"
        if not len(self.pixels):
            return _skipped(name, "the context is too short for a picture")
        pairs = self._image_pairs(name, self.loaded.model.encode_images, self.reference.encode_images)
        bound, reason = self._bound(self.loaded.model.vision_tower, self.config.num_vision_blocks + 1)
        return compare_tensors(name, pairs, tolerance=bound, reason=reason, what=f"{len(self.pixels)} pictures")

    def _image_pairs(
        self, name: str, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for idx in range(len(self.pixels)):
            batch = torch.from_numpy(self.pixels[idx : idx + 1])
            with torch.inference_mode():
                mine = ours(batch)
            yield mine, theirs(batch)
            self._report(name, idx + 1, len(self.pixels))

    def compare_logits(self) -> StageResult:
        """Compare the logits of every prompt position."""
        layers = self.config.text_config.num_hidden_layers
        # Pictures come through the tower first.
        bound, reason = self._bound(self.loaded.model, layers + self.config.num_vision_blocks + 1)
        what = f"{len(self.prompts)} prompts, every position"
        result = compare_tensors("logits", self._logit_pairs(), tolerance=bound, reason=reason, what=what)
        self._logit_error = result.max_abs_difference or 0.0
        return result

    def _bound(self, part: torch.nn.Module, num_layers: int) -> tuple[float, str]:
        if self.is_stored:
            return bound_of_stored(num_layers, is_quantized=has_quantized(part))
        return bound_of(self.loaded.dtype, num_layers)

    def _logit_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for idx, prompt in enumerate(self.prompts, start=1):
            pixels = _pixels_of(prompt)
            ids = torch.tensor([prompt.token_ids])
            with torch.inference_mode():
                model = self.loaded.model
                # Picture by picture, as the engine does it.
                features = None if pixels is None else torch.cat([model.encode_images(one[None]) for one in pixels])
                ours = model(model.embed(ids, features), torch.arange(ids.shape[1])[None])[0]
            yield ours.float(), self.reference.compute_logits(prompt.token_ids, pixels).float()
            self._report("logits", idx, len(self.prompts))

    def compare_tokens(self, *, batch_size: int) -> StageResult:
        """Compare greedy answers, alone or several side by side; end-of-sequence tokens end nothing."""
        name = "greedy tokens" if batch_size == 1 else f"greedy tokens, batches of {batch_size}"
        if batch_size > 1 and len(self.prompts) < 2:
            return _skipped(name, "one prompt makes no batch")
        if self.is_expanded_on_use:
            return _skipped(name, "transformers would expand every matrix for every token; the logits are compared")
        engine = Engine(self.loaded.model, make_decoder=lambda: StreamDecoder(self.loaded.tokenizer))
        params = SamplingParams(max_new_tokens=self.max_new_tokens, ignore_eos=True)
        problems: list[str] = []
        ties: list[str] = []
        num_done = 0
        for start in range(0, len(self.prompts), batch_size):
            batch = self.prompts[start : start + batch_size]
            generations = engine.submit(batch, [params] * len(batch))
            try:
                for _ in engine.run(generations):
                    pass
            except NonFiniteError as error:
                return _failed(name, f"prompts from {start} on: {error}")
            pixels = [pixels for prompt in batch if (pixels := _pixels_of(prompt)) is not None]
            theirs = self.reference.generate(
                [prompt.token_ids for prompt in batch],
                torch.cat(pixels) if pixels else None,
                max_new_tokens=self.max_new_tokens,
            )
            for idx, (generation, their_ids) in enumerate(zip(generations, theirs, strict=True)):
                num_done += len(their_ids)
                if generation.token_ids != their_ids:
                    text, is_tie = self._explain(start + idx, generation.token_ids, their_ids)
                    (ties if is_tie else problems).append(text)
            self._report(name, min(start + batch_size, len(self.prompts)), len(self.prompts))
        what = f"{len(self.prompts)} prompts of up to {max(len(p.image_keys) for p in self.prompts)} pictures, "
        what += f"{self.max_new_tokens} tokens each"
        verdict = Verdict.FAIL if problems else Verdict.PASS if ties else Verdict.EQUAL
        return StageResult(
            name=name, num_compared=num_done, max_abs_difference=None, relative_error=None, tolerance=0.0,
            reason="integers: equal, unless two logits tie within the rounding of the logits", verdict=verdict,
            detail="; ".join([*problems, *ties][:3]) or what,
        )  # fmt: skip

    def _explain(self, prompt_idx: int, ours: Sequence[int], theirs: Sequence[int]) -> tuple[str, bool]:
        """Say where two answers part, and whether the two choices tie in transformers' own logits."""
        where = f"prompt {prompt_idx}: {first_difference(ours, theirs)}"
        position = next((idx for idx, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if position is None:
            return where, False
        prompt = self.prompts[prompt_idx]
        logits = self.reference.compute_logits([*prompt.token_ids, *theirs[:position]], _pixels_of(prompt))[-1].double()
        gap = float(logits[theirs[position]] - logits[ours[position]])
        # Each of two logits may be off by what was measured on the prompts, and by half a step of its storage.
        bound = 2 * self._logit_error + float(logits.abs().max()) * torch.finfo(self.loaded.dtype).eps
        return f"{where}, logits {gap:.2e} apart (rounding explains {bound:.2e})", abs(gap) <= bound


def _make_prompts(loaded: LoadedModel, num_prompts: int, max_new_tokens: int) -> tuple[list[PreparedPrompt], int]:
    """Prepare questions that fit into the context, the longest ones with as many pictures as there is room for."""
    config = loaded.config
    max_new_tokens = min(max_new_tokens, max(1, config.max_context_tokens // 2))
    room = config.max_context_tokens - max_new_tokens
    for max_images in (3, 2, 1, 0):
        questions = make_questions(num_prompts, seed=7, max_images=max_images)
        prompts = [loaded.prepare(question.text, images=list(question.images)) for question in questions]
        if max(len(prompt.token_ids) for prompt in prompts) <= room:
            return prompts, max_new_tokens
    raise ConfigError(f"the model's context of {config.max_context_tokens} tokens does not hold a single question.")


def _pixels_of(prompt: PreparedPrompt) -> Tensor | None:
    return None if prompt.pixel_values is None else torch.from_numpy(prompt.pixel_values)


def _has_image_token(run: _Run) -> bool:
    return run.config.image_token_id < run.config.text_config.vocab_size


def _must_share(loaded: LoadedModel) -> bool:
    """Whether transformers cannot or should not read the files itself."""
    if is_stored(loaded.model):
        return True  # GGUF
    if "vision_config" not in read_json(loaded.folder / "config.json"):
        return True  # the original dialect
    return not _fits(loaded)


def _fits(loaded: LoadedModel) -> bool:
    """Whether there is room for the weights a second time, in the model's dtype."""
    available = read_available_bytes()
    return available is None or _bytes_of(loaded) + _MEMORY_RESERVE_BYTES <= available


def _bytes_of(loaded: LoadedModel) -> int:
    return weight_bytes(loaded.config, str(loaded.dtype).removeprefix("torch."))


def _failed(name: str, why: str) -> StageResult:
    return replace(_skipped(name, why), verdict=Verdict.FAIL)


def _skipped(name: str, why: str) -> StageResult:
    return StageResult(
        name=name, num_compared=0, max_abs_difference=None, relative_error=None, tolerance=0.0, reason="",
        verdict=Verdict.SKIPPED, detail=why,
    )  # fmt: skip


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
