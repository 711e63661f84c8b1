"""The forms in which pictures and settings may be given, brought to one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llavakit.core.errors import PromptError, SamplingError
from llavakit.core.types import ImagePart, Message, Role, SamplingParams

__all__ = ["attach_pictures", "pictures_per_prompt", "read_prompts", "read_sampling"]


def read_sampling(sampling: object, settings: Mapping[str, Any]) -> SamplingParams:
    """Return ``sampling``, or the defaults, with ``settings`` on top.

    Raises
    ------
    SamplingError
        If a setting is unknown, out of range or contradictory.
    """
    if sampling is not None and not isinstance(sampling, SamplingParams):
        raise SamplingError(
            f"sampling is a {type(sampling).__name__}; pass llavakit.SamplingParams(...), or its fields by name."
        )
    known = SamplingParams.__dataclass_fields__
    if unknown := [name for name in settings if name not in known]:
        raise SamplingError(f"unknown sampling settings {', '.join(unknown)}; known: {', '.join(known)}.")
    changes = dict(settings)
    if "stop" in changes:
        changes["stop"] = _as_stops(changes["stop"])
    if "logit_bias" in changes:
        changes["logit_bias"] = _as_biases(changes["logit_bias"])
    return replace(sampling or SamplingParams(), **changes)


def _as_stops(stop: Any) -> Any:
    """Bring the forms of ``stop`` to a tuple; `SamplingParams` judges the rest."""
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    return tuple(stop) if isinstance(stop, list) else stop


def _as_biases(logit_bias: Any) -> Any:
    """Bring the forms of ``logit_bias`` to a tuple of pairs; `SamplingParams` judges the rest."""
    if logit_bias is None:
        return ()
    if isinstance(logit_bias, Mapping):
        return tuple(logit_bias.items())
    return tuple(map(tuple, logit_bias)) if _is_list_of_pairs(logit_bias) else logit_bias


def _is_list_of_pairs(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) for pair in value)


def read_prompts(prompts: Any) -> list[Any]:
    """Return several prompts as a list.

    Raises
    ------
    PromptError
        If they are no list or other iterable.
    """
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise PromptError(f"prompts must be a string or a list of prompts, got {type(prompts).__name__}.")
    return list(prompts)


def pictures_per_prompt(images: Iterable[Any] | None, num_prompts: int) -> list[list[Any]]:
    """Return a list of pictures for each prompt.

    Raises
    ------
    PromptError
        If there is not one entry per prompt.
    """
    if images is None:
        return [[] for _ in range(num_prompts)]
    entries = _as_list(images)
    if entries is None:
        raise PromptError(
            f"`images` is a single picture ({type(images).__name__}) beside a list of {num_prompts} prompts; it needs "
            "one entry per prompt (a sequence of pictures, one picture, or None)."
        )
    if len(entries) != num_prompts:
        raise PromptError(
            f"{num_prompts} prompts came with pictures for {len(entries)}; `images` needs one entry per prompt "
            "(a sequence of pictures, one picture, or None)."
        )
    return [_as_pictures(mine) for mine in entries]


def _as_list(images: Any) -> list[Any] | None:
    """Return several pictures as a list; None for what is a single one, such as a path, an array or an open file."""
    is_several = isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)
    if is_several or (isinstance(images, Iterator) and not hasattr(images, "read")):
        return list(images)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    return None


def _as_pictures(images: Any) -> list[Any]:
    """Return pictures of one prompt as a list: none, one, or several."""
    if images is None:
        return []
    several = _as_list(images)
    return [images] if several is None else several


def attach_pictures(messages: tuple[Message, ...], images: Any) -> tuple[Message, ...]:
    """Put pictures, in any form, in front of the last user message.

    Raises
    ------
    PromptError
        If there is no such message.
    """
    pictures = _as_pictures(images)
    if not pictures:
        return messages
    for idx in range(len(messages) - 1, -1, -1):
        if messages[idx].role is Role.USER:
            parts = (*(ImagePart(source) for source in pictures), *messages[idx].parts)
            return (*messages[:idx], replace(messages[idx], parts=parts), *messages[idx + 1 :])
    raise PromptError("pictures were given, but the conversation has no user message to put them in.")
