"""From the fields of a dialect to the one internal request."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from llavakit.core.errors import ImageSourceError, PromptError, SamplingError, UnsupportedFieldError
from llavakit.core.requests import ConstraintKind, GenerateRequest, OutputConstraint
from llavakit.core.types import ImagePart, Message, Part, Role, SamplingParams, TextPart
from llavakit.server import schemas

__all__ = [
    "Limits",
    "from_chat",
    "from_completion",
    "from_ollama_chat",
    "from_ollama_generate",
    "from_responses",
    "keep_alive_s",
]

_DEFAULT_TOKENS = 512
_DATA_URI = "data:"
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # one way to write each
_SECONDS = re.compile(r"[+-]?[0-9]{1,18}")
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Limits:
    """What the server takes in a request."""

    def __init__(self, *, max_images: int, allow_urls: bool, tenant: str) -> None:
        self.max_images = max_images
        self.allow_urls = allow_urls
        self.tenant = tenant

    def picture(self, source: str) -> ImagePart:
        """Take a picture: a data URI, or an https address where these are allowed; never a path."""
        if source[:5].lower() == _DATA_URI:
            return ImagePart(source)
        if source[:8].lower().startswith(("https://", "http://")):
            if self.allow_urls:
                return ImagePart(source)
            raise ImageSourceError(
                "pictures from the web are switched off here; send the picture itself as a data URI, or start the "
                "server with --allow-urls."
            )
        raise ImageSourceError("a picture must be a data URI such as data:image/png;base64,...")

    def check(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Refuse too many pictures."""
        count = sum(len(message.images) for message in messages)
        if count > self.max_images:
            raise PromptError(f"the request has {count} pictures; at most {self.max_images} are taken here.")
        return messages


def from_chat(body: schemas.ChatRequest, limits: Limits) -> list[GenerateRequest]:
    """One request for each of the ``n`` answers."""
    messages = []
    for message in body.messages:
        role = Role.SYSTEM if message.role == "developer" else Role(message.role)
        content = message.content
        parts: list[Part] = (
            [TextPart(content)] if isinstance(content, str) else [_part(part, limits) for part in content]
        )
        messages.append(Message(role, _pictures_first(parts)))
    _check_pairs(body)
    num_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = None
    if body.logprobs:
        logprobs = body.top_logprobs or 0
    elif body.top_logprobs is not None:
        raise SamplingError("top_logprobs needs logprobs to be true.")
    params = _params(body, num_tokens=num_tokens, num_top_logprobs=logprobs)
    constraint = _constraint(body) or _response_format(body.response_format)
    request = GenerateRequest(
        messages=limits.check(tuple(messages)), sampling=params, constraint=constraint, preset=body.preset,
        should_truncate=body.truncate, tenant=_tenant(body, limits),
    )  # fmt: skip
    return _copies(request, body.n or 1)


def from_completion(body: schemas.CompletionRequest, limits: Limits) -> list[GenerateRequest]:
    """One request for each of the ``n`` answers to each prompt, which is continued as it stands."""
    _check_pairs(body)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    sampling = _params(body, num_tokens=16 if body.max_tokens is None else body.max_tokens)
    constraint, tenant = _constraint(body), _tenant(body, limits)
    return [
        copy
        for prompt in prompts
        for copy in _copies(
            GenerateRequest(
                prompt=prompt, constraint=constraint, sampling=sampling, preset=body.preset, tenant=tenant
            ),
            body.n or 1,
        )
    ]  # fmt: skip


def _tenant(body: Any, limits: Limits) -> str:
    """Name whose request it is: the key's owner, or whom the client names."""
    return limits.tenant or body.user or body.safety_identifier or ""


