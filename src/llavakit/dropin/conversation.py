"""Conversations of this surface: their normal form, their pictures, and the checkpoint's template over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llavakit.core.errors import ConfigError, PromptError
from llavakit.processing.jinja_template import render_chat_template
from llavakit.processing.presets import read_json
from llavakit.processing.sources import decode_base64

__all__ = ["find_images", "is_chat", "load_chat_template", "normalise", "render_conversation"]

_SOURCE_KEYS = ("image", "url", "path", "base64")
# Marks where the last message ends, so that what a template writes after it can be cut off. The space behind it
# shows whether the template trims messages.
_END_MARK = "\x02end-of-final-message\x03 "


def is_chat(value: Any) -> bool:
    """Return whether a value is a list of messages (dicts with role and content)."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(message, Mapping) and "role" in message and "content" in message for message in value)
    )


def load_chat_template(folder: Path) -> str | None:
    """Find the chat template of a checkpoint folder, in transformers' order.

    processor_config.json, chat_template.json, chat_template.jinja, tokenizer_config.json.

    Raises
    ------
    ConfigError
        If one of these files is damaged, or holds several templates without a default.
    """
    from_processor = _template_of_json(folder / "processor_config.json")
    if from_processor is not None:
        return from_processor
    if (folder / "chat_template.json").is_file():
        return _template_of_json(folder / "chat_template.json")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    return _template_of_json(folder / "tokenizer_config.json")


def normalise(conversation: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a copy of a conversation in the form that templates read.

    OpenAI's ``image_url`` blocks become ``image`` blocks, and a content that is a plain string becomes one text block:
    LLaVA's template knows blocks only and would leave the words out.

    Raises
    ------
    PromptError
        If something is not a message.
    """
    if not is_chat(conversation):
        raise PromptError(
            "a conversation must be a list of messages, each a dict with 'role' and 'content'; got "
            f"{conversation!r:.200}."
        )
    messages = []
    for message in conversation:
        fresh = {name: value for name, value in message.items() if value is not None}
        content = fresh.get("content", [])
        if isinstance(content, str):
            fresh["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list | tuple):
            fresh["content"] = [_normalise_block(block) for block in content]
        else:
            raise PromptError(
                f"a message's content must be a string or a list of blocks, got {type(content).__name__}."
            )
        messages.append(fresh)
    return messages


def find_images(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the picture sources of a normalised conversation, in order."""
    blocks = [block for message in messages for block in message["content"] if block["type"] == "image"]
    return [_open_block(block, key) for block in blocks for key in _SOURCE_KEYS if block.get(key) is not None]


def render_conversation(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, Any],
) -> str:
    """Write a normalised conversation out as one string.

    Parameters
    ----------
    messages : sequence of mapping
        From `normalise`.
    template : str
        Jinja; runs in a sandbox.
    add_generation_prompt : bool
        End with the words that begin an answer.
    continue_final_message : bool
        End with the last message's text, for the model to go on with.
    variables : mapping
        Further names that the template may read.

    Raises
    ------
    PromptError
        If the last message has no text to continue, or the template does not show it.
    """
    if not continue_final_message:
        return render_chat_template(template, messages, add_generation_prompt=add_generation_prompt, **variables)
    if add_generation_prompt:
        raise PromptError("continue_final_message and add_generation_prompt contradict each other; set one of them.")
    *before, last = messages
    texts = [idx for idx, block in enumerate(last["content"]) if "text" in block]
    if not texts:
        raise PromptError("continue_final_message is set, but the last message has no text to continue.")
    content = list(last["content"])
    content[texts[-1]] = {**content[texts[-1]], "text": content[texts[-1]]["text"] + _END_MARK}
    marked = [*before, {**last, "content": content}]
    rendered = render_chat_template(template, marked, add_generation_prompt=False, **variables)
    head, mark, tail = rendered.rpartition(_END_MARK.rstrip())
    if not mark:
        raise PromptError("continue_final_message is set, but the chat template does not show the last message's text.")
    return head if tail.startswith(" ") else head.rstrip()


def _normalise_block(block: Any) -> dict[str, Any]:
    if isinstance(block, str):
        return {"type": "text", "text": block}
    if not isinstance(block, Mapping) or "type" not in block:
        raise PromptError(f"a content block must be a dict with a 'type' of 'text' or 'image'; got {block!r:.200}.")
    if block["type"] == "image_url":
        url = block.get("image_url")
        return {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
    if block["type"] not in ("text", "image"):
        raise PromptError(
            f"content blocks of type {block['type']!r} are not supported; LLaVA takes 'text' and 'image'."
        )
    if block["type"] == "text" and not isinstance(block.get("text"), str):
        raise PromptError(f"a text block must have a string under 'text'; got {block!r:.200}.")
    return dict(block)


def _open_block(block: Mapping[str, Any], key: str) -> Any:
    source = block[key]
    if key == "base64" and isinstance(source, str) and not source.startswith("data:"):
        return decode_base64(source)
    return source


def _template_of_json(path: Path) -> str | None:
    if not path.is_file():
        return None
    template = read_json(path).get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        if "default" not in template:
            raise ConfigError(
                f"{path.name} of {path.parent.name!r} holds the chat templates {', '.join(map(str, template))}, none "
                "of which is named 'default'. Pass one as chat_template."
            )
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise ConfigError(
            f"{path.name} of {path.parent.name!r}: chat_template is a {type(template).__name__}, not text."
        )
    return template
