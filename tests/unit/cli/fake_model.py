"""A model without weights: answers what it was told, word by word, and remembers how it was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llavakit.core.errors import ConfigError, ContextOverflowError
from llavakit.core.types import (
    FinishReason,
    GenerationResult,
    ImagePart,
    Message,
    Role,
    SamplingParams,
    TextPart,
    Timings,
    TokenEvent,
    TokenLogprob,
)

__all__ = ["FakeModel", "FakeStream", "make_load"]

_PRESETS = {
    "original": SimpleNamespace(name="original", template="vicuna_v1", image=SimpleNamespace(mode="pad")),
    "hf": SimpleNamespace(name="hf", template="llava-hf", image=SimpleNamespace(mode="crop")),
}


class FakeTokenizer:
    def token_text(self, token_id: int) -> str:
        return f"<{token_id}>"


class FakeStream:
    """Yields one word at a time; stops when cancelled."""

    def __init__(self, words: list[str], timings: Timings, sampling: SamplingParams, *, pause_s: float) -> None:
        self._words = words
        self._timings = timings
        self._sampling = sampling
        self._pause_s = pause_s
        self._is_cancelled = False
        self._written: list[str] = []
        self._reason: FinishReason | None = None
        self._events = self._make_events()

    def __iter__(self) -> Iterator[TokenEvent]:
        return self._events

    def _make_events(self) -> Iterator[TokenEvent]:
        for idx, word in enumerate(self._words):
            time.sleep(self._pause_s)
            if self._is_cancelled:
                break
            is_last = idx + 1 == len(self._words)
            is_cut = idx + 1 == self._sampling.max_new_tokens
            self._written.append(word)
            if is_last or is_cut:
                self._reason = FinishReason.STOP if is_last else FinishReason.LENGTH
            yield TokenEvent(request_idx=0, text=word, token_id=idx, finish_reason=self._reason)
            if self._reason:
                return
        self._reason = FinishReason.CANCELLED
        yield TokenEvent(request_idx=0, text="", token_id=None, finish_reason=self._reason)

    def cancel(self) -> None:
        self._is_cancelled = True

    @property
    def result(self) -> GenerationResult:
        for _ in self._events:
            pass
        assert self._reason is not None
        self._timings.num_generated_tokens = len(self._written)
        self._timings.decode_s = 0.5
        ids = tuple(range(len(self._written)))
        logprobs = None
        if self._sampling.num_top_logprobs is not None:
            logprobs = tuple(TokenLogprob(token_id=idx, logprob=-0.5, top=((idx, -0.5),)) for idx in ids)
        return GenerationResult(
            text="".join(self._written),
            token_ids=ids,
            finish_reason=self._reason,
            logprobs=logprobs,
            timings=self._timings,
        )


@dataclass
class FakeModel:
    """Says how many pictures it sees and repeats the question; 'slow' makes it pause, 'slowly' go on."""

    name: str = "llava:fake"
    folder: Path = Path("/models/fake")
    preset: Any = field(default_factory=lambda: _PRESETS["original"])
    dtype: str = "float32"
    device: str = "cpu"
    load_s: float = 0.25
    answer: Callable[[str], str] | None = None
    asked: list[tuple[list[Message], SamplingParams]] = field(default_factory=list)
    num_resets: int = 0

    tokenizer = FakeTokenizer()
    config = SimpleNamespace(max_context_tokens=4096)

    def stream(self, messages: Sequence[Message], *, sampling: SamplingParams) -> FakeStream:
        question = "".join(part.text for part in messages[-1].parts if isinstance(part, TextPart))
        images = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
        if "overflow" in question:
            raise ContextOverflowError("the prompt has 5000 tokens; the context holds 4096. Shorten it.")
        if "explode" in question:
            raise RuntimeError("a fault inside")
        self.asked.append((list(messages), sampling))
        text = self.answer(question) if self.answer else f"I see {len(images)} and read: {question}"
        if "slowly" in question:
            text += " and on" * 200
        words = [word if idx == 0 else f" {word}" for idx, word in enumerate(text.split(" "))]
        num_turns = sum(message.role is Role.ASSISTANT for message in messages)
        timings = Timings(
            image_decode_s=0.002,
            image_resize_s=0.003,
            image_encode_s=0.04,
            prefill_s=0.1,
            num_images=len(images),
            num_images_encoded=min(len(images), 1),
            num_prompt_tokens=30,
            num_cached_tokens=10 * num_turns,
        )
        return FakeStream(words, timings, sampling, pause_s=0.05 if "slow" in question else 0.0)

    def with_preset(self, name: str) -> FakeModel:
        if name not in _PRESETS:
            raise ConfigError(f"preset {name!r} is not known; choose one of hf, original.")
        return replace(self, preset=_PRESETS[name])

    def reset(self) -> None:
        self.num_resets += 1


def make_load(model: FakeModel) -> Callable[..., FakeModel]:
    """Return a stand-in for `llavakit.load` that remembers its arguments in ``load.calls``."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **options: Any) -> FakeModel:
        calls.append((name, options))
        if options.get("on_progress"):
            options["on_progress"](1, 2)
        model.preset = _PRESETS[options.get("preset") or "original"]
        return model

    load.calls = calls  # type: ignore[attr-defined]
    return load
