"""What callers may pass as a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llavakit
from llavakit.core.errors import PromptError
from llavakit.core.types import ImagePart, Message, Role, TextPart
from llavakit.processing.chat import ImageSegment, Segment, TextSegment, render, render_fitting, to_messages
from llavakit.processing.jinja_template import render_chat_template
from llavakit.processing.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("block", "source"),
    [
        ({"type": "image", "image": b"x"}, b"x"), ({"type": "image", "path": "a.png"}, "a.png"),
        ({"type": "image", "url": "https://a.example/x"}, "https://a.example/x"),
        ({"type": "image", "base64": "AAAA"}, "data:image/*;base64,AAAA"),
        ({"type": "image", "base64": "data:image/png;base64,AAAA"}, "data:image/png;base64,AAAA"),
        ({"type": "image_url", "image_url": {"url": "https://a.example/x"}}, "https://a.example/x"),
        ({"type": "image_url", "image_url": "https://a.example/x"}, "https://a.example/x"),
        (ImagePart("a.png"), "a.png"),
    ],
)  # fmt: skip
def test_every_form_of_a_picture(block: Any, source: Any) -> None:
    (message,) = to_messages([{"role": "user", "content": [block, {"type": "text", "text": "Q"}]}])
    assert message == Message(Role.USER, (ImagePart(source), TextPart("Q")))


def test_every_form_of_a_question() -> None:
    expected = (Message(Role.USER, (TextPart("Q"),)),)
    assert to_messages("Q") == expected
    assert to_messages({"role": "user", "content": "Q"}) == expected
    assert to_messages(expected[0]) == expected
    assert to_messages([{"role": "user", "content": [TextPart("Q")]}]) == expected


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "conversation is empty"), (7, "got int"), ([7], "got int"), ([{"role": "user"}], "needs role and content"),
        ([{"role": "tool", "content": "x"}], "role 'tool' is not known"), (_user(None), "got NoneType"),
        ([{"role": "user", "content": "x", "name": "y"}], "unknown keys \\['name'\\]"), (_user(b"x"), "got bytes"),
        (_user(["x"]), "mapping with a type"), (_user([{"text": "x"}]), "mapping with a type"),
        (_user([{"type": "video", "url": "x"}]), "type 'video'"), (_user([{"type": "text", "text": 3}]), "type 'text'"),
        (_user([{"type": "image"}]), "type 'image'"), (_user([{"type": "image", "file": "x"}]), "keys \\['file'\\]"),
        (_user([{"type": "image", "url": "a", "path": "b"}]), "keys \\['path', 'url'\\]"),
        ([{"role": "assistant", "content": "x"}], "turn 0 is from assistant"), (_user("x") * 2, "turn 1 is from user"),
        ([{"role": "system", "content": "x"}], "only a system message"),
        ([*_user("x"), {"role": "system", "content": "x"}], "message 1 is a system message"),
        ([*_user("x"), *[{"role": "system", "content": "x"}] * 2], "message 1 is a system message"),
        ([{"role": "system", "content": "x"}, *_user("x"), {"role": "system", "content": "y"}], "message 2 is a"),
        ([{"role": "system", "content": [{"type": "image", "url": "x"}]}], "the role 'system' holds an image"),
    ],
)  # fmt: skip
def test_conversation_that_makes_no_sense_is_refused(conversation: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        to_messages(conversation)


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v1", "llava-hf"])
def test_system_messages_at_the_beginning_are_one(template: str) -> None:
    split = [{"role": "system", "content": words} for words in ("Be brief.", "Answer in French.")]
    one = [{"role": "system", "content": "Be brief. Answer in French."}]
    found, expected = (render(to_messages([*system, *_user("Hi")]), template) for system in (split, one))
    assert found == expected
    (text,) = found
    assert isinstance(text, TextSegment)
    assert text.text.startswith("Be brief. Answer in French. USER: Hi")


_TOKENS_PER_IMAGE = 7


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return llavakit.load("llava:tiny").tokenizer


def _count(tokenizer: Tokenizer, segments: tuple[Segment, ...]) -> int:
    sizes = {True: _TOKENS_PER_IMAGE, False: 1}
    return 1 + sum(
        len(tokenizer.encode(segment.text)) if isinstance(segment, TextSegment)
        else sizes[isinstance(segment, ImageSegment)]
        for segment in segments
    )  # fmt: skip


def _drop_one_by_one(
    messages: tuple[Message, ...], template: str, tokenizer: Tokenizer, limit: int
) -> tuple[Segment, ...] | None:
    """Leave out the first question with what follows up to the next one, until it fits; None where that ends."""
    while _count(tokenizer, segments := render(messages, template)) >= limit:
        start = next(idx for idx, message in enumerate(messages) if message.role is not Role.SYSTEM)
        after = next((i for i in range(start + 1, len(messages)) if messages[i].role is Role.USER), None)
        if after is None:
            return None
        messages = (*messages[:start], *messages[after:])
    return segments


_TEXT = st.text(st.sampled_from("  \n.aeUS:▁é"), max_size=12) | st.sampled_from(
    ["USER: ", " ASSISTANT:", "red circle "]
)


@settings(max_examples=200)
@given(
    system=st.none() | _TEXT,
    turns=st.lists(st.tuples(_TEXT, st.integers(0, 2), _TEXT), min_size=1, max_size=9),
    ends_with_answer=st.booleans(),
    template=st.sampled_from(["vicuna_v1", "llava_v1", "llava-hf"]),
    limit=st.integers(1, 250),
)
def test_as_few_of_the_oldest_turns_are_left_out_as_dropping_one_by_one(
    tokenizer: Tokenizer, system: str | None, turns: list[tuple[str, int, str]], ends_with_answer: bool, template: str,
    limit: int,
) -> None:  # fmt: skip
    messages = [] if system is None else [Message(Role.SYSTEM, (TextPart(system),))]
    for idx, (question, num_pictures, answer) in enumerate(turns):
        pictures = [ImagePart(f"{idx}-{number}") for number in range(num_pictures)]
        messages += [Message(Role.USER, (*pictures, TextPart(question))), Message(Role.ASSISTANT, (TextPart(answer),))]
    conversation = to_messages(messages if ends_with_answer else messages[:-1])
    expected = _drop_one_by_one(conversation, template, tokenizer, limit)

    def fits(segments: tuple[Segment, ...]) -> bool:
        return _count(tokenizer, segments) < limit

    if expected is None:
        with pytest.raises(PromptError, match="no earlier turn"):
            render_fitting(conversation, template, fits=fits)
    else:
        assert render_fitting(conversation, template, fits=fits) == expected


def test_leaving_out_turns_looks_at_little_more_than_the_conversation() -> None:
    messages = to_messages(
        [m for idx in range(1024) for m in (*_user(str(idx)), {"role": "assistant", "content": "A"})]
    )
    looked_at = 0

    def fits(segments: tuple[Segment, ...]) -> bool:
        nonlocal looked_at
        looked_at += len(segments)
        return len(segments) <= 40

    assert len(render_fitting(messages, "vicuna_v1", fits=fits)) <= 40
    assert looked_at <= 2.5 * len(messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}",
        "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}", "{{ 'unclosed", "{{ 1 / 0 }}", "{{ undefined.name }}",
        "{{ messages.__init__.__globals__ }}", "{% include '/etc/passwd' %}",
    ],
)  # fmt: skip
def test_template_that_is_broken_or_hostile_is_refused(template: str) -> None:
    with pytest.raises(PromptError, match="chat template"):
        render_chat_template(template, [{"role": "user", "content": "x"}])


def test_template_that_is_too_long_or_writes_too_much_is_refused() -> None:
    with pytest.raises(PromptError, match="300000 characters"):
        render_chat_template("x" * 300_000, [])
    with pytest.raises(PromptError, match="more than 16777216 characters"):
        render_chat_template("{% for i in range(20000) %}{{ 'x' * 1000 }}{% endfor %}", [])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 12 }}", "{{ ('x' * 100000) * 100000 }}", "{{ 2 ** 100000 }}", "{{ [0] * 10 ** 11 }}",
    ],
)  # fmt: skip
def test_template_cannot_take_all_memory(template: str) -> None:
    with pytest.raises(PromptError, match="chat template"):
        render_chat_template(template, [])


@pytest.mark.parametrize("inner", ["range(99999)", "numbers"])
def test_template_cannot_go_on_forever(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavakit.processing.jinja_template._MAX_RENDER_S", 0.2)
    template = "{% set numbers = range(99999) %}{% for i in numbers %}{% for j in INNER %}{% endfor %}{% endfor %}"
    with pytest.raises(PromptError, match=r"still rendering after 0\.2 s"):
        render_chat_template(template.replace("INNER", inner), [])
