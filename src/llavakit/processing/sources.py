"""Pictures from wherever they are: paths, URLs, data URIs, bytes, file objects, PIL images, numpy arrays.

Nothing is decoded before its size is known, and nothing larger than the policy allows is read.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from llavakit.core.errors import BadImageError, ImageSourceError

__all__ = ["OpenedImage", "SourcePolicy", "decode_image", "local_path", "open_image", "read_picture_file"]

_DATA_URI = re.compile(r"data:([^,]*),", re.IGNORECASE)
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    AttributeError, ZeroDivisionError, NotImplementedError, RuntimeError, AssertionError,
    BufferError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_MAGIC = (
    (b"<!DOCTYPE", "an HTML page"), (b"<html", "an HTML page"), (b"<?xml", "an XML or SVG file"),
    (b"<svg", "an SVG file"),
    (b"PK\x03\x04", "a ZIP archive"), (b"%PDF", "a PDF file"), (b"\x1f\x8b", "a gzip archive"), (b"{", "JSON or text"),
    (b"version https://git-lfs.", "a Git LFS pointer, which `git lfs pull` replaces by the picture"),
    (b"\x00\x00\x00\x18ftypmp4", "a video"), (b"\x1aE\xdf\xa3", "a video"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SourcePolicy:
    """What may be opened, and how much of it.

    Parameters
    ----------
    allow_files, allow_urls : bool
        Paths on this machine; http(s) addresses.
    allow_http : bool
        Unencrypted URLs too.
    allow_private_hosts : bool
        Addresses that are not global: loopback, home and company networks, link-local.
    url_hosts : tuple of str
        The only hosts that pictures may come from, redirects included; empty for all.
    max_bytes : int
        Of an encoded picture.
    max_pixels : int
        Width times height, checked before decoding. The default is Pillow's own limit for a bomb.
    max_redirects : int
    timeout_s : float
        For a whole download, redirects included.
    """

    allow_files: bool = True
    allow_urls: bool = True
    allow_http: bool = True
    allow_private_hosts: bool = False
    url_hosts: tuple[str, ...] = ()
    max_bytes: int = 100 * 1024**2
    max_pixels: int = 178_956_970
    max_redirects: int = 3
    timeout_s: float = 30.0


@dataclass(frozen=True)
class OpenedImage:
    """A picture as stored: not yet turned, not yet RGB."""

    image: Image.Image
    format: str | None
    num_bytes: int | None
    description: str


def open_image(source: Any, *, policy: SourcePolicy = SourcePolicy()) -> OpenedImage:
    """Open a picture and decode it.

    Parameters
    ----------
    source : str, Path, bytes, file object, PIL image or numpy array
        A string is a data URI, an ``http(s)://`` URL, or a path. Arrays are (H, W), (H, W, 1), (H, W, 3) or
        (H, W, 4), uint8, or floating from 0 to 1; channels first (3, H, W) is told apart by its shape.
    policy : SourcePolicy

    Returns
    -------
    OpenedImage

    Raises
    ------
    ImageSourceError
        If the source cannot be reached or is not allowed.
    BadImageError
        If what is there is no picture, is damaged, or is over a limit.
    """
    if isinstance(source, OpenedImage):
        return source
    if isinstance(source, Image.Image):
        return _from_pil(source, policy)
    if isinstance(source, np.ndarray):
        return OpenedImage(_from_array(source, policy), None, None, f"an array of shape {source.shape}")
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source), "bytes", policy)
    if isinstance(source, Path):
        return _from_path(source, policy)
    if isinstance(source, str):
        return _from_text(source, policy)
    if hasattr(source, "read"):
        return decode_image(_read_bounded(source, "a file object", policy), "a file object", policy)
    raise ImageSourceError(
        f"a picture cannot be made of {type(source).__name__}; pass a path, a URL, a data URI, bytes, a PIL image or "
        "a numpy array."
    )


def _from_text(text: str, policy: SourcePolicy) -> OpenedImage:
    if match := _DATA_URI.match(text[:1024]):
        return decode_image(_decode_data_uri(text, match, policy), "a data URI", policy)
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        from llavakit.processing.fetch import fetch, shown_url

        return decode_image(fetch(text, policy), shown_url(text), policy)
    return _from_path(local_path(text), policy)


def local_path(text: str) -> Path:
    """Return the path that a source which is neither a data URI nor on the web names, as it is or as a file:// URL.

    Raises
    ------
    ImageSourceError
        If it is empty, or a URL that names another machine or is none.
    """
    if not text:
        raise ImageSourceError("a picture's name is empty; pass a path, a URL or a data URI.")
    if text[:7].lower() != "file://":
        return Path(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ImageSourceError(f"{text[:200]!r} is no valid URL ({error}).") from error
    if parts.netloc not in ("", "localhost"):
        raise ImageSourceError(f"{text[:200]!r} names another machine; only local files can be opened.")
    return Path(unquote_to_bytes(parts.path).decode("utf-8", "surrogateescape"))


def _from_path(path: Path, policy: SourcePolicy) -> OpenedImage:
    data, shown = read_picture_file(path, policy=policy)
    return decode_image(data, shown, policy)


def read_picture_file(path: Path, *, policy: SourcePolicy = SourcePolicy()) -> tuple[bytes, str]:
    """Read a picture's file without decoding it; return its bytes and its name as messages show it.

    Raises
    ------
    ImageSourceError
        If it cannot be read or may not be.
    BadImageError
        If it is over the limit.
    """
    if not policy.allow_files:
        raise ImageSourceError("pictures may not be read from this machine's files here; send the picture itself.")
    name = str(path)
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    try:
        path = path.expanduser()
        if path.is_dir():
            raise ImageSourceError(f"{shown!r} is a folder; name a picture in it.")
        if not path.exists():
            raise ImageSourceError(f"there is no file {shown!r}; check the path.")
        if not path.is_file():
            raise ImageSourceError(f"{shown!r} is not a regular file; name a picture file.")
        with path.open("rb") as file:
            return _read_bounded(file, repr(shown), policy), repr(shown)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageSourceError(f"{shown!r} cannot be read ({error}).") from error


def _read_bounded(file: IO[bytes], what: str, policy: SourcePolicy) -> bytes:
    try:
        data = file.read(policy.max_bytes + 1)
    except (OSError, ValueError) as error:  # a file that is closed raises the latter
        raise ImageSourceError(f"{what} cannot be read ({error}).") from error
    if not isinstance(data, bytes):
        raise ImageSourceError(f"{what} gives text, not bytes; open it in binary mode.")
    if len(data) > policy.max_bytes:
        raise BadImageError(
            f"{what} is larger than {policy.max_bytes} bytes, the limit for a picture. Make it smaller."
        )
    return data


def _decode_data_uri(text: str, match: re.Match[str], policy: SourcePolicy) -> bytes:
    """Decode base64 (standard or URL-safe alphabet, white space and missing padding forgiven) or percent encoding."""
    if len(text) > policy.max_bytes * 4 // 3 + 1024:
        raise BadImageError(f"a data URI of {len(text)} characters is over the limit of {policy.max_bytes} bytes.")
    head, body = match.group(1).lower(), text[match.end() :]
    media_type = head.split(";")[0].strip()
    if media_type and not media_type.startswith(("image/", "application/octet-stream")):
        raise BadImageError(f"the data URI holds {media_type!r}; an image is needed.")
    if "base64" not in [part.strip() for part in head.split(";")[1:]]:
        return unquote_to_bytes(body)
    return decode_base64(body)


def decode_base64(body: str) -> bytes:
    """Decode base64 in either alphabet, with white space and missing padding forgiven.

    Raises
    ------
    BadImageError
        If other characters are in it.
    """
    compact = re.sub(r"\s+", "", body).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImageError(f"the picture's base64 text cannot be decoded ({error}).") from error


def decode_image(data: bytes, what: str, policy: SourcePolicy) -> OpenedImage:
    """Decode an encoded picture: by its content, whatever its name says; the first frame of an animation.

    Raises
    ------
    BadImageError
        If it is no picture, is damaged, or has too many pixels.
    """
    if not data:
        raise BadImageError(f"{what} is empty (0 bytes); a picture is needed.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about bombs, EXIF and palettes; our own checks speak instead
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise BadImageError(
                f"{what} ({len(data)} bytes) is no picture that can be decoded; it looks like {_looks_like(data)}. "
                "Use JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
            ) from error
        except Image.DecompressionBombError as error:
            raise BadImageError(f"{what} has too many pixels ({error}).") from error
        except _DECODE_ERRORS as error:
            raise BadImageError(f"{what} ({len(data)} bytes) cannot be opened as a picture ({error}).") from error
        _check_decoder(image, what)
        _check_size(image.size, what, policy)
        try:
            image.load()
        except _DECODE_ERRORS as error:
            raise BadImageError(
                f"{what} is a damaged or truncated {image.format} picture ({len(data)} bytes, {error}). "
                "Fetch or export it again."
            ) from error
    return OpenedImage(image, image.format, len(data), what)


def _check_size(size: tuple[int, int], what: str, policy: SourcePolicy) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImageError(f"{what} has {width}x{height} pixels; at least 1x1 is needed.")
    if width * height > policy.max_pixels:
        raise BadImageError(
            f"{what} has {width}x{height} = {width * height} pixels; at most {policy.max_pixels} are decoded. "
            "Make it smaller."
        )


def _check_decoder(image: Image.Image, what: str) -> None:
    """Refuse what Pillow recognizes but leaves to other programs, before it is called damaged."""
    if image.format == "EPS":  # whether Ghostscript is installed or not: programs of strangers are not run
        raise BadImageError(
            f"{what} is EPS, a program that draws a picture, and none is run here. Convert the picture to PNG."
        )
    if isinstance(image, ImageFile.StubImageFile):
        raise BadImageError(f"{what} is {image.format}, which no program here decodes. Convert the picture to PNG.")


def _from_pil(image: Image.Image, policy: SourcePolicy) -> OpenedImage:
    what = f"a {image.mode} image"
    _check_size(image.size, what, policy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except _DECODE_ERRORS as error:
        raise BadImageError(f"{what} of {image.width}x{image.height} pixels cannot be decoded ({error}).") from error
    return OpenedImage(image, image.format, None, what)


def _from_array(array: np.ndarray, policy: SourcePolicy) -> Image.Image:
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise BadImageError(f"an array of {array.dtype} is no picture; uint8, or floating from 0 to 1, is needed.")
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise BadImageError(f"an array of shape {shape} is no picture; (H, W), (H, W, 3) or (H, W, 4) is needed.")
    _check_size((array.shape[1], array.shape[0]), f"an array of shape {shape}", policy)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0.0 or array.max() > 1.0:
            raise BadImageError("a floating-point picture needs finite values from 0 to 1; scale it, or pass uint8.")
        array = np.rint(array.astype(np.float64) * 255)
    elif array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise BadImageError(f"a picture of {array.dtype} has values outside 0 to 255; scale it, or pass uint8.")
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _looks_like(data: bytes) -> str:
    start = data[:64].lstrip()
    for magic, name in _MAGIC:
        if start[: len(magic)].lower() == magic.lower():
            return name
    if not any(data):
        return "what an unfinished copy leaves, zeros only"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:512])  # a letter may be cut at the end
    except UnicodeDecodeError:
        text = "\0"
    return f"binary data starting with {data[:8].hex(' ')}" if "\0" in text else "plain text"
