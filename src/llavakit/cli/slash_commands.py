"""The commands of the chat: what each does, its help, and what to say when there is no such command."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.cli.attachments import split_sources
from llavakit.cli.conversation import Conversation, load_conversation, open_picture, save_conversation
from llavakit.cli.timing_line import context_note
from llavakit.core.errors import ConfigError, SamplingError
from llavakit.core.types import SamplingParams
from llavakit.core.wording import counted

if TYPE_CHECKING:
    from llavakit.cli.chat import Chat

__all__ = ["COMPLETIONS", "help_text", "run_slash_command"]

_WHOLE_NUMBERS = ("max_new_tokens", "top_k", "seed", "num_beams")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "length_penalty")
_PARAMETERS = (*_WHOLE_NUMBERS, *_NUMBERS, "stop")
_DEFAULT = "default"
_SHOWN = ("info", "parameters", "system", "images", "timings")


@dataclass(frozen=True)
class _Command:
    action: Callable[[Chat, str], None]
    usage: str
    about: str


def run_slash_command(chat: Chat, line: str) -> None:
    """Run one line that begins with a slash.

    Raises
    ------
    ConfigError
        If there is no such command, or its argument cannot be used.
    """
    word, _, argument = line.partition(" ")
    name = _ALIASES.get(word.lower(), word.lower())
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name, [*_COMMANDS, *_ALIASES], n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        what = f"there is no command {word!r}" + (" and no such file" if "/" in word[1:] or "." in word else "")
        raise ConfigError(f'{what}.{hint} /help lists the commands; """ around a line sends it as text.')
    _COMMANDS[name].action(chat, argument.strip())


def help_text() -> str:
    """Return what ``/help`` shows."""
    width = max(len(command.usage) for command in _COMMANDS.values())
    lines = [f"  {command.usage:<{width}}  {command.about}" for command in _COMMANDS.values()]
    return (
        "Type a question, press Enter. A picture's path in the line attaches it, and so\n"
        "does its URL: any URL at the line's start, further on one that ends in .png,\n"
        ".jpg or another picture's suffix.\n\n"
        + "\n".join(lines)
        + '\n\n  """ begins and ends a message of several lines, sent as it stands\n'
        "  Ctrl-C  stops the answer          Ctrl-D  leaves\n"
        "  Up, Down, Ctrl-R  earlier lines   Tab     completes a command\n\n"
        "/set takes: system TEXT, preset original|hf, parameter NAME VALUE with NAME of\n"
        f"  {', '.join(_PARAMETERS[:6])},\n  {', '.join(_PARAMETERS[6:])}"
    )


def _help(chat: Chat, _argument: str) -> None:
    chat.console.line(help_text())


def _image(chat: Chat, argument: str) -> None:
    if not argument:
        raise ConfigError("/image needs a path or a URL: /image shapes.png")
    chat.attach([open_picture(source, chat.policy) for source in split_sources(argument)])


def _clear(chat: Chat, argument: str) -> None:
    if argument not in ("", "images"):
        raise ConfigError(f"/clear takes nothing, or 'images' for pictures that wait to be sent; got {argument!r}.")
    chat.waiting = []
    if argument == "images":
        chat.say("no pictures wait to be sent now")
        return
    chat.conversation.turns = []
    chat.last_result = None
    chat.model.reset()
    chat.say("the conversation is empty now; system prompt and parameters stay")


def _set(chat: Chat, argument: str) -> None:
    kind, _, rest = argument.partition(" ")
    rest = rest.strip()
    if kind == "parameter":
        _set_parameter(chat, rest)
    elif kind == "system" and rest:
        chat.conversation.system = None if rest == _DEFAULT else _without_quotes(rest)
        chat.say("system prompt set")
    elif kind == "preset" and rest:
        _use_preset(chat, rest)
        chat.say(f"preset {rest}: template {chat.model.preset.template}")
    else:
        raise ConfigError(
            "/set needs one of: /set parameter NAME VALUE, /set system TEXT, /set preset original|hf. "
            f"NAME is one of {', '.join(_PARAMETERS)}."
        )


