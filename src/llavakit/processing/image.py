"""Pictures to pixels, bit for bit as the two reference procedures do it.

``pad`` is the original repository's: RGB, a square in the mean colour, bicubic. ``crop`` is that of the llava-hf
checkpoints: RGB over white, shortest edge, bicubic, centre crop. Both end with rescaling in float64, rounded to
float32, and normalisation in float32.

A very long picture would need a huge square, or a huge enlargement of which only the middle is kept. Beyond
``_MAX_DIRECT_PIXELS`` the two axes are therefore resampled apart and in strips, horizontally first, as Pillow does
inside. Some versions of Pillow begin with the vertical axis where a tall picture shrinks; what overshoots at hard edges
is then cut off in another order, and the crop of such a huge picture differs by some levels of 255.

A square of more than ``_MAX_SQUARE_SIDE`` is never made, since its empty part alone would take minutes. Along the
axis that is padded, what the picture adds to the fill is summed with Pillow's weights, in float32 and not in its fixed
point: a level of 255 may differ, where the reference procedure would need more than a gigabyte.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from llavakit.core.errors import BadImageError, ConfigError

__all__ = ["ImageProcessing", "preprocess", "to_rgb"]

# The crop preset enlarges the long side by aspect; beyond this nothing of the picture would be left in the crop anyway.
_MAX_CROP_ASPECT = 2000
# Pillow holds 4 bytes per pixel: up to here the reference procedure itself is run.
_MAX_DIRECT_PIXELS = 100_000_000
_STRIP_PIXELS = 1 << 24
_MAX_SQUARE_SIDE = 20_000
_BICUBIC = 3  # Pillow's number


@dataclass(frozen=True, kw_only=True)
class ImageProcessing:
    """How pixels are made.

    Parameters
    ----------
    mode : {"pad", "crop", "stretch"}
        Pad to a square, scale the shortest edge and crop the middle, or resize both sides regardless of aspect.
    image_size : int
        Height and width of the result.
    shortest_edge : int
        Length of the shorter side before cropping (``crop`` only; equal to ``image_size`` in LLaVA-1.5).
    resample : int
        Pillow's filter number; 3 is bicubic.
    rescale_factor : float
        1/255 as the checkpoint writes it.
    mean, std : tuple of 3 float
    is_exif_turned : bool
        Whether the camera's orientation is applied first.
    alpha : {"drop", "white"}
        Drop transparency, or lay the picture on white.
    """

    mode: Literal["pad", "crop", "stretch"]
    image_size: int
    shortest_edge: int
    resample: int
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_exif_turned: bool
    alpha: Literal["drop", "white"]

    def __post_init__(self) -> None:
        if not (1 <= self.image_size <= 1 << 14 and 1 <= self.shortest_edge <= 1 << 14):
            raise ConfigError(f"image size {self.image_size} with shortest edge {self.shortest_edge} is out of range.")
        if self.resample not in (0, 1, 2, 3, 4, 5):
            raise ConfigError(f"resample is {self.resample}; Pillow knows 0 to 5 (3 is bicubic).")
        if len(self.mean) != 3 or len(self.std) != 3 or any(value <= 0 for value in self.std):
            raise ConfigError(f"image_mean {self.mean} and image_std {self.std} need three numbers each, std above 0.")


def preprocess(image: Image.Image, processing: ImageProcessing) -> np.ndarray:
    """Turn a picture into normalised pixels.

    Parameters
    ----------
    image : PIL image of any mode and size
    processing : ImageProcessing

    Returns
    -------
    float32 array of shape (3, image_size, image_size)

    Raises
    ------
    BadImageError
        If the picture cannot be decoded to RGB, or its aspect is beyond the crop preset's limit.

    Source
    ------
    ``crop``: transformers' CLIPImageProcessor with the PIL back end. ``pad``: the LLaVA repository's
    ``expand2square`` followed by the same processor.
    """
    rgb = to_rgb(image, processing)
    if processing.mode == "pad":
        pixels = _pad_and_resize(rgb, processing)
    elif processing.mode == "crop":
        pixels = _resize_and_crop(rgb, processing)
    else:
        side = processing.image_size
        pixels = np.asarray(rgb.resize((side, side), processing.resample))
    scaled = (pixels.astype(np.float64) * processing.rescale_factor).astype(np.float32)
    mean = np.array(processing.mean, dtype=np.float32)
    std = np.array(processing.std, dtype=np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def to_rgb(image: Image.Image, processing: ImageProcessing) -> Image.Image:
    """Apply orientation and transparency rules and convert to RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF and about palettes with transparency
            return _to_rgb(image, processing)
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise BadImageError(
            f"the {image.mode} picture of {image.width}x{image.height} pixels cannot be converted to RGB ({error}). "
            "Save it as PNG or JPEG and try again."
        ) from error


