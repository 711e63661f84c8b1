"""From ``generate``'s settings to the engine's, and from its answers back to padded tensors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llavakit.core.errors import SamplingError
from llavakit.core.types import SamplingParams
from llavakit.dropin.generation_config import GenerationConfig
from llavakit.engine.beam import EarlyStopping
from llavakit.processing.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "AnchoredDecoder",
    "DecoderChoice",
    "DecodingPlan",
    "SilentDecoder",
    "StepRecorder",
    "assemble",
    "check_streamer",
    "make_plan",
]

_LOGGER = logging.getLogger(__name__)
# transformers' value for what neither the call nor generation_config.json says.
_DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class DecodingPlan:
    """What one call of ``generate`` will do.

    Parameters
    ----------
    params : tuple of SamplingParams
        One per run of the engine.
    num_answers_per_row : int
        Answers to each row of the input, next to each other: samples are runs of their own, beams come from one run.
    fill_id : int
        Stands after the end of the shorter answers.
    """

    params: tuple[SamplingParams, ...]
    num_answers_per_row: int
    early_stopping: EarlyStopping
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    fill_id: int

    @property
    def num_runs_per_row(self) -> int:
        """Runs of the engine for each row of the input."""
        return 1 if self.params[0].num_beams > 1 else self.num_answers_per_row


class SilentDecoder:
    """A detokenizer for when no text is needed."""

    def push(self, token_id: int) -> str:  # noqa: ARG002 - the protocol's argument
        """Return nothing."""
        return ""

    def finish(self) -> str:
        """Return nothing."""
        return ""


class AnchoredDecoder:
    """Text of tokens as they read after other text.

    A decoder drops the space in front of its first word; a stop string may begin with that space, so a word
    is decoded first and forgotten.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = StreamDecoder(tokenizer, is_eager=True)
        for token_id in tokenizer.encode("a"):
            self._decoder.push(token_id)

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is certain now."""
        return self._decoder.push(token_id)

    def finish(self) -> str:
        """Return what was held back."""
        return self._decoder.finish()


class DecoderChoice:
    """Makes the detokenizers of one call after the other.

    Attributes
    ----------
    tokenizer : Tokenizer, optional
        Set for calls that look for a stop string; None where no text is needed.
    """

    def __init__(self) -> None:
        self.tokenizer: Tokenizer | None = None

    def __call__(self) -> SilentDecoder | AnchoredDecoder:
        """Return a fresh detokenizer."""
        return SilentDecoder() if self.tokenizer is None else AnchoredDecoder(self.tokenizer)


class StepRecorder:
    """Keeps logits and scores of every step, for ``output_logits`` and ``output_scores``."""

    def __init__(self, num_answers: int) -> None:
        self._logits: list[list[Tensor]] = [[] for _ in range(num_answers)]
        self._scores: list[list[Tensor]] = [[] for _ in range(num_answers)]

    def __call__(self, request_idx: int, logits: Tensor, scores: Tensor) -> None:
        """Record one step of one answer."""
        self._logits[request_idx].append(logits.clone())
        self._scores[request_idx].append(scores.clone())

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """Per step a float32 tensor (B, V); zeros in rows whose answer has ended."""
        return _stack_steps(self._logits)

    @property
    def scores(self) -> tuple[Tensor, ...]:
        """The same after penalties, temperature and filters."""
        return _stack_steps(self._scores)


def make_plan(config: GenerationConfig, *, num_rows: int, prompt_len: int, seed: int | None) -> DecodingPlan:
    """Check settings against each other and turn them into the engine's.

    Parameters
    ----------
    config : GenerationConfig
    num_rows, prompt_len : int
        Shape of ``input_ids``; padding counts in ``max_length``, as in transformers.
    seed : int, optional
        Answer i samples with ``seed + i``. By default the seed is drawn from torch's generator, so that
        `torch.manual_seed` makes a run repeatable.

    Raises
    ------
    SamplingError
        If settings contradict each other or are not supported together.
    """
    _check(config)
    is_sampling = bool(config.do_sample)
    num_answers = config.num_return_sequences or 1
    eos_token_ids = _as_ids(config.eos_token_id)
    pad_token_id = config.pad_token_id
    if pad_token_id is None and eos_token_ids:
        pad_token_id = eos_token_ids[0]
    num_beams = config.num_beams or 1
    # Without beams it has no effect in transformers, where ours is an error.
    length_penalty = 1.0 if num_beams == 1 or config.length_penalty is None else config.length_penalty
    base = SamplingParams(
        max_new_tokens=_max_new_tokens(config, prompt_len),
        min_new_tokens=max(config.min_new_tokens or 0, (config.min_length or 0) - prompt_len),
        repetition_penalty=1.0 if config.repetition_penalty is None else config.repetition_penalty,
        num_beams=num_beams,
        length_penalty=length_penalty,
        stop=_as_stops(config.stop_strings),
    )
    if is_sampling:
        params = _sampled(config, base, seed, num_rows * num_answers)
    else:
        _warn_about_unused(config)
        params = (base,) * num_rows
    # transformers' beam search takes a pad id of 0 for none at all.
    fill_id = pad_token_id if base.num_beams == 1 or pad_token_id else next(iter(eos_token_ids), pad_token_id)
    return DecodingPlan(
        params=params,
        num_answers_per_row=num_answers,
        early_stopping=config.early_stopping or False,
        eos_token_ids=eos_token_ids,
        pad_token_id=config.pad_token_id,
        fill_id=0 if fill_id is None else fill_id,
    )


def check_streamer(streamer: Any, *, num_answers: int, num_beams: int) -> None:
    """Refuse a streamer for more than one growing answer.

    Raises
    ------
    SamplingError
    """
    if streamer is None:
        return
    if num_answers > 1 or num_beams > 1:
        raise SamplingError(
            f"a streamer takes one answer as it grows, but there are {num_answers} answers and {num_beams} beams. "
            "Stream one prompt at a time, with num_beams=1."
        )


def assemble(input_ids: Tensor, answers: Sequence[Sequence[int]], *, fill_id: int) -> Tensor:
    """Put answers behind their prompts.

    Parameters
    ----------
    input_ids : tensor of shape (B, T)
        As given to ``generate``, padding included.
    answers : sequence of B sequences of int

    Returns
    -------
    int64 tensor of shape (B, T + longest answer)
    """
    longest = max(len(answer) for answer in answers)
    tail = torch.full((len(answers), longest), fill_id, dtype=torch.int64, device=input_ids.device)
    for row, answer in zip(tail, answers, strict=True):
        row[: len(answer)] = torch.tensor(answer, device=input_ids.device)
    return torch.cat((input_ids.to(torch.int64), tail), dim=1)


def _check(config: GenerationConfig) -> None:
    num_beams, num_answers = config.num_beams or 1, config.num_return_sequences or 1
    if config.use_cache is False:
        raise SamplingError(
            "use_cache=False: there is no way without the key-value cache here. Leave it out; the tokens are the same."
        )
    if config.early_stopping not in (None, False, True, "never"):
        raise SamplingError(f"early_stopping is {config.early_stopping!r}; it must be True, False or 'never'.")
    if num_beams > 1 and config.do_sample:
        raise SamplingError(
            f"num_beams={num_beams} with do_sample=True: beam search here does not sample. Set one of them back."
        )
    if num_beams > 1 and (config.output_scores or config.output_logits):
        raise SamplingError(
            "output_scores and output_logits are not recorded in beam search. Set num_beams=1 or leave them out."
        )
    if num_beams > 1 and len(_as_ids(config.eos_token_id)) > 1:
        raise SamplingError(
            f"beam search here takes one end token, got eos_token_id={config.eos_token_id!r}. Choose one of them."
        )
    if num_beams > 1 and num_answers > num_beams:
        raise SamplingError(
            f"num_return_sequences={num_answers} is more than num_beams={num_beams}; it can be at most as many."
        )
    if num_answers > 1 and num_beams == 1 and not config.do_sample:
        raise SamplingError(
            f"num_return_sequences={num_answers} needs do_sample=True or num_beams: greedy decoding has one answer."
        )


def _max_new_tokens(config: GenerationConfig, prompt_len: int) -> int:
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        return _DEFAULT_NEW_TOKENS
    if config.max_length <= prompt_len:
        raise SamplingError(
            f"max_length is {config.max_length}, but the prompt has {prompt_len} tokens already, pictures and padding "
            "included. Raise it, or set max_new_tokens."
        )
    return config.max_length - prompt_len


def _sampled(
    config: GenerationConfig, base: SamplingParams, seed: int | None, num_answers: int
) -> tuple[SamplingParams, ...]:
    temperature = 1.0 if config.temperature is None else config.temperature
    if temperature == 0:
        raise SamplingError(
            "temperature=0 with do_sample=True: sampling needs a temperature above 0. Set do_sample=False."
        )
    first = int(torch.randint(1 << 62, ())) if seed is None else seed
    shared = replace(base, temperature=temperature, top_k=config.top_k or None, top_p=config.top_p, min_p=config.min_p)
    return tuple(replace(shared, seed=(first + idx) % (1 << 64)) for idx in range(num_answers))


def _warn_about_unused(config: GenerationConfig) -> None:
    neutral = {
        "temperature": (None, 0, 1.0),
        "top_k": (None, 0, 50),
        "top_p": (None, 1.0),
        "min_p": (None,),
    }
    unused = [
        f"{name}={value!r}" for name, allowed in neutral.items() if (value := getattr(config, name)) not in allowed
    ]
    if unused:
        _LOGGER.warning("%s say how to sample, but do_sample is not set: decoding is greedy.", ", ".join(unused))


def _as_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    ids = () if value is None else (value,) if isinstance(value, int) else tuple(value)
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise SamplingError(f"eos_token_id must be a token id or a list of them, got {value!r}.")
    return ids


def _as_stops(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _stack_steps(per_answer: list[list[Tensor]]) -> tuple[Tensor, ...]:
    num_steps = max(len(steps) for steps in per_answer)
    blank = torch.zeros_like(per_answer[0][0])
    return tuple(
        torch.stack([steps[idx] if idx < len(steps) else blank for steps in per_answer]) for idx in range(num_steps)
    )
