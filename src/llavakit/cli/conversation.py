"""A conversation of the chat: turns, pictures, and the file they are saved in.

The file is JSON. Pictures are embedded as data URIs, or named by path where they came from files; nothing of an
existing file is lost when saving fails, and a file is checked as a whole before anything is replaced by it.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.core.errors import ConfigError
from llavakit.core.types import ImagePart, Message, Role, SamplingParams, TextPart

if TYPE_CHECKING:
    from llavakit.processing.sources import OpenedImage, SourcePolicy

__all__ = ["Conversation", "Picture", "Turn", "load_conversation", "open_picture", "save_conversation"]

_FORMAT = "llavakit-conversation"
_VERSION = 1
_MAX_FILE_BYTES = 1024**3


@dataclass(frozen=True)
class Picture:
    """A picture that was opened when it was attached; later changes of its file do not matter.

    Parameters
    ----------
    name : str
        As the user gave it.
    opened : OpenedImage
    data : bytes
        The encoded file.
    path : Path, optional
        Absolute; None when it came from somewhere else.
    """

    name: str
    opened: OpenedImage
    data: bytes = field(repr=False)
    path: Path | None = None

    @property
    def summary(self) -> str:
        """Format and size in words."""
        image = self.opened.image
        return f"{self.opened.format or image.mode} {image.width}x{image.height}"


@dataclass(frozen=True)
class Turn:
    """One message; only the user's have pictures."""

    role: Role
    text: str
    pictures: tuple[Picture, ...] = ()

    def to_message(self) -> Message:
        """Return it as the engine takes it: pictures first."""
        return Message(self.role, (*(ImagePart(picture.opened) for picture in self.pictures), TextPart(self.text)))