def _set_parameter(chat: Chat, argument: str) -> None:
    name, _, text = argument.partition(" ")
    name, text = name.replace("-", "_"), text.strip()
    if name not in _PARAMETERS:
        close = difflib.get_close_matches(name, _PARAMETERS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise SamplingError(f"there is no parameter {name!r}.{hint} Parameters: {', '.join(_PARAMETERS)}.")
    if not text:
        raise SamplingError(f"/set parameter {name} needs a value, or 'default'.")
    settings = dict(chat.conversation.settings)
    if text == _DEFAULT:
        settings.pop(name, None)
    else:
        settings[name] = _parse_value(name, text)
    sampling = SamplingParams(**settings)  # checks that the settings go together
    chat.conversation.settings = settings
    chat.say(f"{name} = {getattr(sampling, name)!r}")
    note = context_note(settings.get("max_new_tokens"), chat.model.config.max_context_tokens)
    if note and name == "max_new_tokens":
        chat.say(note)


def _parse_value(name: str, text: str) -> Any:
    try:
        if name == "stop":
            return tuple(shlex.split(text))
        return int(text) if name in _WHOLE_NUMBERS else float(text)
    except ValueError as error:
        kind = "text, in quotes if it has spaces" if name == "stop" else "a number"
        kind = "a whole number" if name in _WHOLE_NUMBERS else kind
        raise SamplingError(f"{name} needs {kind}; got {text!r}.") from error


def _use_preset(chat: Chat, name: str) -> None:
    if name != chat.model.preset.name:
        chat.model = chat.model.with_preset(name)
    chat.conversation.preset = name


def _show(chat: Chat, argument: str) -> None:
    views: dict[str, Callable[[Chat], str]] = dict(
        zip(_SHOWN, (_info, _parameters, _system, _images, _timings), strict=True)
    )
    if argument not in views:
        raise ConfigError(f"/show needs one of: {', '.join(_SHOWN)}.")
    chat.console.line(views[argument](chat))


def _info(chat: Chat) -> str:
    model = chat.model
    dtype = str(model.dtype).removeprefix("torch.")
    rows = {
        "model": model.name,
        "folder": str(model.folder),
        "dtype": f"{dtype} on {model.device}",
        "preset": f"{model.preset.name} (template {model.preset.template})",
        "context": _context_used(chat),
        "messages": str(len(chat.conversation.turns)),
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())


def _context_used(chat: Chat) -> str:
    num_tokens = chat.model.config.max_context_tokens
    if chat.last_result is None and chat.conversation.turns:  # loaded from a file
        return f"{num_tokens} tokens; how many are used is known after the next answer"
    used = chat.last_result.timings if chat.last_result else None
    num_used = used.num_prompt_tokens + used.num_generated_tokens if used else 0
    return f"{num_used} of {num_tokens} tokens used"


def _parameters(chat: Chat) -> str:
    given, sampling = chat.conversation.settings, chat.conversation.sampling
    names = [field.name for field in fields(SamplingParams) if field.name in _PARAMETERS]
    return "\n".join(f"{name:<18} {getattr(sampling, name)!r}{' (set)' if name in given else ''}" for name in names)


def _system(chat: Chat) -> str:
    return chat.conversation.system or f"that of the template {chat.model.preset.template}"


def _images(chat: Chat) -> str:
    lines = [f"sent      {picture.name} ({picture.summary})" for picture in chat.conversation.pictures]
    lines += [f"attached  {picture.name} ({picture.summary})" for picture in chat.waiting]
    return "\n".join(lines) or "no pictures"


def _timings(chat: Chat) -> str:
    if chat.last_result is None:
        return "no answer yet"
    timings = chat.last_result.timings
    rows = {
        "image decode": f"{timings.image_decode_s:.4f} s",
        "image resize": f"{timings.image_resize_s:.4f} s",
        "image encode": f"{timings.image_encode_s:.4f} s ({timings.num_images_encoded} of {timings.num_images})",
        "prompt": f"{timings.prefill_s:.4f} s, {timings.num_prompt_tokens} tokens, {timings.num_cached_tokens} cached, "
        f"{timings.prefill_tokens_per_s:.1f} tokens/s",
        "answer": f"{timings.decode_s:.4f} s, {timings.num_generated_tokens} tokens, "
        f"{timings.decode_tokens_per_s:.1f} tokens/s",
    }
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def _save(chat: Chat, argument: str) -> None:
    embeds = not argument.startswith("--paths ")
    file = _file_argument(argument.removeprefix("--paths "), "/save")
    num_bytes = save_conversation(chat.conversation, file, model_name=chat.model.name, embeds=embeds)
    chat.say(f"saved {counted(len(chat.conversation.turns), 'message')} to '{file}' ({num_bytes} bytes)")


def _load(chat: Chat, argument: str) -> None:
    file = _file_argument(argument, "/load")
    loaded: Conversation = load_conversation(file, policy=chat.policy)
    if loaded.preset is not None:
        _use_preset(chat, loaded.preset)
    loaded.preset = chat.model.preset.name
    chat.conversation, chat.waiting, chat.last_result = loaded, [], None
    num_messages, num_pictures = len(loaded.turns), len(loaded.pictures)
    chat.say(f"loaded {counted(num_messages, 'message')} and {counted(num_pictures, 'picture')} from '{file}'")


def _leave(_chat: Chat, _argument: str) -> None:
    from llavakit.cli.chat import LeaveChat

    raise LeaveChat


def _file_argument(argument: str, command: str) -> Path:
    if not argument:
        raise ConfigError(f"{command} needs a file: {command} chat.json")
    try:
        words = shlex.split(argument)
    except ValueError:  # a lone quote is part of the name
        words = [argument]
    name = words[0] if len(words) == 1 else argument
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name!r} cannot be used as a path ({error}).") from error


def _without_quotes(text: str) -> str:
    for quotes in ('"""', '"'):
        if len(text) >= 2 * len(quotes) and text.startswith(quotes) and text.endswith(quotes):
            return text[len(quotes) : -len(quotes)]
    return text


_COMMANDS = {
    "/image": _Command(_image, "/image SOURCE ...", "attach pictures to the next question"),
    "/clear": _Command(_clear, "/clear [images]", "forget the conversation, or the unsent pictures"),
    "/set": _Command(_set, "/set WHAT VALUE", "change how answers are made; 'default' puts it back"),
    "/show": _Command(_show, "/show WHAT", f"show one of: {', '.join(_SHOWN)}"),
    "/save": _Command(_save, "/save [--paths] FILE", "write the conversation, pictures included or as paths"),
    "/load": _Command(_load, "/load FILE", "go on with a saved conversation"),
    "/help": _Command(_help, "/help", "show this"),
    "/bye": _Command(_leave, "/bye", "leave"),
}
_ALIASES = {"/?": "/help", "/exit": "/bye", "/quit": "/bye"}

COMPLETIONS = (
    *_COMMANDS,
    *(f"/set parameter {name}" for name in _PARAMETERS),
    "/set system",
    "/set preset original",
    "/set preset hf",
    *(f"/show {name}" for name in _SHOWN),
)
"""What Tab completes."""
