"""Filters against slow oracles; seeds; penalties; damaged logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llavakit.core.errors import ConstraintError, NonFiniteError, SamplingError
from llavakit.core.types import SamplingParams
from llavakit.engine.sampler import (
    Sampler,
    apply_penalties,
    choose_greedily,
    filter_min_p,
    filter_top_k,
    filter_top_p,
)

_NO_PROMPT = torch.tensor([], dtype=torch.int64)
_LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20, unique=True).map(torch.tensor)


def _kept(logits: torch.Tensor) -> set[int]:
    return {idx for idx, value in enumerate(logits.tolist()) if value != -math.inf}


@given(_LOGITS, st.integers(1, 25))
def test_top_k_keeps_the_k_largest(logits: torch.Tensor, k: int) -> None:
    best = sorted(range(len(logits)), key=lambda idx: -logits[idx].item())[:k]
    assert _kept(filter_top_k(logits, k)) == set(best)


@given(_LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: torch.Tensor, p: float) -> None:
    probabilities = logits.double().softmax(-1).tolist()
    order = sorted(range(len(logits)), key=lambda idx: -logits[idx].item())
    kept = _kept(filter_top_p(logits, p))
    assert kept == set(order[: len(kept)])
    mass = sum(probabilities[idx] for idx in kept)
    mass_without_last = mass - probabilities[order[len(kept) - 1]]
    # float32 sums of at most 20 terms are good to 20 * 2**-24, about 1.2e-6.
    assert mass >= p - 2e-6
    assert mass_without_last <= p + 2e-6


@given(_LOGITS, st.floats(0.01, 0.99))
def test_min_p_compares_with_the_most_likely(logits: torch.Tensor, p: float) -> None:
    kept = _kept(filter_min_p(logits, p))
    gap = math.log(p)
    for idx, value in enumerate(logits.tolist()):
        distance = value - logits.max().item() - gap
        if abs(distance) > 1e-4:
            assert (idx in kept) == (distance > 0)


def test_repetition_penalty_divides_positive_and_multiplies_negative() -> None:
    params = SamplingParams(repetition_penalty=2.0)
    scores = apply_penalties(torch.tensor([4.0, -4.0, 1.0]), params, prompt_ids=torch.tensor([0]), generated=[1, 1])
    assert scores.tolist() == [2.0, -8.0, 1.0]


def test_presence_penalty_counts_a_token_once_and_ignores_the_prompt() -> None:
    params = SamplingParams(presence_penalty=0.5)
    scores = apply_penalties(torch.zeros(3), params, prompt_ids=torch.tensor([0]), generated=[1, 1])
    assert scores.tolist() == [0.0, -0.5, 0.0]


def _draw(seed: int | None, num: int = 20) -> list[int]:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), torch.tensor([0]))
    return [sampler.choose(torch.zeros(1000))[0] for _ in range(num)]


def test_same_seed_gives_same_tokens_and_another_seed_others() -> None:
    assert _draw(7) == _draw(7)
    assert _draw(7) != _draw(8)


def test_sampling_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([0.7, 0.2, 0.1]).log()
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0), torch.tensor([0]))
    num = 3000
    counts = [0, 0, 0]
    for _ in range(num):
        counts[sampler.choose(logits)[0]] += 1
    for count, probability in zip(counts, (0.7, 0.2, 0.1), strict=True):
        # Five standard deviations of a binomial count.
        assert abs(count - num * probability) < 5 * math.sqrt(num * probability * (1 - probability))


def test_penalties_may_be_whole_numbers() -> None:
    params = SamplingParams(presence_penalty=1, frequency_penalty=2)
    scores = apply_penalties(torch.zeros(3), params, prompt_ids=torch.tensor([0]), generated=[1, 1])
    assert scores.tolist() == [0.0, -5.0, 0.0]


def test_suppressed_token_is_never_chosen() -> None:
    sampler = Sampler(SamplingParams(), torch.tensor([0]), suppressed_ids=torch.tensor([2]))
    assert sampler.choose(torch.tensor([0.0, 1.0, 5.0]))[0] == 1


def test_logprobs_are_of_the_models_own_distribution() -> None:
    params = SamplingParams(temperature=0.1, seed=1, num_top_logprobs=2)
    token_id, logprob = Sampler(params, torch.tensor([0])).choose(torch.tensor([0.0, math.log(3.0)]))
    assert logprob is not None
    assert logprob.token_id == token_id
    assert logprob.top[0] == pytest.approx((1, math.log(0.75)))
    assert logprob.top[1] == pytest.approx((0, math.log(0.25)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), torch.tensor([0]))
    with pytest.raises(NonFiniteError, match="NaN"):
        sampler.choose(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p is 1.5"),
        ({"top_k": 0, "temperature": 1.0}, "top_k is 0"),
        ({"top_k": 5}, "temperature 0"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample"),
        ({"length_penalty": 2.0}, "without beams"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "whole number"),
        ({"stop": ("",)}, "empty string"),
        ({"stop": "END"}, "tuple of strings"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_or_contradictory_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SamplingError, match=words):
        SamplingParams(**settings)  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 1 << 30))
def test_many_rows_at_once_are_rows_in_turn(num_rows: int, vocab_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (num_rows, vocab_size), generator=generator).float()  # many are equal
    for suppressed in (None, torch.tensor([0, vocab_size - 1])):
        params = SamplingParams(temperature=0.0)
        one_by_one = [Sampler(params, _NO_PROMPT, suppressed_ids=suppressed).choose(row)[0] for row in logits]
        assert choose_greedily(logits, suppressed) == one_by_one


def test_a_damaged_row_is_left_to_its_own_sampler() -> None:
    logits = torch.zeros((3, 4))
    logits[1, 2] = math.nan
    assert choose_greedily(logits, None) == [0, None, 0]
    assert choose_greedily(torch.full((1, 2), -math.inf), None) == [None]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.5}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1},
        {"logit_bias": ((1, 2.0),)}, {"num_top_logprobs": 0},
    ],
    ids=str,
)  # fmt: skip
def test_whoever_asks_for_more_is_not_plain(setting: dict[str, Any]) -> None:
    assert Sampler(SamplingParams(temperature=0.0), _NO_PROMPT).is_plain
    assert not Sampler(SamplingParams(**({"temperature": 0.0} | setting)), _NO_PROMPT).is_plain


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_that_leaves_no_token_is_refused(temperature: float) -> None:
    class _Mask:
        def next_bits(self) -> np.ndarray:
            return np.array([False, True, False, False])

        def accept(self, token_id: int) -> None:
            raise AssertionError(token_id)

    params = SamplingParams(temperature=temperature)
    sampler = Sampler(params, _NO_PROMPT, suppressed_ids=torch.tensor([1]), mask=_Mask())
    with pytest.raises(ConstraintError, match="never written"):
        sampler.choose(torch.zeros(4))