def from_responses(body: schemas.ResponsesRequest, limits: Limits) -> GenerateRequest:
    """Return the request of ``/v1/responses``."""
    messages = [Message(Role.SYSTEM, (TextPart(body.instructions),))] if body.instructions else []
    if isinstance(body.input, str):
        messages.append(Message(Role.USER, (TextPart(body.input),)))
    else:
        for message in body.input:
            role = Role.SYSTEM if message.role == "developer" else Role(message.role)
            parts: list[Part] = []
            for part in [message.content] if isinstance(message.content, str) else message.content:
                if isinstance(part, str):
                    parts.append(TextPart(part))
                elif part.type == "input_image":
                    if part.text is not None:
                        raise UnsupportedFieldError("a part of type input_image has a text; send two parts.")
                    parts.append(limits.picture(_needed(part.image_url, "image_url")))
                elif part.image_url is not None:
                    raise UnsupportedFieldError(f"a part of type {part.type} has an image_url; send two parts.")
                else:
                    parts.append(TextPart(_needed(part.text, "text")))
            messages.append(Message(role, _pictures_first(parts)))
    form = body.text.format if body.text else None
    constraint = None
    if form is not None and form.type == "json_object":
        constraint = OutputConstraint(kind=ConstraintKind.JSON_OBJECT)
    elif form is not None and form.type == "json_schema":
        if form.schema_ is None:
            raise PromptError("text.format of type json_schema needs a schema.")
        constraint = OutputConstraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(form.schema_))
    return GenerateRequest(
        messages=limits.check(tuple(messages)), constraint=constraint, should_truncate=body.truncation == "auto",
        sampling=_params(body, num_tokens=body.max_output_tokens), tenant=_tenant(body, limits),
    )  # fmt: skip


def from_ollama_chat(body: schemas.OllamaChat, limits: Limits) -> GenerateRequest:
    """Return the request of ``/api/chat``."""
    messages = tuple(
        Message(Role(m.role), (*_base64_pictures(m.images, limits), TextPart(m.content))) for m in body.messages
    )
    return _from_ollama(body, limits, messages=limits.check(messages))


def from_ollama_generate(body: schemas.OllamaGenerate, limits: Limits) -> GenerateRequest:
    """Return the request of ``/api/generate``: a question, or with ``raw`` a text that is continued as it stands."""
    pictures = _base64_pictures(body.images, limits)
    limits.check((Message(Role.USER, pictures),))
    if body.raw:
        if body.system or body.truncate:
            raise UnsupportedFieldError("system and truncate have no meaning with raw. Leave them out.")
        return _from_ollama(body, limits, prompt=body.prompt, images=pictures)
    messages = [Message(Role.SYSTEM, (TextPart(body.system),))] if body.system else []
    messages.append(Message(Role.USER, (*pictures, TextPart(body.prompt))))
    return _from_ollama(body, limits, messages=limits.check(tuple(messages)))


def keep_alive_s(value: float | str | None) -> float | None:
    """Seconds of a duration such as ``10m``, a number of seconds, or for ever when negative."""
    if value is None:
        return None
    if isinstance(value, str):
        if _SECONDS.fullmatch(value.strip()):
            return keep_alive_s(float(value))
        parts = _DURATION.findall(value)
        if not parts or "".join(f"{number}{unit}" for number, unit in parts) != value.strip():
            raise PromptError(f"keep_alive {value!r} is no duration; write 10m, 1h30m, or a number of seconds.")
        value = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return float("inf") if value < 0 else float(value)


def _from_ollama(body: Any, limits: Limits, **fields: Any) -> GenerateRequest:
    options = body.options or schemas.OllamaOptions()
    temperature = 0.8 if options.temperature is None else options.temperature
    settings: dict[str, Any] = {"temperature": temperature}
    if temperature > 0:
        settings |= {
            "top_k": (40 if options.top_k is None else options.top_k) or None,
            "top_p": 0.9 if options.top_p is None else options.top_p,
            "min_p": options.min_p or None,
        }
    if options.seed is not None and options.seed >= 0:
        settings["seed"] = options.seed
    num_predict = -1 if options.num_predict is None else options.num_predict
    settings["max_new_tokens"] = num_predict if num_predict > 0 else 1 << 20
    window = 64 if options.repeat_last_n is None else options.repeat_last_n
    settings["repetition_penalty"] = options.repeat_penalty or 1.0
    settings["repetition_window"] = None if window < 0 else window
    settings["presence_penalty"] = options.presence_penalty or 0.0
    settings["frequency_penalty"] = options.frequency_penalty or 0.0
    settings["stop"] = _stops(options.stop)
    if body.top_logprobs is not None and not body.logprobs:
        raise SamplingError("top_logprobs needs logprobs to be true.")
    if body.logprobs:
        settings["num_top_logprobs"] = body.top_logprobs or 0
    constraint = None
    if body.format == "json":
        constraint = OutputConstraint(kind=ConstraintKind.JSON_OBJECT)
    elif isinstance(body.format, dict):
        constraint = OutputConstraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(body.format))
    return GenerateRequest(
        sampling=SamplingParams(**settings), constraint=constraint, max_context_tokens=options.num_ctx,
        should_truncate=body.truncate is not False and not fields.get("prompt"), tenant=limits.tenant, **fields,
    )  # fmt: skip


