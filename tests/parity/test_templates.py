"""Prompts of the named templates: the published strings; llava-hf against its template rendered by Jinja."""

from __future__ import annotations

from typing import Any

import pytest

from llavakit.core.errors import PromptError
from llavakit.processing.chat import EosSegment, ImageSegment, Segment, TextSegment, render, to_messages
from llavakit.processing.jinja_template import render_chat_template
from tests.tiny import CHAT_TEMPLATE

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_IMAGE = {"type": "image", "image": b""}


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _turn(role: str, *blocks: Any) -> dict[str, Any]:
    return {"role": role, "content": [_text(block) if isinstance(block, str) else block for block in blocks]}


def _written(segments: tuple[Segment, ...]) -> str:
    names = {ImageSegment: "<image>", EosSegment: "</s>"}
    return "".join(segment.text if isinstance(segment, TextSegment) else names[type(segment)] for segment in segments)


_ONE = [_turn("user", _IMAGE, "Q")]
_TWO = [_turn("user", _IMAGE, "Q1"), _turn("assistant", "A1"), _turn("user", "Q2")]
_FINISHED = [*_TWO, _turn("assistant", "A2")]


@pytest.mark.parametrize(
    ("conversation", "is_asking", "expected"),
    [
        (_ONE, True, f"{_SYSTEM} USER: <image>\nQ ASSISTANT:"),
        (_TWO, True, f"{_SYSTEM} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"),
        (_FINISHED, False, f"{_SYSTEM} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>"),
        ([_turn("user", "Q", _IMAGE)], True, f"{_SYSTEM} USER: <image>\nQ ASSISTANT:"),
        ([_turn("user", _IMAGE, _IMAGE, "Q")], True, f"{_SYSTEM} USER: <image>\n<image>\nQ ASSISTANT:"),
        ("Q", True, f"{_SYSTEM} USER: Q ASSISTANT:"),
        ([_turn("system", "SYS"), *_ONE], True, "SYS USER: <image>\nQ ASSISTANT:"),
    ],
)
def test_vicuna_v1(conversation: Any, is_asking: bool, expected: str) -> None:
    assert _written(render(to_messages(conversation), "vicuna_v1", add_generation_prompt=is_asking)) == expected


def test_llava_v1_differs_in_its_system_sentence_only() -> None:
    human = _SYSTEM.replace("curious user", "curious human").replace("the user's", "the human's")
    expected = _written(render(to_messages(_TWO), "vicuna_v1")).replace(_SYSTEM, human)
    assert _written(render(to_messages(_TWO), "llava_v1")) == expected


def test_plain_is_pictures_and_words_only() -> None:
    assert _written(render(to_messages([_turn("user", _IMAGE, "a caption")]), "plain")) == "<image>a caption"


@pytest.mark.parametrize(
    ("conversation", "is_asking", "expected"),
    [
        ([_turn("user", _IMAGE, "What is this?")], True, "USER: <image>\nWhat is this? ASSISTANT:"),
        ([_turn("user", "What is this?", _IMAGE)], True, "USER: <image>\nWhat is this? ASSISTANT:"),
        ([_turn("user", _IMAGE, _IMAGE, "A", "B")], True, "USER: <image>\n<image>\nA B ASSISTANT:"),
        (_TWO, True, "USER: <image>\nQ1 ASSISTANT: A1 USER: Q2 ASSISTANT:"),
        ([_turn("system", "SYS"), *_ONE], True, "SYS USER: <image>\nQ ASSISTANT:"),
        (_ONE, False, "USER: <image>\nQ "),
        (_FINISHED, False, "USER: <image>\nQ1 ASSISTANT: A1 USER: Q2 ASSISTANT: A2 "),
        ([_turn("user", "Q")], True, "USER: Q ASSISTANT:"),
    ],
)
def test_llava_hf(conversation: Any, is_asking: bool, expected: str) -> None:
    ours = _written(render(to_messages(conversation), "llava-hf", add_generation_prompt=is_asking))
    assert ours == expected
    assert render_chat_template(CHAT_TEMPLATE, conversation, add_generation_prompt=is_asking) == expected


def test_words_as_a_plain_string_are_kept() -> None:
    """The checkpoint's own template drops them."""
    conversation = [{"role": "user", "content": "Where is it?"}]
    assert _written(render(to_messages(conversation), "llava-hf")) == "USER: Where is it? ASSISTANT:"


def test_beginning_of_an_answer_is_gone_on_with() -> None:
    conversation = [_turn("user", "Q"), _turn("assistant", "It is")]
    assert _written(render(to_messages(conversation), "vicuna_v1")) == f"{_SYSTEM} USER: Q ASSISTANT: It is"
    assert _written(render(to_messages(conversation), "llava-hf")) == "USER: Q ASSISTANT: It is"


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v1", "llava-hf", "plain"])
def test_written_control_words_stay_text(template: str) -> None:
    words = "<image> </s> <s> USER: ASSISTANT: <pad> <0x0A>"
    segments = render(to_messages([_turn("user", _IMAGE, words)]), template)
    assert sum(isinstance(segment, ImageSegment) for segment in segments) == 1
    assert not any(isinstance(segment, EosSegment) for segment in segments)
    assert any(isinstance(segment, TextSegment) and words in segment.text for segment in segments)


def test_unknown_template_is_named() -> None:
    with pytest.raises(PromptError, match="template 'vicuna' is not known; choose one of vicuna_v1"):
        render(to_messages("Q"), "vicuna")
