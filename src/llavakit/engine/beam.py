"""Beam search over one prompt: the bookkeeping, without a model.

Follows transformers' rules, so that beams agree: per step the best ``2 * num_beams`` continuations are
looked at; finished ones among the best ``num_beams`` become candidates scored by
``sum of log-probabilities / length ** length_penalty``; the search ends when no running beam can still beat
the worst candidate, or at the length limit. ``early_stopping`` says what "can" means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Beam", "BeamSearch", "EarlyStopping"]

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class Beam:
    """A partial answer and the sum of its tokens' log-probabilities."""

    token_ids: tuple[int, ...]
    score: float


class BeamSearch:
    """State of one search.

    Parameters
    ----------
    num_beams : int
    length_penalty : float
    max_new_tokens : int
    is_finished : callable
        Whether an answer, given as its ids, is complete (end-of-sequence token or stop string).
    early_stopping : bool or "never", default False
        True ends as soon as there are ``num_beams`` candidates; False when the best running beam, at its present
        length, scores no better than the worst of them; "never" when it could not at any length.
    """

    def __init__(
        self,
        *,
        num_beams: int,
        length_penalty: float,
        max_new_tokens: int,
        is_finished: Callable[[tuple[int, ...]], bool],
        early_stopping: EarlyStopping = False,
    ) -> None:
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._max_new_tokens = max_new_tokens
        self._is_finished = is_finished
        self._early_stopping = early_stopping
        self.running: list[Beam] = [Beam((), 0.0)]
        self._candidates: list[Beam] = []  # score here is the length-normalised one; best first
        self._improvement_is_possible = True

    def step(self, logprobs: Tensor) -> list[int] | None:
        """Extend the running beams.

        Parameters
        ----------
        logprobs : float32 tensor of shape (len(running), V)

        Returns
        -------
        list of int or None
            For each new running beam the index of the beam it continues; None when the search is over.
        """
        extended, parents = self._best_continuations(logprobs)
        length = len(extended[0].token_ids)
        ended = [length >= self._max_new_tokens or self._is_finished(beam.token_ids) for beam in extended]
        self._collect(extended, ended, length)
        chosen = [idx for idx in range(len(extended)) if not ended[idx]][: self._num_beams]
        self.running = [extended[idx] for idx in chosen]
        if not chosen or not self._can_improve(length):
            return None
        return [parents[idx] for idx in chosen]

    @property
    def best(self) -> Beam:
        """The best finished answer, with its length-normalised score."""
        return self._candidates[0]

    @property
    def candidates(self) -> tuple[Beam, ...]:
        """The finished answers, best first, with their length-normalised scores."""
        return tuple(self._candidates)

    def _best_continuations(self, logprobs: Tensor) -> tuple[list[Beam], list[int]]:
        vocab_size = logprobs.shape[-1]
        scores = torch.tensor([beam.score for beam in self.running], device=logprobs.device)
        total = (logprobs + scores[:, None]).flatten()
        best = torch.topk(total, min(2 * self._num_beams, total.numel()))
        extended, parents = [], []
        for score, flat in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            parent, token_id = divmod(flat, vocab_size)
            extended.append(Beam((*self.running[parent].token_ids, token_id), score))
            parents.append(parent)
        return extended, parents

    def _collect(self, extended: list[Beam], ended: list[bool], length: int) -> None:
        if not self._improvement_is_possible:
            return
        fresh = [
            Beam(beam.token_ids, beam.score / length**self._length_penalty)
            for beam, is_over in list(zip(extended, ended, strict=True))[: self._num_beams]
            if is_over
        ]
        merged = sorted(self._candidates + fresh, key=lambda beam: -beam.score)
        self._candidates = merged[: self._num_beams]

    def _can_improve(self, length: int) -> bool:
        if len(self._candidates) < self._num_beams:
            return True
        if self._early_stopping is True:
            return False
        is_patient = self._early_stopping == "never" and self._length_penalty > 0.0
        best_length = self._max_new_tokens if is_patient else length
        best_running = self.running[0].score / best_length**self._length_penalty
        self._improvement_is_possible = best_running > self._candidates[-1].score
        return self._improvement_is_possible
