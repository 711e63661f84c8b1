"""Pixels of both presets, bit for bit, on generated pictures of every mode, size and orientation."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from llavakit.core.errors import BadImageError
from llavakit.processing import image as image_module
from llavakit.processing.image import ImageProcessing, preprocess
from llavakit.processing.presets import _default_processor, _from_processor_file
from llavakit.processing.sources import SourcePolicy, open_image
from tests.tiny import write_processor_files

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_GREY = (122, 116, 104)  # the mean colour times 255, cut to whole numbers: the published procedure's fill
_SMALL, _FULL = 28, 336

_MODES = (
    "1", "L", "LA", "La", "P", "P+byte", "P+table", "PA", "RGB", "RGB+key", "L+key", "RGBA", "RGBa", "RGBX", "CMYK",
    "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16L", "I;16B", "I;16N",
)  # fmt: skip
_SIDES = ((1, 1), (1, 2), (2, 1), (3, 3), (1, 90), (90, 1), (28, 28), (27, 29), (29, 27), (28, 57), (57, 28), (300, 7),
          (7, 300), (64, 48), (48, 64), (33, 33), (101, 100), (100, 101), (2, 700), (700, 2))  # fmt: skip


def _noise(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes: half of the time noise, half of the time a few flat levels, which bring out rounding at edges."""
    if generator.random() < 0.5:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.choice(np.array([0, 1, 127, 128, 254, 255], dtype=np.uint8), shape)


