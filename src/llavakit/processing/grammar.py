"""The form an answer must have, as masks over the vocabulary: an adapter over ``llguidance``.

The library walks the grammar and writes one bit per token; no Python runs over the vocabulary. Ours are the limits, the
error texts, and the space: LLaMA's first word of an answer carries a leading space that decoding drops, so one is
allowed in front of every form.
"""

from __future__ import annotations

import json

import numpy as np
from llguidance import LLMatcher, LLTokenizer, regex_to_lark

from llavakit.core.errors import ConstraintError
from llavakit.core.nesting import nesting_depth
from llavakit.core.requests import ConstraintKind, OutputConstraint
from llavakit.processing.tokenizer import Tokenizer

__all__ = ["FormMask", "FormMasks"]

_MAX_TEXT_BYTES = 64 * 1024
_MAX_DEPTH = 32
_MAX_CHOICES = 1000
# Separators are fixed: a model that may put any white space between two values can do so without end.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class FormMasks:
    """Makes masks for one tokenizer.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = LLTokenizer(tokenizer.to_json(), eos_token=tokenizer.eos_token_id)

    def make(self, constraint: OutputConstraint) -> FormMask:
        """Compile a form.

        Raises
        ------
        ConstraintError
            If it is malformed, too large, or cannot be enforced.
        """
        if len(constraint.text.encode("utf-8", "surrogatepass")) > _MAX_TEXT_BYTES:
            raise ConstraintError(
                f"the form of the answer is described in {len(constraint.text)} characters; at most "
                f"{_MAX_TEXT_BYTES} bytes are compiled. Make it smaller."
            )
        matcher = LLMatcher(self._tokenizer, _grammar(constraint), log_level=0)
        if matcher.is_error():
            raise ConstraintError(
                f"the {constraint.kind.value} cannot be used: {_first_line(matcher.get_error())}. Correct it."
            )
        return FormMask(matcher, self._tokenizer.vocab_size)


class FormMask:
    """The mask of one answer; a `llavakit.engine.sampler.TokenMask`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    def next_bits(self) -> np.ndarray:
        """Return int32 words whose bits, lowest first, say of each token whether it may come next."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        return self._words

    def accept(self, token_id: int) -> None:
        """Take note of the token that was chosen."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(
                f"the form of the answer cannot be kept up: {_first_line(self._matcher.get_error())}. Simplify it."
            )


def _grammar(constraint: OutputConstraint) -> str:
    text = constraint.text
    if constraint.kind is ConstraintKind.GRAMMAR:
        return LLMatcher.grammar_from_lark(text)
    if constraint.kind is ConstraintKind.REGEX:
        body = regex_to_lark(text)
        return f'start: SPACE? TEXT\nSPACE: " "\nTEXT: /{body}/\n'
    if constraint.kind is ConstraintKind.CHOICE:
        choices = _choices(text)
        return f'start: SPACE? ({" | ".join(map(json.dumps, choices))})\nSPACE: " "\n'
    schema = {"type": "object"} if constraint.kind is ConstraintKind.JSON_OBJECT else _schema(text)
    # A schema's own options would be ours to enforce; they are not part of JSON Schema.
    content = json.dumps({**schema, "x-guidance": _JSON_OPTIONS})
    return f'start: SPACE? value\nSPACE: " "\nvalue: %json {content}\n'


def _schema(text: str) -> dict[str, object]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the JSON schema is no JSON ({error}). Correct it.") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ConstraintError(f"a JSON schema is an object, got {type(schema).__name__}. Correct it.")
    if (depth := nesting_depth(schema)) > _MAX_DEPTH:
        raise ConstraintError(f"the JSON schema is nested {depth} deep; at most {_MAX_DEPTH} is compiled. Flatten it.")
    return schema


def _choices(text: str) -> list[str]:
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the choices are no JSON list ({error}). Correct them.") from error
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise ConstraintError("choices are a list of strings that are not empty. Correct them.")
    if not 1 <= len(choices) <= _MAX_CHOICES:
        raise ConstraintError(f"there are {len(choices)} choices; 1 to {_MAX_CHOICES} can be told apart.")
    return choices


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "no reason given")[:300].rstrip(". ")
