"""The same picture from everywhere it can come from, and the ways in which each of them fails."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from llavakit.core.errors import BadImageError, ImageSourceError
from llavakit.processing.sources import SourcePolicy, open_image

_PIXELS = np.random.default_rng(7).integers(0, 256, (5, 9, 3), dtype=np.uint8)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


def _closed_file() -> io.BytesIO:
    file = io.BytesIO(_png())
    file.close()
    return file


_BASE64 = base64.b64encode(_png()).decode()


@pytest.mark.parametrize(
    "source",
    [
        _png(), bytearray(_png()), memoryview(_png()), io.BytesIO(_png()), Image.fromarray(_PIXELS), _PIXELS,
        _PIXELS.transpose(2, 0, 1), _PIXELS.astype(np.float32) / 255, _PIXELS.astype(np.float64) / 255,
        f"data:image/png;base64,{_BASE64}", f"DATA:image/png;BASE64,{_BASE64}", f"data:;base64,{_BASE64}",
        f"data:image/png;charset=utf-8;base64,{_BASE64.rstrip('=')}",
        "data:image/png;base64," + "\n".join(_BASE64[i : i + 60] for i in range(0, len(_BASE64), 60)),
        f"data:image/png;base64,{_BASE64.replace('+', '-').replace('/', '_')}",
        f"data:application/octet-stream;base64,{_BASE64}", f"data:image/png,{quote(_png())}",
    ],
    ids=lambda source: source[:24] if isinstance(source, str) else type(source).__name__,
)  # fmt: skip
def test_every_form_gives_the_same_pixels(source: Any) -> None:
    assert np.array_equal(np.asarray(open_image(source).image.convert("RGB")), _PIXELS)


def test_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a picture ü #1%.png"
    path.write_bytes(_png())
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (
        path,
        str(path),
        f"~/{path.name}",
        path.as_uri(),
        path.as_uri().replace("file://", "file://localhost"),
    ):
        assert np.array_equal(np.asarray(open_image(source).image), _PIXELS)


@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 1), (5, 9, 4), (4, 5, 9)])
def test_arrays_of_other_channel_counts(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 200, dtype=np.uint8)
    assert open_image(array).image.size == (9, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data:text/plain;base64,AAAA", "'text/plain'; an image is needed"),
        ("data:image/png;base64,AAA*", "base64 text cannot be decoded"), ("data:image/png;base64,", "empty"),
        (np.zeros((2, 2, 7), np.uint8), "shape"), (np.full((2, 2), 300), "int64"),
        (np.array([[None]]), "an array of object is no picture"), (np.array([["a"]]), "an array of <U1"),
        (np.ones((2, 2), complex), "an array of complex128"), (np.zeros((2, 2), "M8[s]"), "an array of datetime64"),
        (np.full((2, 2, 3), np.nan), "nan|finite|range|0 to 1"), (np.zeros((0, 4, 3), np.uint8), "shape|empty"),
    ],
)  # fmt: skip
def test_what_holds_no_picture_is_refused(source: Any, message: str) -> None:
    with pytest.raises(BadImageError, match=f"(?i){message}"):
        open_image(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-file.png", "there is no file"), (".", "is a folder"), ("/dev/null", "not a regular file"),
        ("file://elsewhere/a.png", "another machine"), (io.StringIO("x"), "binary mode"), (7, "int"),
        ("", "name is empty"), (_closed_file(), "a file object cannot be read .*closed file"),
        ("a\0b", "cannot be read|there is no file"), ("x" * 5000, "cannot be read|there is no file"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ImageSourceError, match=message):
        open_image(source)


def test_policy_closes_files_and_bounds_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png())
    for source in (path, str(path), path.as_uri()):
        with pytest.raises(ImageSourceError, match="may not be read"):
            open_image(source, policy=SourcePolicy(allow_files=False))
    few = SourcePolicy(max_bytes=20)
    for source in (path, io.BytesIO(_png()), "data:image/png;base64," + "A" * 2000):
        with pytest.raises(BadImageError, match="20 bytes"):
            open_image(source, policy=few)