def _picture(mode: str, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    width, height = size
    base, _, extra = mode.partition("+")
    if base == "1":
        return Image.fromarray(_noise(generator, (height, width)) > 127).convert("1")
    if base == "I":
        return Image.fromarray(generator.integers(-100, 70_000, (height, width), dtype=np.int32))
    if base == "F":
        return Image.fromarray((generator.standard_normal((height, width)) * 200).astype(np.float32))
    if base.startswith("I;16"):
        return Image.frombytes(base, size, generator.integers(0, 256, height * width * 2, dtype=np.uint8).tobytes())
    bands = len(Image.new(base, (1, 1)).getbands())
    if base in ("P", "PA"):
        picture = Image.frombytes(base, size, _noise(generator, (height, width, bands)).tobytes())
        picture.putpalette(_noise(generator, (768,)).tobytes())
    elif base in ("RGBX", "YCbCr", "LAB", "HSV", "La", "RGBa"):
        planes = [Image.fromarray(_noise(generator, (height, width))) for _ in range(bands)]
        if base in ("La", "RGBa"):  # premultiplied: made from the plain mode, as any real one is
            picture = Image.merge({"La": "LA", "RGBa": "RGBA"}[base], planes).convert(base)
        else:
            picture = Image.merge(base, planes)
    else:
        picture = Image.frombytes(base, size, _noise(generator, (height, width, bands)).tobytes())
    if extra == "byte":
        picture.info["transparency"] = int(generator.integers(0, 256))
    elif extra == "table":
        picture.info["transparency"] = _noise(generator, (256,)).tobytes()
    elif extra == "key":
        pixel = picture.getpixel((0, 0))
        picture.info["transparency"] = pixel
    return picture


def _many_pictures() -> Iterator[tuple[str, Image.Image]]:
    generator = np.random.default_rng(336)
    for mode in _MODES:
        for size in _SIDES:
            for repeat in range(2):
                yield f"{mode} {size} {repeat}", _picture(mode, size, generator)
    for index in range(200):
        size = (int(generator.integers(1, 200)), int(generator.integers(1, 200)))
        mode = _MODES[index % len(_MODES)]
        yield f"{mode} {size} random", _picture(mode, size, generator)


def _processing(preset: str, size: int) -> ImageProcessing:
    if preset == "hf":
        return _from_processor_file(_default_processor(size), Path("preprocessor_config.json"), size)
    return ImageProcessing(
        mode="pad", image_size=size, shortest_edge=size, resample=3, rescale_factor=1 / 255, mean=_MEAN, std=_STD,
        is_exif_turned=False, alpha="drop",
    )  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """transformers' image processor with the PIL back end, by picture size."""
    from transformers import AutoImageProcessor

    processors = {}
    for size in (_SMALL, _FULL):
        folder = tmp_path_factory.mktemp(f"processor-{size}")
        write_processor_files(folder, image_size=size)
        (folder / "config.json").write_text(json.dumps({"model_type": "llava"}), encoding="utf-8")
        processors[size] = AutoImageProcessor.from_pretrained(folder, backend="pil")
        assert processors[size].backend == "pil"
    return processors


def _their_pixels(processor: Any, image: Image.Image) -> np.ndarray:
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def _published(processor: Any, image: Image.Image) -> np.ndarray:
    """The published procedure, one pixel at a time: RGB, in the middle of a grey square, then CLIP's processor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow has an opinion about palettes with transparency
        rgb = np.array(image.convert("RGB"))
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:, :] = _GREY
    top, left = (side - height) // 2, (side - width) // 2
    for row in range(height):
        square[top + row, left : left + width] = rgb[row]
    return _their_pixels(processor, Image.fromarray(square))


def _outcome(compute: Any) -> np.ndarray | None:
    """Pixels, or None where the mode has no way to RGB."""
    try:
        return np.asarray(compute())
    except (ValueError, BadImageError):
        return None


@pytest.mark.parametrize("preset", ["hf", "original"])
def test_every_mode_and_size(preset: str, theirs: dict[int, Any]) -> None:
    oracle = _their_pixels if preset == "hf" else _published
    processing = _processing(preset, _SMALL)
    num_equal, refused = 0, set()
    for name, picture in _many_pictures():
        ours = _outcome(lambda picture=picture: preprocess(picture.copy(), processing))
        expected = _outcome(lambda picture=picture: oracle(theirs[_SMALL], picture.copy()))
        assert (ours is None) == (expected is None), name
        if ours is None or expected is None:
            refused.add(name.split()[0])
            continue
        assert ours.dtype == expected.dtype == np.float32
        assert ours.shape == (3, _SMALL, _SMALL)
        assert np.array_equal(ours, expected), name
        num_equal += 1
    assert num_equal >= 1000
    # Pillow has no conversion of these to RGB; nobody can show them without a colour profile or a rule of one's own.
    assert refused <= {"LAB", "La", "RGBa", "I;16L", "I;16N"}


@pytest.mark.parametrize("preset", ["hf", "original"])
def test_full_size(preset: str, theirs: dict[int, Any]) -> None:
    oracle = _their_pixels if preset == "hf" else _published
    generator = np.random.default_rng(14)
    sizes = [(1, 1), (336, 336), (337, 336), (640, 480), (480, 640), (335, 900), (1, 40), (1500, 20)]
    for index, size in enumerate(sizes):
        for mode in ("RGB", ("L", "RGBA", "P", "CMYK")[index % 4]):
            picture = _picture(mode, size, generator)
            ours = preprocess(picture.copy(), _processing(preset, _FULL))
            assert np.array_equal(ours, oracle(theirs[_FULL], picture)), (mode, size)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, file_format: str, theirs: dict[int, Any], tmp_path: Path) -> None:
    """transformers turns a picture when it loads one from a file; ``original`` never turns."""
    from transformers.image_utils import load_image

    picture = _picture("RGB", (61, 40), np.random.default_rng(orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned.{file_format.lower()}"
    picture.save(file, format=file_format, exif=exif)
    opened = open_image(file, policy=SourcePolicy()).image
    turned = preprocess(opened.copy(), _processing("hf", _SMALL))
    assert np.array_equal(turned, _their_pixels(theirs[_SMALL], load_image(str(file))))
    stored = preprocess(opened.copy(), _processing("original", _SMALL))
    assert np.array_equal(stored, _published(theirs[_SMALL], Image.open(file)))
    by_hand = preprocess(ImageOps.exif_transpose(opened), _processing("hf", _SMALL))
    assert np.array_equal(turned, by_hand)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG", "AVIF", "JPEG2000", "PPM"])
def test_files_of_every_format(file_format: str, theirs: dict[int, Any]) -> None:
    """What our sources open has the pixels of what Pillow opens plainly."""
    if file_format.lower() not in {value.lower() for value in Image.registered_extensions().values()}:
        pytest.skip(f"this Pillow has no {file_format}")
    buffer = io.BytesIO()
    _picture("RGB", (50, 31), np.random.default_rng(5)).save(buffer, format=file_format)
    ours = preprocess(open_image(buffer.getvalue()).image, _processing("hf", _SMALL))
    buffer.seek(0)
    assert np.array_equal(ours, _their_pixels(theirs[_SMALL], Image.open(buffer)))


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (40, 900), (900, 40), (1, 1000), (500, 499), (28, 28)])
def test_strips_of_a_padded_picture(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The path for huge pictures; a square is resampled horizontally first by Pillow too, so nothing may differ."""
    picture, processing = _picture("RGB", size, np.random.default_rng(size[0])), _processing("original", _SMALL)
    direct = preprocess(picture.copy(), processing)
    _force_strips(monkeypatch)
    assert np.array_equal(preprocess(picture.copy(), processing), direct)


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (40, 900), (900, 40), (1, 1000), (500, 499), (28, 28)])
def test_strips_of_a_cropped_picture(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The two passes one after the other give the same, on the whole picture at once."""
    picture, processing = _picture("RGB", size, np.random.default_rng(size[0])), _processing("hf", _SMALL)
    width, height = (_SMALL * side // min(size) for side in size)
    whole = picture.resize((width, size[1]), Image.Resampling.BICUBIC)
    whole = whole.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - _SMALL) // 2, (height - _SMALL) // 2
    levels = np.asarray(whole.crop((left, top, left + _SMALL, top + _SMALL)))
    _force_strips(monkeypatch)
    stripped = preprocess(picture.copy(), processing)
    assert np.array_equal(_levels(stripped), levels.transpose(2, 0, 1))


def _force_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "_MAX_DIRECT_PIXELS", 0)
    monkeypatch.setattr(image_module, "_STRIP_PIXELS", 5000)  # several strips, the last one partly filled


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Undo normalisation: levels of 0 to 255."""
    mean, std = np.array(_MEAN)[:, None, None], np.array(_STD)[:, None, None]
    return np.rint((pixels * std + mean) * 255).astype(np.int64)


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (300, 900), (900, 300), (1, 1000), (499, 500), (500, 499)])
def test_the_padded_axis_of_a_long_picture_is_summed_alike(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, and by Pillow in fixed point: where a sum lies at a half, a level may differ.

    Pillow's weights are off by up to 2^-23 each, so a sum of 2,000 by some sqrt(2000) x 2^-23 x 255 / 2, less than a
    thousandth of a level; two in a thousand lie so near to a half, and a hundredth is the bound.
    """
    picture, processing = _picture("RGB", size, np.random.default_rng(size[0])), _processing("original", _SMALL)
    direct = _levels(preprocess(picture.copy(), processing))
    _force_strips(monkeypatch)
    monkeypatch.setattr(image_module, "_MAX_SQUARE_SIDE", 0)
    levels = _levels(preprocess(picture.copy(), processing))
    assert np.abs(levels - direct).max() <= 1
    assert (levels != direct).mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (20, 300_000)])
def test_a_file_of_two_kilobytes_costs_no_square_of_its_side(size: tuple[int, int]) -> None:
    """The square's empty part alone would take an hour."""
    pixels = preprocess(Image.new("RGB", size, (255, 0, 0)), _processing("original", _SMALL))
    middle, edge = pixels[:, _SMALL // 2, _SMALL // 2], pixels[:, 0, 0]
    assert np.allclose(edge, (np.array(_GREY) / 255 - _MEAN) / _STD, atol=1e-6)
    assert middle.shape == (3,)
    with pytest.raises(BadImageError, match="bicubic"):
        preprocess(Image.new("RGB", size), dataclasses.replace(_processing("original", _SMALL), resample=1))


def test_very_long_pictures_stay_small() -> None:
    """A square around a 1 x 60,000 picture would hold 3.6 thousand million pixels."""
    picture = _picture("RGB", (60_000, 1), np.random.default_rng(0))
    pixels = preprocess(picture, _processing("original", _FULL))
    assert pixels.shape == (3, _FULL, _FULL)
    # One row of 60,000 becomes 1/179 of a row of the result: everything away from the middle is the fill colour.
    fill = (np.array(_GREY) / 255 - _MEAN) / _STD
    assert np.allclose(pixels[:, 0, :], fill[:, None], atol=1e-6)
    with pytest.raises(BadImageError, match="2000:1"):
        preprocess(picture, _processing("hf", _FULL))
