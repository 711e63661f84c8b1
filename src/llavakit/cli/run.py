"""``llavakit run``: one answer, or a chat.

Everything that can be wrong with the request is found before the model is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.cli.answer_writer import AnswerWriter
from llavakit.cli.console import Console
from llavakit.cli.loading import load_model
from llavakit.cli.timing_line import context_note, timing_line
from llavakit.core.errors import BadImageError, ConfigError, ImageSourceError, PromptError
from llavakit.core.types import GenerationResult, ImagePart, Message, Role, SamplingParams, TextPart

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from llavakit.api import LoadedModel

__all__ = ["describe_use", "result_to_json", "run", "sampling_settings"]

_STDIN = "-"
_MAX_STDIN_IMAGE_BYTES = 100 * 1024**2
_MAX_STDIN_PROMPT_BYTES = 16 * 1024**2
_SAMPLING_OPTIONS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "seed",
    "num_beams",
)  # fmt: skip


def run(options: argparse.Namespace, console: Console, *, load: Callable[..., Any] | None = None) -> int:
    """Answer once, or open a chat; return the exit status."""
    settings = sampling_settings(options)
    sampling = SamplingParams(**settings)
    if options.logprobs is not None and not options.json:
        raise ConfigError("--logprobs needs --json, which has a place for them.")
    sources = options.image or []
    _check_local_images(sources)
    prompt = _read_prompt(options, console)
    if prompt is None:
        if options.json:
            raise ConfigError("--json needs a prompt: a chat has no end that could be printed. Give a PROMPT.")
        if options.server:
            raise ConfigError("--server needs a prompt: a chat loads its model here. Give a PROMPT, or leave it out.")
        from llavakit.cli.chat import chat

        return chat(options, console, settings=settings, load=load)
    images = [_read_image(console) if source == _STDIN else source for source in sources]
    if load is None and (url := _find_server(options, images)) is not None:
        from llavakit.cli.server_client import answer_through_server

        status = answer_through_server(url, options, sampling, prompt, images, console)
        if status is not None:
            return status
    model = load_model(options, console, load)
    if options.verbose:
        console.note(describe_use(model, settings), style="dim")
    note = context_note(options.max_new_tokens, model.config.max_context_tokens)
    if note and not options.quiet:
        console.note(note, style="dim")
    messages = _messages(options.system, prompt, images)
    if options.json:
        return _answer_as_json(model, messages, sampling, console)
    return _answer_as_text(model, messages, sampling, options, console)


def _find_server(options: argparse.Namespace, images: list[Any]) -> str | None:
    """Return the address of a server to ask; the client of HTTP is imported only where there may be one."""
    from llavakit.cli.state_file import find_server

    if not options.server and (options.no_server or find_server() is None):
        return None
    from llavakit.cli.server_client import choose_server

    return choose_server(options, images)


def sampling_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `SamplingParams` that were given on the command line."""
    settings = {name: getattr(options, name) for name in _SAMPLING_OPTIONS if getattr(options, name) is not None}
    if options.stop:
        settings["stop"] = tuple(options.stop)
    if options.logprobs is not None:
        settings["num_top_logprobs"] = options.logprobs
    return settings


def describe_use(model: LoadedModel, settings: dict[str, Any]) -> str:
    """Return lines that say what answers, and how."""
    dtype = str(model.dtype).removeprefix("torch.")
    given = ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "as by default (greedy)"
    return (
        f"model {model.name} from {model.folder}, {dtype} on {model.device}, loaded in {model.load_s:.2f} s\n"
        f"preset {model.preset.name}: pictures {model.preset.image.mode}, template {model.preset.template}\n"
        f"settings: {given}"
    )


def result_to_json(model: LoadedModel, result: GenerationResult) -> dict[str, Any]:
    """Return everything about an answer as JSON types; the format of ``llavakit run --json``."""
    timings = result.timings
    content: dict[str, Any] = {
        "answer": result.text,
        "finish_reason": result.finish_reason.value,
        "model": model.name,
        "preset": model.preset.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "num_images": timings.num_images,
        "num_prompt_tokens": timings.num_prompt_tokens,
        "num_cached_tokens": timings.num_cached_tokens,
        "num_generated_tokens": timings.num_generated_tokens,
        "timings": {
            "load_s": model.load_s,
            "image_decode_s": timings.image_decode_s,
            "image_resize_s": timings.image_resize_s,
            "image_encode_s": timings.image_encode_s,
            "prefill_s": timings.prefill_s,
            "prefill_tokens_per_s": timings.prefill_tokens_per_s,
            "decode_s": timings.decode_s,
            "decode_tokens_per_s": timings.decode_tokens_per_s,
        },
    }
    if result.logprobs is not None:

        def named(token_id: int, logprob: float) -> dict[str, Any]:
            return {"token_id": token_id, "token": model.tokenizer.token_text(token_id), "logprob": logprob}

        content["logprobs"] = [
            {**named(token.token_id, token.logprob), "top": [named(*alternative) for alternative in token.top]}
            for token in result.logprobs
        ]
    return content


