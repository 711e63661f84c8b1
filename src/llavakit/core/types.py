"""The one internal vocabulary of a request: messages, sampling settings, events, results.

Every surface (Python API, drop-in classes, command line) turns its input into these types, and only these
reach the engine. Everything is frozen; images are opaque here (``processing`` decodes them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from llavakit.core.errors import PromptError, SamplingError

__all__ = [
    "FinishReason",
    "GenerationResult",
    "ImagePart",
    "Message",
    "Role",
    "SamplingParams",
    "TextPart",
    "Timings",
    "TokenEvent",
    "TokenLogprob",
]

# Logits of 1e8 divided by it are still finite in float32.
_MIN_TEMPERATURE = 1e-30


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words of a message. Never parsed for control tokens or placeholders."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture of a message: path, URL, data URI, bytes, PIL image or numpy array; not yet decoded."""

    source: Any


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Parameters
    ----------
    role : Role
    parts : tuple of TextPart or ImagePart
        Only user messages may hold images.
    """

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role is not Role.USER and any(isinstance(part, ImagePart) for part in self.parts):
            raise PromptError(
                f"a message of the role {self.role.value!r} holds an image; only a user's can. Move the image to one."
            )

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The pictures of this message, in order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_new_tokens reached, or the context full
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to choose the next token and when to end.

    Parameters
    ----------
    max_new_tokens : int, default 512
        At least 1.
    min_new_tokens : int, default 0
        The end-of-sequence token is not chosen before; a stop string still ends the answer.
    temperature : float, default 0.0
        0 is greedy; others from 1e-30 to 100. The other sampling settings need a temperature above 0.
    top_k, top_p, min_p : optional
        Keep the k most likely tokens; the smallest set with probability p; tokens with at least
        ``min_p`` times the probability of the most likely one.
    repetition_penalty : float, default 1.0
        Divides positive and multiplies negative logits of tokens already seen (prompt included).
    repetition_window : int, optional
        How many of the last tokens count as seen; by default all.
    presence_penalty : float, default 0.0
        Subtracted from the logits of tokens already generated.
    frequency_penalty : float, default 0.0
        Subtracted once for every time a token has been generated.
    logit_bias : tuple of (int, float)
        Added to the logits of these tokens before everything else.
    seed : int, optional
        Same seed, same settings, same prompt, same machine: same tokens, whatever else is in the batch.
    stop : tuple of str
        The answer ends before the first of these; it is not part of the answer.
    num_top_logprobs : int, optional
        Report log-probabilities of each chosen token and of this many most likely ones (0 to 20).
    num_beams : int, default 1
        Beam search above 1; then temperature must be 0.
    length_penalty : float, default 1.0
        Exponent on the length in beam scores; only with beams.
    ignore_eos : bool, default False
        Go on after the end-of-sequence token (benchmarks).

    Raises
    ------
    SamplingError
        When a value is out of range or two settings contradict each other.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    repetition_window: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_top_logprobs: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, low=1, high=1 << 20)
        _check_int("min_new_tokens", self.min_new_tokens, low=0, high=1 << 20)
        _check_float("temperature", self.temperature, low=0.0, high=100.0)
        if 0.0 < self.temperature < _MIN_TEMPERATURE:
            raise SamplingError(
                f"temperature is {self.temperature}, which no score can be divided by; it must be 0, or between "
                f"{_MIN_TEMPERATURE} and 100. Use 0 for the most likely token."
            )
        _check_float("repetition_penalty", self.repetition_penalty, low=1e-3, high=100.0)
        _check_float("presence_penalty", self.presence_penalty, low=-100.0, high=100.0)
        _check_float("frequency_penalty", self.frequency_penalty, low=-100.0, high=100.0)
        _check_float("length_penalty", self.length_penalty, low=-100.0, high=100.0)
        _check_int("num_beams", self.num_beams, low=1, high=64)
        if self.top_k is not None:
            _check_int("top_k", self.top_k, low=1, high=1 << 31)
        if self.top_p is not None:
            _check_float("top_p", self.top_p, low=0.0, high=1.0)
            if self.top_p == 0.0:
                raise SamplingError(
                    "top_p is 0, which keeps no token; it must be above 0 and at most 1. Use temperature=0."
                )
        if self.min_p is not None:
            _check_float("min_p", self.min_p, low=0.0, high=1.0)
        if self.repetition_window is not None:
            _check_int("repetition_window", self.repetition_window, low=0, high=1 << 31)
        _check_pairs(self.logit_bias)
        for token_id, bias in self.logit_bias:
            _check_int("a token of logit_bias", token_id, low=0, high=1 << 31)
            _check_float("a bias of logit_bias", bias, low=-1000.0, high=1000.0)
        if self.seed is not None:
            _check_int("seed", self.seed, low=0, high=(1 << 64) - 1)
        if self.num_top_logprobs is not None:
            _check_int("num_top_logprobs", self.num_top_logprobs, low=0, high=20)
        self._check_stop()
        self._check_contradictions()

    def _check_stop(self) -> None:
        if not isinstance(self.stop, tuple | list) or not all(isinstance(text, str) for text in self.stop):
            raise SamplingError(f"stop must be a tuple of strings, got {self.stop!r}.")
        if any(not text for text in self.stop):
            raise SamplingError("stop holds an empty string, which would end every answer at once. Remove it.")
        if len(self.stop) > 64:
            raise SamplingError(f"stop holds {len(self.stop)} strings; at most 64 are allowed.")

    def _check_contradictions(self) -> None:
        chosen = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        given = [name for name, value in chosen.items() if value is not None]
        if self.min_new_tokens > self.max_new_tokens:
            raise SamplingError(
                f"min_new_tokens is {self.min_new_tokens}, but max_new_tokens is {self.max_new_tokens}. "
                "Lower the first or raise the second."
            )
        if self.temperature == 0.0 and given:
            raise SamplingError(
                f"{', '.join(given)} given with temperature 0, where nothing is drawn. "
                "Set a temperature above 0 or remove them."
            )
        if self.num_beams > 1 and self.temperature > 0.0:
            raise SamplingError(
                f"num_beams={self.num_beams} with temperature={self.temperature}: beam search does not sample. "
                "Set temperature=0 or num_beams=1."
            )
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise SamplingError(
                f"length_penalty={self.length_penalty} without beams, whose scores are all that it changes. "
                "Set num_beams above 1, or leave it out."
            )
        if self.num_beams > 1 and self.num_top_logprobs is not None:
            raise SamplingError("log-probabilities are not defined for beam search. Set num_beams=1 or drop them.")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def _check_pairs(logit_bias: object) -> None:
    if not isinstance(logit_bias, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in logit_bias):
        raise SamplingError(f"logit_bias must be a tuple of (token id, bias), got {logit_bias!r:.100}.")


def _check_int(name: str, value: object, *, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SamplingError(f"{name} must be a whole number, got {value!r} ({type(value).__name__}).")
    if not low <= value <= high:
        raise SamplingError(f"{name} is {value}; it must be between {low} and {high}.")


def _check_float(name: str, value: object, *, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SamplingError(f"{name} must be a number, got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value) or not low <= value <= high:
        raise SamplingError(f"{name} is {value}; it must be between {low} and {high}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a chosen token, and the most likely alternatives, most likely first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """One step of one answer.

    Parameters
    ----------
    request_idx : int
        Which prompt of the batch.
    text : str
        New text, possibly empty while half a character or a possible stop string is held back.
    token_id : int, optional
        The token of this step; None for a terminal event without a token (cancellation).
    finish_reason : FinishReason, optional
        Set on the last event of the request, and only there.
    """

    request_idx: int
    text: str
    token_id: int | None
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(kw_only=True, slots=True)
class Timings:
    """Where the time of one answer went. Seconds and counts; filled while the answer is made."""

    queue_s: float = 0.0
    image_decode_s: float = 0.0
    image_resize_s: float = 0.0
    image_encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_images: int = 0
    num_images_encoded: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed (not taken from the cache) per second."""
        computed = self.num_prompt_tokens - self.num_cached_tokens
        return computed / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Answer tokens per second after the first."""
        return (self.num_generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationResult:
    """A finished answer.

    Parameters
    ----------
    text : str
        The answer without special tokens and without the stop string.
    token_ids : tuple of int
        Every generated token, the end-of-sequence token included.
    finish_reason : FinishReason
        ``stop`` (the end-of-sequence token or a stop string), ``length`` (``max_new_tokens``) or ``cancelled``.
    logprobs : tuple of TokenLogprob, optional
        One per token, where ``num_top_logprobs`` asks for them.
    timings : Timings
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    timings: Timings = field(default_factory=Timings)