def _to_rgb(image: Image.Image, processing: ImageProcessing) -> Image.Image:
    if processing.is_exif_turned:
        image = ImageOps.exif_transpose(image)
    has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
    if processing.alpha == "white" and has_alpha:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _pad_and_resize(rgb: Image.Image, processing: ImageProcessing) -> np.ndarray:
    side = max(rgb.size)
    size = processing.image_size
    fill = tuple(int(value * 255) for value in processing.mean)
    left, top = (side - rgb.width) // 2, (side - rgb.height) // 2
    if side * side <= _MAX_DIRECT_PIXELS:
        square = rgb
        if rgb.width != rgb.height:
            square = Image.new("RGB", (side, side), fill)
            square.paste(rgb, (left, top))
        return np.asarray(square.resize((size, size), processing.resample))
    if side > _MAX_SQUARE_SIDE:
        return _resize_long(rgb, fill, processing)
    narrow = Image.new("RGB", (size, side), fill)  # the square after its horizontal pass
    rows_per_strip = max(1, _STRIP_PIXELS // side)
    for start in range(0, rgb.height, rows_per_strip):
        rows = min(rows_per_strip, rgb.height - start)
        strip = Image.new("RGB", (side, rows), fill)
        strip.paste(rgb.crop((0, start, rgb.width, start + rows)), (left, 0))
        narrow.paste(strip.resize((size, rows), processing.resample), (0, top + start))
    return np.asarray(narrow.resize((size, size), processing.resample))


def _resize_long(rgb: Image.Image, fill: tuple[int, ...], processing: ImageProcessing) -> np.ndarray:
    """As `_pad_and_resize` of a very long picture: its own axis by Pillow, the padded one by what is not fill."""
    side, size, height = max(rgb.size), processing.image_size, rgb.height
    if processing.resample != _BICUBIC:
        raise BadImageError(
            f"the picture is {rgb.width}x{height} pixels; with resample {processing.resample} sides up to "
            f"{_MAX_SQUARE_SIDE} are padded. Cut the picture, or use bicubic (3)."
        )
    is_wide = rgb.width == side
    rows_per_strip = max(1, _STRIP_PIXELS // (side if is_wide else 4 * rgb.width))
    strips = (
        rgb.crop((0, start, rgb.width, min(start + rows_per_strip, height)))
        for start in range(0, height, rows_per_strip)
    )
    colour = np.array(fill, dtype=np.float32)
    touched, weights = _padded_weights(side, size, (side - min(rgb.size)) // 2, min(rgb.size))
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    pixels[:] = fill
    if is_wide:
        rows = np.concatenate([np.asarray(strip.resize((size, strip.height), _BICUBIC)) for strip in strips])
        pixels[touched] = _to_levels(np.tensordot(weights, rows - colour, axes=1) + colour)
        return pixels
    columns = np.concatenate([
        _to_levels(np.tensordot(np.asarray(strip) - colour, weights, axes=(1, 1)).swapaxes(1, 2) + colour)
        for strip in strips
    ])  # fmt: skip
    narrow = Image.fromarray(columns)
    pixels[:, touched] = np.asarray(narrow.resize((narrow.width, size), _BICUBIC))
    return pixels


def _to_levels(sums: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(sums + 0.5), 0, 255).astype(np.uint8)


def _padded_weights(side: int, size: int, first: int, count: int) -> tuple[slice, np.ndarray]:
    """Return which of ``size`` outputs ``count`` of ``side`` inputs touch, and their weights (outputs, count).

    Source: Pillow's bicubic filter (a = -1/2), two outputs wide on either side where it shrinks.
    """
    scale = side / size
    start, end = max(0, int(first / scale - 2.5)), min(size, int((first + count) / scale + 3.5))
    centers = (np.arange(start, end) + 0.5) * scale
    inputs = first + np.arange(count) + 0.5
    weights = _bicubic((inputs - centers[:, None]) / scale)
    for weight, center in zip(weights, centers, strict=True):
        whole = np.arange(max(0, int(center - 2 * scale)), min(side, int(center + 2 * scale) + 1)) + 0.5
        weight /= _bicubic((whole - center) / scale).sum()
    return slice(start, end), weights.astype(np.float32)


def _bicubic(distance: np.ndarray) -> np.ndarray:
    distance = np.abs(distance)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _resize_and_crop(rgb: Image.Image, processing: ImageProcessing) -> np.ndarray:
    width, height = rgb.size
    short, long = min(rgb.size), max(rgb.size)
    if long > _MAX_CROP_ASPECT * short:
        raise BadImageError(
            f"the picture is {width}x{height} pixels; the crop preset takes aspects up to {_MAX_CROP_ASPECT}:1. "
            "Use the preset 'original', which pads, or cut the picture."
        )
    edge, size = processing.shortest_edge, processing.image_size
    new_long = int(edge * long / short)
    new_width, new_height = (edge, new_long) if width <= height else (new_long, edge)
    left, right = _crop_range(new_width, size)
    top, bottom = _crop_range(new_height, size)
    if new_width * new_height <= _MAX_DIRECT_PIXELS:
        resized = rgb.resize((new_width, new_height), processing.resample)
        return _pad_small(np.asarray(resized.crop((left, top, right, bottom))), size)
    # Horizontal pass in strips of rows, keeping only the columns of the crop.
    narrow = Image.new("RGB", (right - left, height))
    rows_per_strip = max(1, _STRIP_PIXELS // max(new_width, width))
    for start in range(0, height, rows_per_strip):
        rows = min(rows_per_strip, height - start)
        strip = rgb.crop((0, start, width, start + rows)).resize((new_width, rows), processing.resample)
        narrow.paste(strip.crop((left, 0, right, rows)), (0, start))
    # Vertical pass in strips of columns, keeping only the rows of the crop.
    cropped = Image.new("RGB", (right - left, bottom - top))
    columns_per_strip = max(1, _STRIP_PIXELS // max(new_height, height))
    for start in range(0, right - left, columns_per_strip):
        columns = min(columns_per_strip, right - left - start)
        strip = narrow.crop((start, 0, start + columns, height)).resize((columns, new_height), processing.resample)
        cropped.paste(strip.crop((0, top, columns, bottom)), (start, 0))
    return _pad_small(np.asarray(cropped), size)


def _crop_range(length: int, size: int) -> tuple[int, int]:
    """Part of an axis that a centre crop keeps; all of it where the axis is shorter."""
    if length < size:
        return 0, length
    start = (length - size) // 2
    return start, start + size


def _pad_small(pixels: np.ndarray, size: int) -> np.ndarray:
    """Put what is smaller than the crop in the middle of a black square."""
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    padded = np.zeros((size, size, 3), dtype=pixels.dtype)
    top, left = -((height - size) // 2), -((width - size) // 2)
    padded[top : top + height, left : left + width] = pixels
    return padded
