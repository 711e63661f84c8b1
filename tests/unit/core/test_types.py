"""Requests and settings: what is out of range or contradictory is refused with names and numbers."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.core.errors import PromptError, SamplingError
from llavakit.core.types import ImagePart, Message, Role, SamplingParams, TextPart, Timings


def test_defaults_are_greedy() -> None:
    params = SamplingParams()
    assert params.is_greedy
    assert params.num_beams == 1
    assert not SamplingParams(temperature=0.1).is_greedy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": (1 << 20) + 1}, "max_new_tokens is 1048577"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens must be a whole number, got 1\.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": 1e-300}, "temperature is 1e-300, which no score can be divided by"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"min_new_tokens": 4, "max_new_tokens": 3}, "min_new_tokens is 4, but max_new_tokens is 3"),
        ({"logit_bias": None}, "logit_bias must be a tuple"),
        ({"logit_bias": {5: 1.0}}, "logit_bias must be a tuple"),
        ({"stop": None}, "stop must be a tuple of strings, got None"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0"),
        ({"temperature": 1.0, "top_p": 1.01}, r"top_p is 1\.01"),
        ({"temperature": 1.0, "min_p": -0.5}, r"min_p is -0\.5"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0"),
        ({"presence_penalty": 101.0}, r"presence_penalty is 101\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"num_top_logprobs": 21}, "num_top_logprobs is 21"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"stop": "abc"}, "stop must be a tuple of strings, got 'abc'"),
        ({"stop": (1,)}, r"stop must be a tuple of strings, got \(1,\)"),
        ({"stop": ("",)}, "empty string"),
        ({"stop": ("x",) * 65}, "stop holds 65 strings"),
        ({"top_k": 5}, "top_k given with temperature 0"),
        ({"top_p": 0.9, "min_p": 0.1}, "top_p, min_p given with temperature 0"),
        ({"num_beams": 2, "temperature": 0.5}, r"num_beams=2 with temperature=0\.5"),
        ({"num_beams": 2, "num_top_logprobs": 0}, "beam search"),
    ],
)
def test_bad_settings_are_refused_with_their_numbers(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        SamplingParams(**settings)


@given(
    temperature=st.floats(min_value=1e-3, max_value=100),
    top_k=st.none() | st.integers(min_value=1, max_value=1 << 31),
    top_p=st.none() | st.floats(min_value=0, max_value=1, exclude_min=True),
    min_p=st.none() | st.floats(min_value=0, max_value=1),
    seed=st.none() | st.integers(min_value=0, max_value=(1 << 64) - 1),
)
def test_everything_in_range_is_accepted(**settings: Any) -> None:
    params = SamplingParams(**settings)
    assert {name: getattr(params, name) for name in settings} == settings


def test_settings_cannot_be_changed_later() -> None:
    params = SamplingParams()
    with pytest.raises(FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("role", [Role.SYSTEM, Role.ASSISTANT])
def test_only_user_messages_hold_images(role: Role) -> None:
    with pytest.raises(PromptError, match=f"a message of the role {role.value!r} holds an image"):
        Message(role, (TextPart("see"), ImagePart("cat.png")))


def test_images_come_in_order() -> None:
    message = Message(Role.USER, (ImagePart("a"), TextPart("and"), ImagePart("b")))
    assert [part.source for part in message.images] == ["a", "b"]


def test_timings_count_what_was_computed() -> None:
    timings = Timings(prefill_s=2.0, decode_s=3.0, num_prompt_tokens=100, num_cached_tokens=40, num_generated_tokens=7)
    assert timings.prefill_tokens_per_s == 30.0
    assert timings.decode_tokens_per_s == 2.0
    assert Timings().prefill_tokens_per_s == 0.0
    assert Timings().decode_tokens_per_s == 0.0