def _params(body: Any, *, num_tokens: int | None, num_top_logprobs: int | None = None) -> SamplingParams:
    temperature = 1.0 if body.temperature is None else body.temperature
    settings: dict[str, Any] = {
        "max_new_tokens": _DEFAULT_TOKENS if num_tokens is None else num_tokens,
        "temperature": temperature,
        "num_top_logprobs": num_top_logprobs,
    }
    names = {"seed": "seed", "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
             "repetition_penalty": "repetition_penalty", "min_tokens": "min_new_tokens",
             "ignore_eos": "ignore_eos"}  # fmt: skip
    if temperature > 0:  # without a draw there is nothing they could change
        names |= {"top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
    for field, setting in names.items():
        value = getattr(body, field, None)
        if value is not None:
            settings[setting] = value
    settings["stop"] = _stops(getattr(body, "stop", None))
    bias = getattr(body, "logit_bias", None) or {}
    if any(not _TOKEN_ID.fullmatch(token) for token in bias):
        raise SamplingError("logit_bias names a token that is no number; it has the ids of tokens as strings.")
    settings["logit_bias"] = tuple((int(token), value) for token, value in bias.items())
    return SamplingParams(**settings)


def _check_pairs(body: Any) -> None:
    """Refuse fields that would be without effect beside, or without, another."""
    if body.stream_options is not None and not body.stream:
        raise UnsupportedFieldError("stream_options needs stream to be true.")
    limits = (body.max_tokens, getattr(body, "max_completion_tokens", None))
    if None not in limits and limits[0] != limits[1]:
        raise SamplingError("max_tokens and max_completion_tokens differ; give one of them.")
    form = getattr(body, "response_format", None)
    if form is not None and form.type != "json_schema" and form.json_schema is not None:
        raise UnsupportedFieldError(
            f"response_format of type {form.type} has a json_schema; its type must be json_schema."
        )


def _constraint(body: Any) -> OutputConstraint | None:
    given = [name for name in ("guided_choice", "guided_regex", "guided_grammar") if getattr(body, name) is not None]
    if getattr(body, "response_format", None) is not None and body.response_format.type != "text":
        given.append("response_format")
    if len(given) > 1:
        raise PromptError(f"{' and '.join(given)} contradict each other; give one of them.")
    if body.guided_choice is not None:
        return OutputConstraint(kind=ConstraintKind.CHOICE, text=json.dumps(body.guided_choice))
    if body.guided_regex is not None:
        return OutputConstraint(kind=ConstraintKind.REGEX, text=body.guided_regex)
    if body.guided_grammar is not None:
        return OutputConstraint(kind=ConstraintKind.GRAMMAR, text=body.guided_grammar)
    return None


def _response_format(form: schemas.ResponseFormat | None) -> OutputConstraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return OutputConstraint(kind=ConstraintKind.JSON_OBJECT)
    if form.json_schema is None:
        raise PromptError("response_format of type json_schema needs json_schema.")
    return OutputConstraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(form.json_schema.schema_))


def _part(part: schemas.ContentPart, limits: Limits) -> Part:
    if part.type == "text":
        if part.image_url is not None:
            raise UnsupportedFieldError("a part of type text has an image_url; send two parts.")
        return TextPart(_needed(part.text, "text"))
    if part.text is not None:
        raise UnsupportedFieldError("a part of type image_url has a text; send two parts.")
    url = part.image_url
    return limits.picture(_needed(url if isinstance(url, str) or url is None else url.url, "image_url"))


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise PromptError(f"a part of the content lacks its {name}.")
    return value


def _pictures_first(parts: list[Part]) -> tuple[Part, ...]:
    """Put a message's pictures before its text, as in training; texts keep their order."""
    pictures = [part for part in parts if isinstance(part, ImagePart)]
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return (*pictures, TextPart("\n".join(texts)))


def _base64_pictures(images: list[str] | None, limits: Limits) -> tuple[ImagePart, ...]:
    return tuple(
        limits.picture(image if image[:5].lower() == _DATA_URI else f"data:image/*;base64,{image}")
        for image in images or ()
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def _copies(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """Return the request ``count`` times; a seed counts up, so that answers differ and can be had again."""
    seed = request.sampling.seed
    return [
        request if seed is None else replace(request, sampling=replace(request.sampling, seed=(seed + idx) % (1 << 64)))
        for idx in range(count)
    ]
