"""One line that says where the time of an answer went; and one before it, where no answer can be as long as allowed."""

from __future__ import annotations

from llavakit.core.types import FinishReason, GenerationResult, SamplingParams, Timings
from llavakit.core.wording import counted

__all__ = ["context_note", "timing_line"]


def timing_line(result: GenerationResult, sampling: SamplingParams) -> str:
    """Return image, prompt and answer, each with its time or rate, and why the answer ended early if it did.

    Examples
    --------
    >>> timings = Timings(prefill_s=0.5, decode_s=1.0, num_prompt_tokens=20, num_cached_tokens=10)
    >>> timings.num_generated_tokens = 11
    >>> result = GenerationResult(text="", token_ids=(), finish_reason=FinishReason.STOP, timings=timings)
    >>> timing_line(result, SamplingParams())
    'prompt 20 tokens, 10 cached, 20 tokens/s | answer 11 tokens, 10 tokens/s'
    """
    timings = result.timings
    parts = [_image(timings), _prompt(timings), _answer(timings), _ending(result, sampling)]
    return " | ".join(part for part in parts if part)


def context_note(max_new_tokens: int | None, num_context_tokens: int) -> str:
    """Return what to say where an answer was asked for that is longer than the context; else nothing."""
    if max_new_tokens is None or max_new_tokens < num_context_tokens:
        return ""
    return (
        f"{max_new_tokens} new tokens are allowed, but the context of {num_context_tokens} holds the prompt "
        "and the answer; the answer ends where it is full."
    )


def _image(timings: Timings) -> str:
    if not timings.num_images:
        return ""
    name = "image" if timings.num_images == 1 else f"{timings.num_images} images"
    encode = f"encode {_duration(timings.image_encode_s)}"
    num_kept = timings.num_images - timings.num_images_encoded
    if num_kept == timings.num_images:
        encode = "encoded before"
    elif num_kept:
        encode += f" ({num_kept} encoded before)"
    return f"{name}: decode {_duration(timings.image_decode_s)}, resize {_duration(timings.image_resize_s)}, {encode}"


def _prompt(timings: Timings) -> str:
    cached = f", {timings.num_cached_tokens} cached" if timings.num_cached_tokens else ""
    return f"prompt {counted(timings.num_prompt_tokens, 'token')}{cached}{_rate(timings.prefill_tokens_per_s)}"


def _answer(timings: Timings) -> str:
    return f"answer {counted(timings.num_generated_tokens, 'token')}{_rate(timings.decode_tokens_per_s)}"


def _ending(result: GenerationResult, sampling: SamplingParams) -> str:
    if result.finish_reason is FinishReason.LENGTH:
        num_tokens = result.timings.num_generated_tokens
        if 0 < num_tokens < sampling.max_new_tokens:  # 0: a server that did not say
            return f"cut: the context of {result.timings.num_prompt_tokens + num_tokens} tokens is full"
        return f"cut at max_new_tokens={sampling.max_new_tokens}"
    return "stopped" if result.finish_reason is FinishReason.CANCELLED else ""


def _rate(tokens_per_s: float) -> str:
    if tokens_per_s <= 0:
        return ""
    return f", {tokens_per_s:.0f} tokens/s" if tokens_per_s >= 10 else f", {tokens_per_s:.2g} tokens/s"


def _duration(seconds: float) -> str:
    """Three digits at most: 0.4 ms, 12 ms, 1.25 s, 83 s."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