def _answer_as_text(
    model: LoadedModel,
    messages: list[Message],
    sampling: SamplingParams,
    options: argparse.Namespace,
    console: Console,
) -> int:
    stream = model.stream(messages, sampling=sampling)
    with AnswerWriter(console) as writer:
        for event in stream:
            writer.push(event.text)
    if not options.quiet and not options.no_timings:
        console.note(timing_line(stream.result, sampling), style="dim")
    return 0


def _answer_as_json(model: LoadedModel, messages: list[Message], sampling: SamplingParams, console: Console) -> int:
    result = model.stream(messages, sampling=sampling).result
    console.line(json.dumps(result_to_json(model, result), ensure_ascii=False))
    return 0


def _messages(system: str | None, prompt: str, images: list[str | bytes]) -> list[Message]:
    question = Message(Role.USER, (*(ImagePart(image) for image in images), TextPart(prompt)))
    return [question] if system is None else [Message(Role.SYSTEM, (TextPart(system),)), question]


def _check_local_images(sources: list[str]) -> None:
    if sources.count(_STDIN) > 1:
        raise ConfigError("--image - was given twice; standard input holds one picture only.")
    for source in sources:
        if source == _STDIN or source.lower().startswith(("http://", "https://", "data:", "file://")):
            continue
        try:
            is_there = Path(source).expanduser().exists()
        except (OSError, RuntimeError, ValueError):
            is_there = False
        if not is_there:
            raise ImageSourceError(f"there is no file {source[:200]!r}; check the path after --image.")


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def _read_prompt(options: argparse.Namespace, console: Console) -> str | None:
    """Return the question, or None for a chat."""
    if len(options.prompt) > 1 and (files := [word for word in options.prompt if _is_file(word)]):
        raise ConfigError(
            f"{files[0]!r} is a file and would be a word of the question. Give each picture an --image of its own: "
            "--image a.png --image b.png; a question that names a file goes into quotes."
        )
    prompt = " ".join(options.prompt)
    wants_stdin = options.prompt == [_STDIN] or (not options.prompt and not console.is_input_terminal)
    if wants_stdin:
        if _STDIN in (options.image or []):
            raise ConfigError("standard input holds the picture of --image -, so the prompt must be an argument.")
        data = _read_stdin(console, _MAX_STDIN_PROMPT_BYTES + 1)
        if len(data) > _MAX_STDIN_PROMPT_BYTES:
            raise PromptError(f"the prompt on standard input is longer than {_MAX_STDIN_PROMPT_BYTES} bytes.")
        try:
            prompt = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise PromptError(
                f"the prompt on standard input is not UTF-8 text (byte {error.start} is {data[error.start]:#04x}). "
                "A picture is given by --image -."
            ) from error
    elif not options.prompt:
        if _STDIN in (options.image or []):
            raise ConfigError("--image - reads standard input, which is a terminal. Pipe a picture into it.")
        return None
    if not prompt.strip():
        where = "on standard input" if wants_stdin else "on the command line"
        raise PromptError(f"the prompt {where} is empty. Ask something.")
    for name, text in (("prompt", prompt), ("system prompt", options.system or "")):
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise PromptError(f"the {name} is not UTF-8 text. Check the terminal's encoding.")
    return prompt


def _read_image(console: Console) -> bytes:
    data = _read_stdin(console, _MAX_STDIN_IMAGE_BYTES + 1)
    if not data:
        raise BadImageError("the picture on standard input is empty (0 bytes). Pipe a picture file into it.")
    if len(data) > _MAX_STDIN_IMAGE_BYTES:
        raise BadImageError(f"the picture on standard input is larger than {_MAX_STDIN_IMAGE_BYTES} bytes.")
    return data


def _read_stdin(console: Console, max_bytes: int) -> bytes:
    if console.stdin is None:
        return b""
    data: bytes = console.stdin.buffer.read(max_bytes)
    return data
