"""Choosing the next token of one request.

The order is transformers': biases, penalties, temperature, top-k, top-p, min-p. Every request has its own random
generator, so its tokens do not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llavakit.core.errors import ConstraintError, NonFiniteError
from llavakit.core.types import SamplingParams, TokenLogprob

__all__ = [
    "Sampler", "TokenMask", "apply_penalties", "choose_greedily", "filter_min_p", "filter_top_k", "filter_top_p",
    "forbid_ends",
]  # fmt: skip


def apply_penalties(scores: Tensor, params: SamplingParams, *, prompt_ids: Tensor, generated: Sequence[int]) -> Tensor:
    """Apply biases and penalties to logits or log-probabilities of (V,); the input is left alone.

    The repetition penalty looks at prompt and answer, the presence and frequency penalties at the answer only.
    """
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        scores = scores.index_add(
            0,
            torch.tensor(ids, dtype=torch.int64, device=scores.device),
            torch.tensor(biases, dtype=scores.dtype, device=scores.device),
        )
    generated_ids = torch.tensor(generated, dtype=torch.int64, device=scores.device)
    if params.repetition_penalty != 1.0:
        recent = torch.cat((prompt_ids, generated_ids))
        if params.repetition_window is not None:
            recent = recent[max(len(recent) - params.repetition_window, 0) :]
        seen_ids = torch.unique(recent)
        seen = scores[seen_ids]
        penalized = torch.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
        scores = scores.index_copy(0, seen_ids, penalized)
    if params.presence_penalty != 0.0 and generated:
        ids = torch.unique(generated_ids)
        scores = scores.index_add(0, ids, scores.new_full(ids.shape, -params.presence_penalty))
    if params.frequency_penalty != 0.0 and generated:
        shares = scores.new_full(generated_ids.shape, -params.frequency_penalty)
        scores = scores.index_add(0, generated_ids, shares)
    return scores


def forbid_ends(scores: Tensor, params: SamplingParams, *, end_ids: Tensor, num_generated: int) -> Tensor:
    """Rule the tokens that end an answer out of (V,) while it is shorter than ``min_new_tokens``."""
    if num_generated >= params.min_new_tokens:
        return scores
    return scores.index_fill(0, end_ids, -torch.inf)


def filter_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of (V,), and those equal to the k-th."""
    k = min(k, logits.shape[-1])
    return logits.masked_fill(logits < torch.topk(logits, k).values[-1], -torch.inf)


