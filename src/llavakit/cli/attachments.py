"""Finds pictures in a line of a chat: dropped or typed paths, file:// and http(s) URLs, data: URIs.

Terminals drop a path quoted, with escaped spaces, as a file:// URL or as it is; all four are understood. A word
that looks like a picture's path but names no file is an error: it must not silently become text. An http(s) URL that
begins the line was dropped or pasted there; further on only one that ends as pictures do is meant as a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llavakit.core.errors import ImageSourceError

__all__ = ["IMAGE_SUFFIXES", "find_attachments", "split_sources", "starts_with_file"]

IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".svg", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""What a picture's name ends in. Only a hint that a word is meant as a picture: its content decides."""

_PATH_STARTS = ("/", "./", "../", "~/")
_QUOTES = "'\""
_TRAILING = ",.;:!?)]}"
# First bytes of the formats whose files often have no suffix (downloads, caches, screenshots in /tmp).
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class _Word:
    """A word of the line: where it stands, and what it says without quotes and escapes."""

    start: int
    end: int
    value: str


@dataclass(frozen=True)
class _Found:
    source: str
    end: int


def find_attachments(line: str) -> tuple[str, list[str]]:
    """Split a line into its text and the pictures that are named in it.

    Parameters
    ----------
    line : str

    Returns
    -------
    text : str
        The line without the pictures' names.
    sources : list of str
        Paths, URLs and data URIs, in order.

    Raises
    ------
    ImageSourceError
        If a word looks like a picture's path and there is no such file.
    """
    kept: list[str] = []
    sources: list[str] = []
    position = 0
    words = list(_words(line))
    for idx, word in enumerate(words):
        if word.start < position:
            continue  # part of a path with spaces
        found = _match(line, words, idx)
        if found is not None:
            kept.append(line[position : word.start])
            sources.append(found.source)
            position = found.end
    kept.append(line[position:])
    if not sources:
        return line, []
    return _join(kept), sources


def starts_with_file(line: str) -> bool:
    """Whether the line begins with the name of an existing file (quoted or escaped or not)."""
    words = list(_words(line))
    if not words:
        return False
    found = _match_path_with_spaces(line, words, 0)
    return found is not None or _existing_file(words[0].value) is not None


def split_sources(text: str) -> list[str]:
    """Split what follows ``/image``: one path with spaces, or several words, quoted or escaped.

    Nothing is checked here; opening the pictures says what is wrong with them.
    """
    if _existing_file(text) is not None:
        return [text]
    words = list(_words(text))
    is_one_path = any(word.value.startswith(_PATH_STARTS) for word in words[:1]) and not any(
        _existing_file(word.value) for word in words
    )
    if is_one_path and len(words) > 1 and sum(_has_image_suffix(word.value) for word in words) <= 1:
        return [text]
    return [_file_url_to_path(word.value) or word.value for word in words]


def _match(line: str, words: list[_Word], idx: int) -> _Found | None:
    """Return the picture that begins at a word, if one does."""
    word = words[idx]
    lowered = word.value.lower()
    if lowered.startswith("data:image/"):
        return _Found(word.value, word.end)
    if lowered.startswith("file://"):
        path = _file_url_to_path(word.value)
        if path is None or _existing_file(path) is None:
            raise ImageSourceError(_not_there(word.value))
        return _Found(path, word.end)
    if "://" in word.value:
        return _match_url(word, is_first=idx == 0) if lowered.startswith(("http://", "https://")) else None
    for value in dict.fromkeys((word.value, word.value.rstrip(_TRAILING))):
        file = _existing_file(value)
        # At the start of a line any file is meant; further on only pictures are: sentences name files, too.
        if file is not None and (_is_picture(value, file) or (idx == 0 and value.startswith(_PATH_STARTS))):
            is_question = word.value != value and line[word.end - 1] in "?!"
            return _Found(value, word.end - is_question)
    if (found := _match_path_with_spaces(line, words, idx)) is not None:
        return found
    stripped = word.value.rstrip(_TRAILING)
    if _has_image_suffix(stripped):
        raise ImageSourceError(_not_there(stripped))
    return None


def _match_url(word: _Word, *, is_first: bool) -> _Found | None:
    url = word.value.rstrip(_TRAILING)
    if is_first:
        return _Found(url, word.end)
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    return _Found(url, word.end) if _has_image_suffix(path) else None


def _match_path_with_spaces(line: str, words: list[_Word], idx: int) -> _Found | None:
    """Match a path dropped as it is, spaces and all: the longest one that names a file."""
    start = words[idx].start
    if not line.startswith(_PATH_STARTS, start):
        return None
    for last in reversed(words[idx + 1 :]):
        candidate = line[start : last.end]
        if _has_image_suffix(candidate) and _existing_file(candidate) is not None:
            return _Found(candidate, last.end)
    return None


def _existing_file(value: str) -> Path | None:
    if not value or "\n" in value:
        return None
    try:
        path = Path(value).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, unknown user, null byte
        return None


def _is_picture(value: str, path: Path) -> bool:
    if _has_image_suffix(value):
        return True
    if not value.startswith(_PATH_STARTS):
        return False
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP") or start[4:12] == b"ftypavif"


def _has_image_suffix(value: str) -> bool:
    return Path(value).suffix.lower() in IMAGE_SUFFIXES


def _file_url_to_path(value: str) -> str | None:
    if not value.lower().startswith("file://"):
        return None
    parts = urlsplit(value)
    if parts.netloc not in ("", "localhost"):
        return None
    return unquote(parts.path)


def _not_there(value: str) -> str:
    return (
        f"there is no picture {value[:200]!r}, so nothing was sent. Check the path; to send these words as text, put "
        'the message between """.'
    )


def _words(line: str) -> Iterator[_Word]:
    """Split at white space; a word that begins with a quote ends as a shell would end it, if it ends at all."""
    position = 0
    while position < len(line):
        if line[position].isspace():
            position += 1
            continue
        word = _quoted_word(line, position) if line[position] in _QUOTES else None
        word = word or _plain_word(line, position)
        yield word
        position = word.end


def _plain_word(line: str, start: int) -> _Word:
    position, chars = start, []
    while position < len(line) and not line[position].isspace():
        if line[position] == "\\" and position + 1 < len(line):
            position += 1
        chars.append(line[position])
        position += 1
    return _Word(start, position, "".join(chars))


def _quoted_word(line: str, start: int) -> _Word | None:
    """Read a word as a shell does, quotes and escapes in it included; None when a quote is left open."""
    position, chars, quote = start, [], ""
    while position < len(line):
        char = line[position]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and line[position + 1 : position + 2] in ('"', "\\"):
                position += 1
                chars.append(line[position])
            else:
                chars.append(char)
        elif char in _QUOTES:
            quote = char
        elif char.isspace():
            break
        elif char == "\\" and position + 1 < len(line):
            position += 1
            chars.append(line[position])
        else:
            chars.append(char)
        position += 1
    return None if quote else _Word(start, position, "".join(chars))


def _join(pieces: list[str]) -> str:
    """Join the text around pictures; one space where a name was cut out, none before a question mark."""
    text = ""
    for piece in (piece.strip(" \t") for piece in pieces):
        text += f" {piece}" if text and piece and piece[0] not in "?!" else piece
    return text.strip()
