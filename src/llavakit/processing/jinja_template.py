"""A checkpoint's own chat template, rendered in a sandbox: for the drop-in surface only.

Templates are programs from a file that somebody else wrote. They run in Jinja's immutable sandbox, with bounded length
and without any object of ours in reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llavakit.core.errors import PromptError

__all__ = ["render_chat_template"]

_MAX_TEMPLATE_CHARS = 256 * 1024
_MAX_OUTPUT_CHARS = 16 * 1024**2


class _GenerationTag(Extension):
    """``{% generation %}``: marks an assistant's words; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def render_chat_template(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Render a conversation as the template says.

    Raises
    ------
    PromptError
        If the template is too long, is broken, refuses the conversation, or tries what the sandbox forbids.
    """
    if len(template) > _MAX_TEMPLATE_CHARS:
        raise PromptError(
            f"the chat template has {len(template)} characters; at most {_MAX_TEMPLATE_CHARS} are rendered."
        )
    pieces: list[str] = []
    length = 0
    try:
        for piece in _compile(template).generate(messages=messages, **variables):
            pieces.append(piece)
            length += len(piece)
            if length > _MAX_OUTPUT_CHARS:
                raise PromptError(f"the chat template writes more than {_MAX_OUTPUT_CHARS} characters; refused.")
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise PromptError(f"the checkpoint's chat template cannot render this conversation ({error}).") from error
    return "".join(pieces)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
