"""One answer in the making: its prompt, its settings, its tokens so far. Computes nothing, knows no cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llavakit.core.errors import ContextOverflowError, SamplingError
from llavakit.core.types import FinishReason, GenerationResult, SamplingParams, Timings, TokenEvent, TokenLogprob
from llavakit.core.wording import counted
from llavakit.engine.beam import Beam, EarlyStopping
from llavakit.engine.sampler import Sampler, TokenMask
from llavakit.engine.text_stream import TextStream, TokenDecoder
from llavakit.model.llava import Llava

__all__ = ["EnginePrompt", "Generation", "StepObserver", "make_generation", "tensor_of_ends", "vocabulary_ids"]

# Called before each choice with the request's number, the logits (V,) and the scores (V,) chosen from.
StepObserver = Callable[[int, Tensor, Tensor], None]


class EnginePrompt(Protocol):
    """What the engine needs of a prepared prompt (``processing.prompt.PreparedPrompt``)."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids, each picture as ``num_image_tokens`` image tokens."""

    @property
    def pixel_values(self) -> np.ndarray | None:
        """Normalised pixels (n, 3, S, S), float32."""

    @property
    def image_keys(self) -> tuple[str, ...]:
        """One content digest per picture."""

    @property
    def image_decode_s(self) -> float:
        """Time spent opening the pictures."""

    @property
    def image_resize_s(self) -> float:
        """Time spent preprocessing them."""


@dataclass(eq=False)
class Generation:
    """One request inside the engine: its prompt, its state, and after the end its result."""

    request_idx: int
    prompt: EnginePrompt
    params: SamplingParams
    sampler: Sampler
    stream: TextStream
    max_new_tokens: int
    timings: Timings
    eos_token_ids: frozenset[int]
    on_step: StepObserver | None = None
    early_stopping: EarlyStopping = False
    beams: tuple[Beam, ...] = ()  # after a beam search: all finished answers, best first
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_cache_slots(self) -> int:
        """Slots of the cache in use: the last token is computed in the next step."""
        return len(self.prompt.token_ids) + len(self.token_ids) - 1

    @property
    def result(self) -> GenerationResult:
        """The finished answer."""
        if self.finish_reason is None:
            raise RuntimeError("the answer is not finished yet")
        return GenerationResult(
            text=self.stream.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs) if self.params.num_top_logprobs is not None else None,
            timings=self.timings,
        )

    def advance(self, logits: Tensor, *, greedy_id: int | None = None) -> TokenEvent:
        """Choose the next token from float32 logits (V,) and update the answer.

        ``greedy_id`` is what `choose_greedily` says of them, where it was asked for many at once.
        """
        if greedy_id is not None and self.on_step is None and self.sampler.is_plain:
            self.sampler.take(greedy_id)
            return self._event(self._append(greedy_id), greedy_id, None)
        if self.on_step is not None:
            self.on_step(self.request_idx, logits, self.sampler.process(logits))
        token_id, logprob = self.sampler.choose(logits)
        if logprob is not None:
            self.logprobs.append(logprob)
        return self._event(self._append(token_id), token_id, logprob)

    def finish_with(self, token_ids: tuple[int, ...]) -> TokenEvent:
        """Take a whole answer at once (beam search)."""
        text = "".join([self._append(token_id) for token_id in token_ids])
        if self.finish_reason is None:
            self.finish_reason = FinishReason.LENGTH
            text += self.stream.finish()
        return self._event(text, token_ids[-1], None)

    def cancel(self) -> TokenEvent:
        """End the answer where it is."""
        self.finish_reason = FinishReason.CANCELLED
        return self._event(self.stream.finish(), None, None)

    def _append(self, token_id: int) -> str:
        self.token_ids.append(token_id)
        self.timings.num_generated_tokens = len(self.token_ids)
        if token_id in self.eos_token_ids and not self.params.ignore_eos:
            self.finish_reason = FinishReason.STOP
            return self.stream.finish()
        text, is_stopped = self.stream.push(token_id)
        if is_stopped:
            self.finish_reason = FinishReason.STOP
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH
            text += self.stream.finish()
        return text

    def _event(self, text: str, token_id: int | None, logprob: TokenLogprob | None) -> TokenEvent:
        return TokenEvent(
            request_idx=self.request_idx,
            text=text,
            token_id=token_id,
            logprob=logprob,
            finish_reason=self.finish_reason,
        )


def make_generation(
    request_idx: int,
    prompt: EnginePrompt,
    params: SamplingParams,
    *,
    model: Llava,
    make_decoder: Callable[[], TokenDecoder],
    suppressed_ids: Tensor | None,
    eos_token_ids: frozenset[int],
    on_step: StepObserver | None = None,
    early_stopping: EarlyStopping = False,
    max_context_tokens: int | None = None,
    mask: TokenMask | None = None,
) -> Generation:
    """Check a prompt against the context, and make what its answer needs.

    Raises
    ------
    ContextOverflowError
        If the prompt leaves no room for an answer.
    SamplingError
        If a bias is on a token that the model does not have.
    """
    context = model.config.max_context_tokens
    if max_context_tokens is not None:
        context = min(context, max_context_tokens)
    num_prompt_tokens = len(prompt.token_ids)
    vocab_size = model.config.text_config.vocab_size
    if (unknown := max((token_id for token_id, _ in params.logit_bias), default=0)) >= vocab_size:
        raise SamplingError(f"logit_bias names the token {unknown}; the vocabulary has {vocab_size}, counted from 0.")
    room = context - num_prompt_tokens
    if room < 1:
        raise ContextOverflowError(
            f"the prompt has {num_prompt_tokens} tokens ({counted(len(prompt.image_keys), 'picture')} of "
            f"{model.config.num_image_tokens} each included), but the context is {context}, which "
            "must also hold the answer. Shorten the prompt, drop pictures or clear the conversation."
        )
    return Generation(
        request_idx=request_idx,
        prompt=prompt,
        params=params,
        sampler=Sampler(
            params,
            vocabulary_ids(prompt, model),
            suppressed_ids=suppressed_ids,
            mask=mask,
            end_ids=tensor_of_ends(params, eos_token_ids, model),
        ),
        stream=TextStream(make_decoder(), params.stop),
        max_new_tokens=min(params.max_new_tokens, room),
        timings=Timings(
            image_decode_s=prompt.image_decode_s,
            image_resize_s=prompt.image_resize_s,
            num_images=len(prompt.image_keys),
            num_prompt_tokens=num_prompt_tokens,
        ),
        eos_token_ids=eos_token_ids,
        on_step=on_step,
        early_stopping=early_stopping,
    )


def tensor_of_ends(params: SamplingParams, eos_token_ids: frozenset[int], model: Llava) -> Tensor:
    """Tokens of the vocabulary that end an answer."""
    vocab_size = model.config.text_config.vocab_size
    ids = [] if params.ignore_eos else sorted(token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size)
    return torch.tensor(ids, dtype=torch.int64, device=model.device)


def vocabulary_ids(prompt: EnginePrompt, model: Llava) -> Tensor:
    """Ids of the prompt that have a logit: the image token of original checkpoints has none."""
    vocab_size = model.config.text_config.vocab_size
    return torch.tensor([i for i in prompt.token_ids if i < vocab_size], dtype=torch.int64, device=model.device)
