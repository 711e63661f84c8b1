"""Pictures to pixel values, by the checkpoint's own preprocessor file and transformers' rules for sources."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.attributes import check_assignment, missing_attribute
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.processing.image import ImageProcessing, preprocess
from llavakit.processing.sources import SourcePolicy, decode_base64, open_image

__all__ = ["LlavaImageProcessor", "flatten_images"]

# No picture is shorter than this in base64, so a mistyped path is not taken for one.
_MIN_BASE64_LEN = 64
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


_FIXED = dict.fromkeys(
    ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
     "image_mean", "image_std", "do_convert_rgb", "do_pad"),
    "pictures are prepared as the checkpoint's preprocessor_config.json says",
)  # fmt: skip


class LlavaImageProcessor:
    """Opens and preprocesses pictures.

    Parameters
    ----------
    config : ImageProcessing
        What the checkpoint's files say.
    policy : SourcePolicy
        Which sources are allowed, and their limits.

    Attributes
    ----------
    do_resize, do_center_crop, do_rescale, do_normalize, do_convert_rgb, do_pad : bool
    size, crop_size : dict
        ``shortest_edge``, or ``height`` and ``width``.
    resample : int
    rescale_factor : float
    image_mean, image_std : tuple of 3 float

    Raises
    ------
    UnsupportedAttributeError
        If one of these is set to another value, or an attribute is not there.

    Notes
    -----
    transformers treats sources differently, and so does this class: a picture that is named (path, URL, base64) is
    turned upright by its EXIF tag and loses its alpha channel; a PIL image is taken as it is, and its alpha channel is
    laid on white.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, config: ImageProcessing, policy: SourcePolicy) -> None:
        self.config = config
        self.policy = policy
        self._named = replace(config, is_exif_turned=True, alpha="drop")
        self._opened = replace(config, is_exif_turned=False, alpha="white")

    def __getattr__(self, name: str) -> Any:
        if name in _FIXED:
            return self.to_dict()[name]
        raise missing_attribute("LlavaImageProcessor", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if check_assignment(self, name, value, _FIXED):
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return how pictures are prepared, under the names of ``preprocessor_config.json``."""
        config = self.config
        square = {"height": config.image_size, "width": config.image_size}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": square if config.mode == "stretch" else {"shortest_edge": config.shortest_edge},
            "resample": config.resample,
            "do_center_crop": config.mode == "crop",
            "crop_size": square,
            "do_rescale": True,
            "rescale_factor": config.rescale_factor,
            "do_normalize": True,
            "image_mean": config.mean,
            "image_std": config.std,
            "do_convert_rgb": True,
            "do_pad": config.mode == "pad",
        }

    def __call__(
        self,
        images: Any,
        return_tensors: str | None = None,
        *,
        timeout: float | None = None,
        all_named: bool = False,
        **options: Any,
    ) -> BatchFeature:
        """Preprocess one picture or several.

        Parameters
        ----------
        images : picture or (nested) list of pictures
            Path, URL, data URI, base64 string, bytes, PIL image, numpy array or torch tensor (3, H, W).
        return_tensors : {"pt", "np"}, optional
        timeout : float, optional
            Seconds for each URL.
        all_named : bool, default False
            Treat PIL images like named sources, as transformers' pipelines do.
        **options
            The attributes, with the values that they have.

        Returns
        -------
        BatchFeature
            ``pixel_values``: float32 (N, 3, S, S), or a list of N arrays.

        Raises
        ------
        BadImageError, ImageSourceError
            If a picture cannot be opened, or may not be.
        ConfigError
            For an option that is unknown or has another value, by name.
        """
        for name, value in options.items():
            if name not in _FIXED:
                raise ConfigError(f"the image processor does not take {name!r}; check its spelling or leave it out.")
            check_assignment(self, name, value, _FIXED)
        policy = self.policy if timeout is None else replace(self.policy, timeout_s=timeout)
        pixels = [self._preprocess(image, policy, all_named=all_named) for image in flatten_images(images)]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    preprocess = __call__

    def _preprocess(self, source: Any, policy: SourcePolicy, *, all_named: bool) -> np.ndarray:
        is_named = all_named or isinstance(source, str | Path | bytes)
        opened = open_image(_normalise(source), policy=policy)
        return preprocess(opened.image, self._named if is_named else self._opened)


def flatten_images(images: Any) -> list[Any]:
    """Return pictures of any nesting of lists as one list, in order."""
    if isinstance(images, list | tuple):
        return [picture for entry in images for picture in flatten_images(entry)]
    if images is None:
        raise PromptError("images holds None where a picture should be. Leave the entry out.")
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def _normalise(source: Any) -> Any:
    """Turn what only this surface takes into what `open_image` does: tensors, and strings that are base64."""
    if isinstance(source, torch.Tensor):
        array = source.detach().cpu().numpy()
        is_channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4)
        return np.ascontiguousarray(array.transpose(1, 2, 0)) if is_channels_first else array
    return decode_base64(source) if isinstance(source, str) and _is_base64(source) else source


def _is_base64(text: str) -> bool:
    """Return whether a string is base64 and not the name of a file that exists."""
    if len(text) < _MIN_BASE64_LEN or not _BASE64.fullmatch(text):
        return False
    try:
        return not Path(text).is_file()
    except OSError:  # longer than any path can be
        return True
