"""The options of a processor's call, and the names a chat template reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llavakit.core.errors import ConfigError, PromptError

__all__ = ["PROCESSOR_OPTIONS", "TEXT_OPTIONS", "as_texts", "check_variables", "is_read_by", "merge_options"]

TEXT_OPTIONS = frozenset({
    "add_special_tokens", "padding", "truncation", "max_length", "padding_side", "pad_to_multiple_of",
    "return_attention_mask",
})  # fmt: skip
_OWN_OPTIONS = frozenset(
    {"return_tensors", "return_mm_token_type_ids", "text_kwargs", "images_kwargs", "common_kwargs", "timeout"}
)
PROCESSOR_OPTIONS = TEXT_OPTIONS | _OWN_OPTIONS


def as_texts(text: str | Sequence[str]) -> list[str]:
    """Return one prompt or several as a list of strings."""
    texts: list[Any] = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    if not texts or not all(isinstance(one, str) for one in texts):
        raise PromptError(
            f"text must be a string or a list of strings, got {type(text).__name__}. The order "
            "of arguments is (images, text)."
        )
    return texts


def is_read_by(template: str, name: str) -> bool:
    """Return whether a chat template uses a name."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def check_variables(variables: Mapping[str, Any], template: str) -> None:
    """Refuse names that are neither an option nor read by the template."""
    for name in variables:
        if not is_read_by(template, name):
            raise ConfigError(
                f"apply_chat_template does not know {name!r}: it is no option of the processor, and the chat template "
                "does not read it. Check its spelling or leave it out."
            )


def merge_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Bring grouped options to one level and refuse unknown ones by name."""
    merged: dict[str, Any] = {}
    for group in ("common_kwargs", "text_kwargs", "images_kwargs"):
        merged.update(options.get(group) or {})
    merged.update({name: value for name, value in options.items() if not name.endswith("_kwargs")})
    if unknown := [name for name in merged if name not in PROCESSOR_OPTIONS]:
        raise ConfigError(
            f"the processor does not take {', '.join(map(repr, unknown))}; pictures are prepared "
            "as the checkpoint's files say, "
            f"and the options are {', '.join(sorted(PROCESSOR_OPTIONS))}."
        )
    return merged
