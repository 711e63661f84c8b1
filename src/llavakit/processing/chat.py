"""Conversations: from what callers pass to messages, and from messages to prompt segments.

A template gives segments, not a string: what a user typed is a text segment and stays text, whatever it says. Only the
segments made here become pictures or end-of-sequence tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llavakit.core.errors import PromptError
from llavakit.core.types import ImagePart, Message, Role, TextPart

__all__ = [
    "TEMPLATES",
    "EosSegment",
    "ImageSegment",
    "Segment",
    "TextSegment",
    "render",
    "render_fitting",
    "to_messages",
]

_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
# Default system sentence of each template; None: there is none.
TEMPLATES: dict[str, str | None] = {"vicuna_v1": _VICUNA, "llava_v1": _LLAVA_V1, "llava-hf": None, "plain": None}


@dataclass(frozen=True)
class TextSegment:
    """Text; tokenized without control tokens."""

    text: str


@dataclass(frozen=True)
class ImageSegment:
    """A picture's place."""

    source: Any


@dataclass(frozen=True)
class EosSegment:
    """The end of a finished answer."""


Segment = TextSegment | ImageSegment | EosSegment


def to_messages(conversation: Any) -> tuple[Message, ...]:
    """Normalise a conversation.

    Parameters
    ----------
    conversation : str, or sequence of Message or mapping
        A question; or messages with ``role`` and ``content``, the content a string or a list of blocks:
        ``{"type": "text", "text": ...}``, ``{"type": "image", "image" | "url" | "path" | "base64": ...}``,
        ``{"type": "image_url", "image_url": {"url": ...}}``. System messages come first.

    Returns
    -------
    tuple of Message
        One system message at most, with the words of all, and then turns of user and assistant.

    Raises
    ------
    PromptError
        If roles, types or keys are unknown, or the order of roles makes no conversation.
    """
    if isinstance(conversation, str):
        return (Message(Role.USER, (TextPart(conversation),)),)
    if isinstance(conversation, Message | Mapping) or not isinstance(conversation, Sequence):
        conversation = [conversation]
    messages = tuple(item if isinstance(item, Message) else _message(item) for item in conversation)
    _check_order(messages)
    num_system = sum(message.role is Role.SYSTEM for message in messages)
    if num_system < 2:
        return messages
    words = tuple(part for message in messages[:num_system] for part in message.parts)
    return (Message(Role.SYSTEM, words), *messages[num_system:])


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise PromptError(f"a message must be a mapping with role and content, got {type(item).__name__}.")
    if unknown := set(item) - {"role", "content"}:
        raise PromptError(f"a message has the unknown keys {sorted(map(str, unknown))}; known: role, content.")
    if "role" not in item or "content" not in item:
        raise PromptError(f"a message needs role and content, got the keys {sorted(map(str, item))}.")
    try:
        role = Role(item["role"])
    except ValueError:
        raise PromptError(f"role {item['role']!r} is not known; use system, user or assistant.") from None
    content = item["content"]
    if isinstance(content, str):
        return Message(role, (TextPart(content),))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"content must be a string or a list of blocks, got {type(content).__name__}.")
    return Message(role, tuple(_part(block) for block in content))


def _part(block: Any) -> TextPart | ImagePart:
    if isinstance(block, TextPart | ImagePart):
        return block
    if not isinstance(block, Mapping) or "type" not in block:
        raise PromptError(f"a content block must be a mapping with a type, got {str(block)[:100]!r}.")
    kind = block["type"]
    keys = set(block) - {"type"}
    if kind == "text" and keys == {"text"} and isinstance(block["text"], str):
        return TextPart(block["text"])
    if kind == "image_url" and "image_url" in keys:
        inner = block["image_url"]
        url = inner.get("url") if isinstance(inner, Mapping) else inner
        if isinstance(url, str):
            return ImagePart(url)
    if kind == "image" and len(keys) == 1:
        (key,) = keys
        if key in ("image", "url", "path"):
            return ImagePart(block[key])
        if key == "base64" and isinstance(block[key], str):
            text = block[key]
            return ImagePart(text if text.startswith("data:") else f"data:image/*;base64,{text}")
    raise PromptError(
        f"a content block of type {kind!r} with the keys {sorted(map(str, keys))} is not known; use "
        "{'type': 'text', 'text': ...}, {'type': 'image', 'image' | 'url' | 'path' | 'base64': ...} or "
        "{'type': 'image_url', 'image_url': {'url': ...}}."
    )


