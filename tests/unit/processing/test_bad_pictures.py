"""Pictures that are none, are damaged, or are too large; odd but valid ones; mutated files of every format."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from llavakit.core.errors import BadImageError
from llavakit.processing.image import ImageProcessing, preprocess
from llavakit.processing.sources import SourcePolicy, decode_image, open_image

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")
_PROCESSING = ImageProcessing(
    mode="pad", image_size=14, shortest_edge=14, resample=3, rescale_factor=1 / 255, mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5), is_exif_turned=True, alpha="white",
)  # fmt: skip


@cache
def _encoded(file_format: str, mode: str = "RGB") -> bytes:
    if file_format in ("WEBP", "AVIF") and not features.check(file_format.lower()):
        pytest.skip(f"this Pillow has no {file_format}")
    noise = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format=file_format)
    return buffer.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG whose header claims a size; the pixels of one row only."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = _chunk(b"IDAT", zlib.compress(b"\x00" + b"\x80" * min(width, 4)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(extra) + rows + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\x00", "1 bytes"),
        (b"\x00" * 5000, "no picture that can be decoded; it looks like what an unfinished copy leaves, zeros only"),
        (b"words\x00and more", "binary data starting with 77 6f 72 64"),
        ("é".encode() * 300 + b" ", "plain text"),
        (b"x" + "é".encode() * 300, "plain text"),  # a letter lies across the end of what is looked at
        (b"\xff" * 600, "binary data"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a Git LFS pointer, which `git lfs pull`",
        ),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5, which no program here decodes. Convert"),
        (b"just words, called a.png", "plain text"),
        (b"<!doctype html><title>404</title>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG file"),
        (b"PK\x03\x04" + b"\x00" * 40, "a ZIP archive"),
        (b"%PDF-1.7\n", "a PDF file"),
        (_png(60_000, 60_000), "pixels"),
        (_png(14_000, 14_000), "pixels"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadImageError, match=message) as caught:
        open_image(data)
    assert caught.value.code == "bad-image"


@pytest.mark.parametrize("has_ghostscript", [False, True])
def test_a_picture_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch, has_ghostscript: bool) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: has_ghostscript)
    with pytest.raises(BadImageError, match=r"EPS, a program that draws.*Convert the picture to PNG"):
        open_image(_encoded("EPS"))


@pytest.mark.parametrize("file_format", _FORMATS)
def test_truncated_pictures_are_refused(file_format: str) -> None:
    data = _encoded(file_format)
    for length in (len(data) // 8, len(data) // 2):
        with pytest.raises(BadImageError, match=rf"{length} bytes"):
            open_image(data[:length])


@pytest.mark.parametrize("file_format", _FORMATS)
def test_valid_pictures_work(file_format: str) -> None:
    opened = open_image(_encoded(file_format))
    assert (opened.format, opened.image.size) == (file_format, (12, 9))
    assert np.isfinite(preprocess(opened.image, _PROCESSING)).all()


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for file_format in ("GIF", "PNG", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format=file_format, save_all=True, append_images=frames[1:])
        assert open_image(buffer.getvalue()).image.convert("RGB").getpixel((3, 3)) == (255, 0, 0), file_format


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("JPEG", "CMYK"), ("PNG", "I;16"), ("PNG", "1"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"), ("TIFF", "F")],
)
def test_unusual_modes_work(file_format: str, mode: str) -> None:
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.frombytes("I;16", (12, 9), bytes(range(216))).save(buffer, format=file_format)
        data = buffer.getvalue()
    else:
        data = _encoded(file_format, mode)
    pixels = preprocess(open_image(data).image, _PROCESSING)
    assert pixels.shape == (3, 14, 14)


def test_limits_of_the_policy_are_checked_before_decoding() -> None:
    policy = SourcePolicy(max_pixels=100, max_bytes=10_000)
    with pytest.raises(BadImageError, match="12x9 = 108 pixels; at most 100"):
        open_image(_encoded("PNG"), policy=policy)
    with pytest.raises(BadImageError, match="10000 bytes"):
        open_image(io.BytesIO(b"x" * 20_000), policy=policy)


def test_text_chunk_bomb_is_refused_or_skipped() -> None:
    """A compressed text of 200 MB in a file of 200 KB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\x00" * (1 << 20)) for _ in range(200)) + packer.flush()
    data = _png(1, 1, _chunk(b"zTXt", b"Comment\x00\x00" + packed))
    try:
        opened = open_image(data)
    except BadImageError as error:
        assert len(str(error)) < 500
    else:
        assert all(len(str(value)) <= 1 << 21 for value in opened.image.info.values())


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00MM\x00*" + b"\xee" * 60]
)
def test_damaged_exif_does_not_matter(exif: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="JPEG", exif=exif)
    pixels = preprocess(open_image(buffer.getvalue()).image, _PROCESSING)
    assert pixels[0].mean() > 0.9


@given(
    file_format=st.sampled_from(_FORMATS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.floats(0.05, 1),
)
@settings(max_examples=200)
def test_mutated_files_give_pixels_or_bad_image(file_format: str, edits: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(_encoded(file_format))
    for place, value in edits:
        data[min(int(place * len(data)), len(data) - 1)] = value
    data = data[: max(1, int(keep * len(data)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            opened = decode_image(bytes(data), "a mutated file", SourcePolicy(max_pixels=1_000_000))
            pixels = preprocess(opened.image, _PROCESSING)
        except BadImageError as error:
            assert str(error)
        else:
            assert pixels.shape == (3, 14, 14)
