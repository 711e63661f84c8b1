"""A checkpoint's own chat template, rendered in a sandbox: for the drop-in surface only.

Templates are programs from a file that somebody else wrote. They run in Jinja's immutable sandbox, without any object
of ours in reach; their length, what one product may make, what they write and the time they take are bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from llavakit.core.errors import PromptError

__all__ = ["render_chat_template"]

_MAX_TEMPLATE_CHARS = 256 * 1024
_MAX_OUTPUT_CHARS = 16 * 1024**2
_MAX_POWER_BITS = 4096
_MAX_RENDER_S = 5.0
# When the rendering under way must be done, as `time.monotonic` counts.
_deadline: ContextVar[float] = ContextVar("_deadline", default=float("inf"))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with an end to what it lets a template spend.

    Every way for a template to go on without end passes through one of these methods: Jinja compiles calls, attributes,
    subscripts and the intercepted operators into them, and ``range`` is the only long thing to iterate over.
    """

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_deadline()
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > _MAX_POWER_BITS:
                raise PromptError("the chat template computes a power too large to render; refused.")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sized) and isinstance(times, int) and len(many) * times > _MAX_OUTPUT_CHARS:
                    raise PromptError(f"the chat template makes more than {_MAX_OUTPUT_CHARS} items; refused.")
        return super().call_binop(context, operator, left, right)

    def call(self, *arguments: Any, **named: Any) -> Any:
        _check_deadline()
        return super().call(*arguments, **named)

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_deadline()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_deadline()
        return super().getitem(obj, argument)


class _Range:
    """``range`` for templates: at most as long as Jinja's own, and each step looks at the clock."""

    def __init__(self, *arguments: int) -> None:
        self._range = safe_range(*arguments)

    def __iter__(self) -> Iterator[int]:
        for number in self._range:
            _check_deadline()
            yield number

    def __len__(self) -> int:
        return len(self._range)

    def __contains__(self, item: object) -> bool:
        return item in self._range

    def __getitem__(self, index: int) -> int:
        return self._range[index]


def _check_deadline() -> None:
    if time.monotonic() > _deadline.get():
        raise PromptError(f"the chat template was still rendering after {_MAX_RENDER_S:g} s; refused.")


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
        If the template is too long, is broken, refuses the conversation, takes too long, or tries what the sandbox
        forbids.
    """
    if len(template) > _MAX_TEMPLATE_CHARS:
        raise PromptError(
            f"the chat template has {len(template)} characters; at most {_MAX_TEMPLATE_CHARS} are rendered."
        )
    pieces: list[str] = []
    length = 0
    token = _deadline.set(time.monotonic() + _MAX_RENDER_S)
    try:
        for piece in _compile(template).generate(messages=messages, **variables):
            pieces.append(piece)
            length += len(piece)
            if length > _MAX_OUTPUT_CHARS:
                raise PromptError(f"the chat template writes more than {_MAX_OUTPUT_CHARS} characters; refused.")
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise PromptError(f"the checkpoint's chat template cannot render this conversation ({error}).") from error
    except MemoryError as error:
        raise PromptError("the checkpoint's chat template needs more memory than there is; refused.") from error
    finally:
        _deadline.reset(token)
    return "".join(pieces)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["range"] = _Range
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