def filter_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens of (V,) whose probabilities reach ``p``."""
    ascending, order = torch.sort(logits)
    is_tail = ascending.softmax(-1).cumsum(-1) <= 1.0 - p
    is_tail[-1] = False
    return logits.masked_fill(is_tail.scatter(0, order, is_tail), -torch.inf)


def filter_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens of (V,) with at least ``p`` times the highest probability."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)


def choose_greedily(logits: Tensor, suppressed_ids: Tensor | None) -> list[int | None]:
    """Choose for rows (n, V) at once what `Sampler.choose` does for those that are plain; None where it would raise."""
    scores = logits if suppressed_ids is None else logits.index_fill(1, suppressed_ids, -torch.inf)
    best = scores.argmax(-1)
    is_finite = logits.gather(1, best[:, None])[:, 0].isfinite()
    return [token_id if fine else None for token_id, fine in zip(best.tolist(), is_finite.tolist(), strict=True)]


class TokenMask(Protocol):
    """Which tokens may follow, by the form an answer must have (``processing.grammar``)."""

    def next_bits(self) -> np.ndarray:
        """Return int32 words whose bits, lowest first, say of each token whether it may come next."""

    def accept(self, token_id: int) -> None:
        """Take note of the token that was chosen."""


class Sampler:
    """Sampling state of one request.

    Parameters
    ----------
    params : SamplingParams
    prompt_ids : tensor of shape (T,)
        Ids of the prompt that count for the repetition penalty.
    suppressed_ids : tensor of shape (n,), optional
        Tokens that must never be chosen.
    mask : TokenMask, optional
        Rules out all tokens but those that the answer's form allows.
    end_ids : tensor of shape (n,), optional
        Tokens that end the answer, for ``min_new_tokens``.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Tensor,
        *,
        suppressed_ids: Tensor | None = None,
        mask: TokenMask | None = None,
        end_ids: Tensor | None = None,
    ) -> None:
        self._params = params
        self._mask = mask
        self._suppressed_ids = suppressed_ids
        self._prompt_ids = prompt_ids
        self._end_ids = prompt_ids[:0] if end_ids is None else end_ids
        self._generated: list[int] = []
        self._generator: torch.Generator | None = None
        if not params.is_greedy:
            self._generator = torch.Generator(device=prompt_ids.device)
            if params.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(params.seed)

    @property
    def is_plain(self) -> bool:
        """Whether the token is the most likely one that is not suppressed, and nothing more is asked."""
        params = self._params
        return (
            params.is_greedy
            and self._mask is None
            and not params.logit_bias
            and (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
            and params.num_top_logprobs is None
            and len(self._generated) >= params.min_new_tokens
        )

    def take(self, token_id: int) -> None:
        """Note a token that `choose_greedily` has chosen."""
        self._generated.append(token_id)

    def process(self, logits: Tensor) -> Tensor:
        """Return what the next token is chosen from: the logits (V,) after penalties, temperature and filters."""
        scores = logits
        if self._suppressed_ids is not None:
            scores = scores.index_fill(0, self._suppressed_ids, -torch.inf)
        if self._mask is not None:
            scores = _keep(scores, self._mask.next_bits())
        scores = apply_penalties(scores, self._params, prompt_ids=self._prompt_ids, generated=self._generated)
        scores = forbid_ends(scores, self._params, end_ids=self._end_ids, num_generated=len(self._generated))
        return scores if self._params.is_greedy else self._filter(scores / self._params.temperature)

    def choose(self, logits: Tensor) -> tuple[int, TokenLogprob | None]:
        """Choose a token.

        Parameters
        ----------
        logits : float32 tensor of shape (V,)

        Returns
        -------
        token_id : int
        logprob : TokenLogprob or None
            When asked for: of the model's own distribution, before temperature and filters.

        Raises
        ------
        NonFiniteError
            If the logits hold NaN: weights or input are damaged.
        ConstraintError
            If the answer's form leaves no token.
        """
        scores = self.process(logits)
        if self._mask is not None and bool(scores.max() == -torch.inf):
            raise ConstraintError(
                "the form that the answer must have asks for a token that is never written, such as <image>. Change it."
            )
        if self._params.is_greedy:
            token_id = int(scores.argmax())
        else:
            probabilities = scores.softmax(-1)
            _check_finite(probabilities)
            token_id = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if not torch.isfinite(logits[token_id]):
            _raise_non_finite()
        self._generated.append(token_id)
        if self._mask is not None:
            self._mask.accept(token_id)
        return token_id, self._report(logits, token_id)

    def _filter(self, scores: Tensor) -> Tensor:
        if self._params.top_k is not None:
            scores = filter_top_k(scores, self._params.top_k)
        if self._params.top_p is not None and self._params.top_p < 1.0:
            scores = filter_top_p(scores, self._params.top_p)
        if self._params.min_p is not None:
            scores = filter_min_p(scores, self._params.min_p)
        return scores

    def _report(self, logits: Tensor, token_id: int) -> TokenLogprob | None:
        if self._params.num_top_logprobs is None:
            return None
        logprobs = logits.log_softmax(-1)
        best = torch.topk(logprobs, self._params.num_top_logprobs)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenLogprob(token_id=token_id, logprob=float(logprobs[token_id]), top=top)


def _keep(scores: Tensor, words: np.ndarray) -> Tensor:
    """Rule out the tokens of (V,) whose bits are not set."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: scores.shape[-1]].astype(bool)
    allowed = torch.zeros(scores.shape, dtype=torch.bool)  # rows that pad the vocabulary have no bit
    allowed[: len(bits)] = torch.from_numpy(bits)
    return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


def _check_finite(probabilities: Tensor) -> None:
    if not bool(torch.isfinite(probabilities).all()):
        _raise_non_finite()


def _raise_non_finite() -> None:
    raise NonFiniteError(
        "the model's output holds NaN or infinity, so no token can be chosen. The weights are damaged or the dtype "
        "overflows: run `llavakit verify`, or load with dtype='float32'."
    )
