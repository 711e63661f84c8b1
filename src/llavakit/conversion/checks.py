"""What a conversion refuses before it begins: requests without sense, importance of another model, other files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, ShapeError, StoreError
from llavakit.core.shapes import expected_tensors
from llavakit.kernels.machine import MAX_THREADS

__all__ = ["FLOAT_TYPES", "PROJECTOR_TYPES", "check_importance", "check_is_no_other_model", "check_request"]

FLOAT_TYPES = {"f16": "float16", "f32": "float32", "bf16": "bfloat16"}
"""What a folder of safetensors can hold."""
PROJECTOR_TYPES = {**FLOAT_TYPES, "q8_0": "q8_0"}
"""What the tower and projector of a GGUF pair can be."""
_MAX_NAME_BYTES = 200  # file systems take 255: mmproj-NAME-bf16.gguf.part.json lies beside it


def check_request(
    target: Path, type_name: str, mmproj_type: str, num_threads: int | None, *, has_importance: bool
) -> None:
    """Refuse what cannot be done or would have no effect, before any file is opened."""
    if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
        raise ConfigError(f"{num_threads} threads are asked for; between 1 and {MAX_THREADS} are possible.")
    try:
        num_bytes = len(target.name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise StoreError(f"{str(target)!r} is no name in UTF-8, which the file holds. Name another output.") from error
    if num_bytes > _MAX_NAME_BYTES:
        raise StoreError(
            f"the name {target.name[:50]!r}... takes {num_bytes} bytes; at most {_MAX_NAME_BYTES} are possible, since "
            "longer names are made of it. Name another output."
        )
    if mmproj_type not in PROJECTOR_TYPES:
        raise ConfigError(f"projector type {mmproj_type[:50]!r} is not known; use {', '.join(PROJECTOR_TYPES)}.")
    if has_importance and type_name in FLOAT_TYPES:
        raise ConfigError(
            f"importance tells how to quantize, and {type_name} does not. Take another type, or no importance."
        )
    if target.suffix.lower() == ".gguf":
        return
    if type_name not in FLOAT_TYPES:
        raise ConfigError(
            f"{str(target)!r} is taken for a folder of safetensors, which hold {', '.join(FLOAT_TYPES)} and not "
            f"{type_name!r}. For a quantized file give a name that ends in .gguf."
        )
    if mmproj_type != "f16":
        raise ConfigError("a folder holds one file of one type, and no projector apart. Leave --mmproj-type out.")


def check_importance(importance: Mapping[str, np.ndarray], config: LlavaConfig) -> None:
    """Refuse importance measured on another model, before anything is written."""
    shapes = expected_tensors(config)
    shapes.setdefault("lm_head.weight", shapes["language_model.embed_tokens.weight"])  # tied
    for name, values in importance.items():
        if name not in shapes:
            raise ShapeError(
                f"the importance names {name!r}, which the model has not. It was measured on another model."
            )
        if values.shape != shapes[name][-1:]:
            raise ShapeError(
                f"the importance of {name!r} is of {values.shape}, but the matrix has {shapes[name][-1]} columns. It "
                "was measured on another model."
            )


def check_is_no_other_model(folder: Path) -> None:
    """Refuse a folder with weights of other names: a reader would take those, or both."""
    others = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
    found = sorted(file.name for pattern in others for file in folder.glob(pattern) if file.name != "model.safetensors")
    if found:
        raise StoreError(
            f"{str(folder)!r} holds a model in other files ({found[0]}, {len(found)} in all), which would stay "
            "there and be read. Name another folder, or remove them."
        )