@dataclass
class Conversation:
    """What the model is told: system prompt, turns and settings."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None

    @property
    def sampling(self) -> SamplingParams:
        """The settings, checked."""
        return SamplingParams(**self.settings)

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [picture for turn in self.turns for picture in turn.pictures]

    def to_messages(self, *more: Turn) -> list[Message]:
        """Return the whole conversation, with further turns at its end."""
        system = [] if self.system is None else [Message(Role.SYSTEM, (TextPart(self.system),))]
        return [*system, *(turn.to_message() for turn in (*self.turns, *more))]


def open_picture(source: str, policy: SourcePolicy) -> Picture:
    """Fetch and decode a picture at once, so that what is wrong with it is said where it was attached.

    Raises
    ------
    ImageSourceError, BadImageError
        If it cannot be reached or is no picture.
    """
    from llavakit.processing.sources import decode_image, local_path, open_image, read_picture_file

    lowered = source[:8].lower()
    if lowered.startswith(("http://", "https://")):
        from llavakit.processing.fetch import fetch, shown_url

        data = fetch(source, policy)
        return Picture(source, decode_image(data, shown_url(source), policy), data)
    if lowered.startswith("data:"):
        opened = open_image(source, policy=policy)
        return Picture(f"data URI ({opened.format})", opened, _encoded(source))
    path = local_path(source)
    data, shown = read_picture_file(path, policy=policy)
    return Picture(source, decode_image(data, shown, policy), data, path.expanduser().absolute())


def save_conversation(conversation: Conversation, file: Path, *, model_name: str, embeds: bool = True) -> int:
    """Write a conversation to a file, all of it or nothing.

    Parameters
    ----------
    conversation : Conversation
    file : Path
    model_name : str
    embeds : bool, default True
        Put pictures into the file; else those that came from files are named by their path.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    ConfigError
        If the file cannot be written, or holds something else; what it held before is still there.
    """
    if not _may_overwrite(file):
        raise ConfigError(f"'{file}' exists and is not a saved conversation; choose another name.")
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model_name,
        "preset": conversation.preset,
        "system": conversation.system,
        "parameters": conversation.settings,
        "messages": [_turn_to_json(turn, embeds=embeds) for turn in conversation.turns],
    }
    data = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")
    try:
        _write_atomically(file, data)
    except OSError as error:
        raise ConfigError(f"the conversation cannot be saved to '{file}' ({error.strerror or error}).") from error
    return len(data)


def load_conversation(file: Path, *, policy: SourcePolicy) -> Conversation:
    """Read a conversation that `save_conversation` wrote.

    Raises
    ------
    ConfigError
        If the file cannot be read or is something else.
    ImageSourceError, BadImageError
        If a picture is gone or damaged.
    """
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"'{file}' is {file.stat().st_size} bytes; at most {_MAX_FILE_BYTES} are read.")
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{file}' is not JSON ({error}); a file that /save wrote is needed.") from error
    if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
        raise ConfigError(f"'{file}' is not a saved conversation; a file that /save wrote is needed.")
    if raw.get("version") != _VERSION:
        raise ConfigError(f"'{file}' has format version {raw.get('version')!r}; this program reads {_VERSION}.")
    try:
        return _from_json(raw, policy)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"'{file}' is damaged ({type(error).__name__}: {error}).") from error


def _turn_to_json(turn: Turn, *, embeds: bool) -> dict[str, Any]:
    images = [
        {"type": "image", "name": picture.name, "path": str(picture.path)}
        if picture.path is not None and not embeds
        else {"type": "image", "name": picture.name, "url": _data_uri(picture)}
        for picture in turn.pictures
    ]
    return {"role": turn.role.value, "content": [*images, {"type": "text", "text": turn.text}]}


def _from_json(raw: dict[str, Any], policy: SourcePolicy) -> Conversation:
    settings = dict(raw["parameters"])
    if isinstance(settings.get("stop"), list):
        settings["stop"] = tuple(settings["stop"])
    system, preset = raw["system"], raw["preset"]
    if not isinstance(system, str | None) or not isinstance(preset, str | None):
        raise TypeError("system and preset must be text or null")
    conversation = Conversation(system, [_turn_from_json(turn, policy) for turn in raw["messages"]], settings, preset)
    conversation.sampling  # noqa: B018 - checks the settings
    roles = [turn.role for turn in conversation.turns]
    if roles != [Role.USER, Role.ASSISTANT] * (len(roles) // 2):
        raise ValueError("user and assistant do not take turns")
    return conversation


def _turn_from_json(raw: dict[str, Any], policy: SourcePolicy) -> Turn:
    role = Role(raw["role"])
    pictures, texts = [], []
    for part in raw["content"]:
        if part["type"] == "text":
            texts.append(str(part["text"]))
        elif part["type"] == "image":
            source = part["path"] if "path" in part else part["url"]
            if "path" not in part and not source.startswith("data:image/"):
                raise ValueError("an embedded picture is not a data:image/ URI")
            picture = open_picture(source, policy)
            pictures.append(Picture(str(part.get("name", picture.name)), picture.opened, picture.data, picture.path))
        else:
            raise ValueError(f"a part of type {part['type']!r}")
    if pictures and role is not Role.USER:
        raise ValueError("only user messages can have pictures")
    return Turn(role, "\n".join(texts), tuple(pictures))


def _data_uri(picture: Picture) -> str:
    kind = (picture.opened.format or "octet-stream").lower()
    return f"data:image/{kind};base64,{base64.b64encode(picture.data).decode('ascii')}"


def _encoded(uri: str) -> bytes:
    """Return what a data URI holds; it has been opened before, so it is well formed."""
    from llavakit.processing.sources import decode_base64

    head, _, body = uri.partition(",")
    if "base64" in head.lower():
        return decode_base64(body)
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(body)


def _may_overwrite(file: Path) -> bool:
    """Whether nothing is lost: there is no such file, or it is one of ours."""
    try:
        with file.open("rb") as stream:
            start = stream.read(256)
    except OSError:
        return True  # not there; or writing will fail, too, and say why
    return not start.strip() or f'"{_FORMAT}"'.encode() in start


def _write_atomically(file: Path, data: bytes) -> None:
    """Write beside the file, then rename: a reader sees the old or the new content, never a part."""
    target = file.resolve()  # a link stays a link
    if target.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask
        temporary.chmod(mode)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
