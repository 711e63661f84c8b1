"""The two named presets: how pictures and prompts are prepared. Never mixed, always printed.

``original`` is what all published LLaVA-1.5 numbers were made with. ``hf`` is what the llava-hf checkpoints' own
processor files say, and what transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.core.config import CLIP_MEAN, CLIP_STD, LlavaConfig
from llavakit.core.errors import ConfigError
from llavakit.processing.image import ImageProcessing

__all__ = ["PRESET_NAMES", "Preset", "default_preset_name", "load_presets", "read_json"]

PRESET_NAMES = ("original", "hf")
_MAX_JSON_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Preset:
    """A name, the pixels' recipe and the prompt's template."""

    name: str
    image: ImageProcessing
    template: str


def load_presets(folder: Path | None, config: LlavaConfig) -> dict[str, Preset]:
    """Build both presets of a model.

    Parameters
    ----------
    folder : Path, optional
        The model's files; ``preprocessor_config.json`` is read for ``hf``, or what ``processor_config.json`` says of
        pictures, where transformers 5 writes it.
    config : LlavaConfig

    Raises
    ------
    ConfigError
        If the processor file is damaged or asks for something that is not supported.
    """
    size = config.vision_config.image_size
    common: dict[str, Any] = {"image_size": size, "resample": 3, "rescale_factor": 1 / 255}
    original = ImageProcessing(
        mode="pad", shortest_edge=size, mean=CLIP_MEAN, std=CLIP_STD, is_exif_turned=False, alpha="drop", **common
    )
    file, raw = _read_processor_file(folder) or (Path("preprocessor_config.json"), _default_processor(size))
    return {
        "original": Preset("original", original, "vicuna_v1"),
        "hf": Preset("hf", _from_processor_file(raw, file, size), "llava-hf"),
    }


def default_preset_name(folder: Path | None) -> str:
    """Return the preset stored with the model, else ``original``."""
    file = None if folder is None else folder / "llavakit.json"
    if file is None or not file.is_file():
        return "original"
    name = read_json(file).get("preset")
    if name not in PRESET_NAMES:
        raise ConfigError(f"{file.name} names the preset {name!r}; known presets: {', '.join(PRESET_NAMES)}.")
    return str(name)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Raises
    ------
    ConfigError
        If the file is too large, no JSON, or no object.
    """
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ConfigError(f"{file.name} is {file.stat().st_size} bytes; at most {_MAX_JSON_BYTES} are read.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name} cannot be read as JSON ({error}). Fetch the model again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name} holds {type(content).__name__}, an object is needed. Fetch the model again.")
    return content


def _read_processor_file(folder: Path | None) -> tuple[Path, dict[str, Any]] | None:
    if folder is None:
        return None
    if (file := folder / "preprocessor_config.json").is_file():
        return file, read_json(file)
    if (file := folder / "processor_config.json").is_file() and isinstance(
        raw := read_json(file).get("image_processor"), dict
    ):
        return file, raw
    return None


def _default_processor(size: int) -> dict[str, Any]:
    return {
        "do_resize": True, "size": {"shortest_edge": size}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "do_convert_rgb": True,
    }  # fmt: skip


def _from_processor_file(raw: Mapping[str, Any], file: Path, image_size: int) -> ImageProcessing:
    raw = {**_default_processor(image_size), **raw}
    for switch in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if raw[switch] is False:
            raise ConfigError(f"{file.name} switches {switch} off; LLaVA-1.5 needs it on.")
    crop = raw["crop_size"]
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    try:
        edge, mode = _edge_and_mode(raw)
        sides = {int(crop["height"]), int(crop["width"])} if raw["do_center_crop"] or mode == "crop" else {edge}
        mean, std = (tuple(float(value) for value in raw[key]) for key in ("image_mean", "image_std"))
        processing = ImageProcessing(
            mode=mode,
            image_size=sides.pop(),
            shortest_edge=edge,
            resample=int(raw["resample"]),
            rescale_factor=float(raw["rescale_factor"]),
            mean=mean,  # type: ignore[arg-type]
            std=std,  # type: ignore[arg-type]
            is_exif_turned=True,
            alpha="white",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file.name} cannot be understood ({error!r}); size, crop_size, image_mean needed."
        ) from error
    if sides or processing.image_size != image_size:
        raise ConfigError(
            f"{file.name} makes pictures of {crop} but the vision tower takes {image_size}x{image_size}. "
            "The files belong to different models."
        )
    return processing


def _edge_and_mode(raw: Mapping[str, Any]) -> tuple[int, Any]:
    """Shortest edge, and whether the picture is cropped, padded or stretched."""
    size = raw["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if raw.get("do_pad"):
        return int(next(iter(size.values()))), "pad"
    if "shortest_edge" in size:
        if not raw["do_center_crop"]:
            raise ValueError("do_center_crop is off, which leaves pictures of different sizes")
        return int(size["shortest_edge"]), "crop"
    height, width = int(size["height"]), int(size["width"])
    if height != width:
        raise ValueError(f"size {height}x{width} is not square")
    return height, "stretch"