def _check_order(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise PromptError("the conversation is empty; at least one user message is needed.")
    for idx, message in enumerate(messages):
        if message.role is Role.SYSTEM and idx > 0 and messages[idx - 1].role is not Role.SYSTEM:
            raise PromptError(f"message {idx} is a system message behind a turn; system messages can only come first.")
    turns = [message.role for message in messages if message.role is not Role.SYSTEM]
    for idx, role in enumerate(turns):
        expected = Role.USER if idx % 2 == 0 else Role.ASSISTANT
        if role is not expected:
            raise PromptError(
                f"turn {idx} is from {role.value}; user and assistant take turns, starting with the user."
            )
    if not turns:
        raise PromptError("the conversation has only a system message; a user message is needed.")


def render(messages: Sequence[Message], template: str, *, add_generation_prompt: bool = True) -> tuple[Segment, ...]:
    """Turn messages, as `to_messages` gives them, into the segments of a prompt.

    Pictures come before the words of their message, as in training. A conversation that ends with an assistant
    message is a beginning to be continued, with ``add_generation_prompt``.

    Raises
    ------
    PromptError
        If the template is unknown.

    Source
    ------
    ``vicuna_v1``, ``llava_v1``: the LLaVA repository's conversation templates. ``llava-hf``: the chat template of the
    llava-hf checkpoints.
    """
    if template not in TEMPLATES:
        raise PromptError(f"template {template!r} is not known; choose one of {', '.join(TEMPLATES)}.")
    if template == "plain":
        parts = [part for message in messages for part in message.parts]
        return _join(_image_or_text(part) for part in parts)
    body = list(messages)
    system = TEMPLATES[template]
    if body and body[0].role is Role.SYSTEM:
        system = _words(body.pop(0))
    pieces = _render_hf if template == "llava-hf" else _render_vicuna
    return _join(pieces(system, body, add_generation_prompt=add_generation_prompt))


def render_fitting(
    messages: tuple[Message, ...], template: str, *, fits: Callable[[tuple[Segment, ...]], bool]
) -> tuple[Segment, ...]:
    """Turn messages into the segments of a prompt, without as few of the oldest turns as make it fit.

    A turn is a question and its answer; pictures go with their message, never in part, and the system message stays.
    Each turn less must make the prompt shorter. Halving then finds how many are left out, which looks at about twice
    the conversation in all.

    Parameters
    ----------
    messages : tuple of Message
        As `to_messages` gives them.
    template : str
    fits : callable
        Whether a prompt is short enough.

    Raises
    ------
    PromptError
        If the last turn alone does not fit, or the template is unknown.
    """
    num_system = sum(message.role is Role.SYSTEM for message in messages)
    system, turns = messages[:num_system], messages[num_system:]
    num_questions = (len(turns) + 1) // 2

    def without(num_dropped: int) -> tuple[Segment, ...]:
        return render((*system, *turns[2 * num_dropped :]), template)

    if fits(whole := without(0)):
        return whole
    num_dropped = bisect_left(range(num_questions), True, lo=1, key=lambda count: fits(without(count)))
    if num_dropped == num_questions:
        raise PromptError(
            "the last question alone does not fit into the context, and there is no earlier turn to leave out. "
            "Shorten it."
        )
    return without(num_dropped)


def _words(message: Message) -> str:
    return " ".join(part.text for part in message.parts if isinstance(part, TextPart))


def _image_or_text(part: TextPart | ImagePart) -> Segment:
    return TextSegment(part.text) if isinstance(part, TextPart) else ImageSegment(part.source)


def _render_vicuna(system: str | None, messages: list[Message], *, add_generation_prompt: bool) -> Iterator[Segment]:
    if system:
        yield TextSegment(f"{system} ")
    for idx, message in enumerate(messages):
        is_last = idx == len(messages) - 1
        if message.role is Role.USER:
            yield TextSegment("USER: ")
            for image in message.images:
                yield ImageSegment(image.source)
                yield TextSegment("\n")
            yield TextSegment(f"{_words(message)}{' ASSISTANT:' if is_last and add_generation_prompt else ' '}")
        else:
            yield TextSegment(f"ASSISTANT: {_words(message)}")
            if not (is_last and add_generation_prompt):
                yield EosSegment()


def _render_hf(system: str | None, messages: list[Message], *, add_generation_prompt: bool) -> Iterator[Segment]:
    if system:
        yield TextSegment(f"{system} ")
    for idx, message in enumerate(messages):
        yield TextSegment(f"{message.role.value.upper()}: ")
        for image in message.images:
            yield ImageSegment(image.source)
            yield TextSegment("\n")
        is_prefill = message.role is Role.ASSISTANT and idx == len(messages) - 1 and add_generation_prompt
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        yield TextSegment(" ".join(texts) if is_prefill else "".join(f"{text} " for text in texts))
    if add_generation_prompt and messages and messages[-1].role is Role.USER:
        yield TextSegment("ASSISTANT:")


def _join(segments: Iterator[Any]) -> tuple[Segment, ...]:
    """Put neighbouring texts together: the tokenizer must see them as one."""
    joined: list[Segment] = []
    for is_text, group in groupby(segments, key=lambda segment: isinstance(segment, TextSegment)):
        if not is_text:
            joined += group
        elif text := "".join(segment.text for segment in group):
            joined.append(TextSegment(text))
    return tuple(joined)
