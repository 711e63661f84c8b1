"""Importance files: what `llavakit calibrate` writes and `llavakit convert --importance` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llavakit.core.errors import FormatError, NonFiniteError, ShapeError, StoreError
from llavakit.core.version import __version__

__all__ = ["check_writable", "read_importance", "write_importance"]

_FORMAT = "llavakit-importance-1"


def write_importance(path: Path, importance: Mapping[str, np.ndarray], *, model: str, num_tokens: int) -> None:
    """Write a file of vectors, one per matrix, under its name only when whole.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    metadata = {"format": _FORMAT, "model": model, "num_tokens": str(num_tokens), "llavakit": __version__}
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(dict(importance), part, metadata=metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"{str(path)!r} cannot be written: {error}.") from error


def check_writable(path: Path, *, is_overwrite_allowed: bool = False) -> None:
    """Refuse a place where `write_importance` would fail or destroy something, before hours are spent on it.

    Raises
    ------
    StoreError
        If the folder is not there or may not be written to, or ``path`` is a folder or a file that may not be replaced.
    """
    if path.is_dir():
        raise StoreError(f"{str(path)!r} is a folder; name a file in it.")
    if path.exists() and not is_overwrite_allowed:
        raise StoreError(f"{str(path)!r} is there already. Name another file, or replace it with --overwrite.")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {str(path.parent)!r} is not there. Make it, or name another output.")
    if not os.access(path.parent, os.W_OK):
        raise StoreError(f"the folder {str(path.parent)!r} cannot be written to. Name another output.")


def read_importance(path: Path) -> dict[str, np.ndarray]:
    """Read and check such a file.

    Raises
    ------
    FormatError
        If the file is something else.
    ShapeError
        If a tensor is no vector of float32.
    NonFiniteError
        If a number is not finite, or not positive.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise FormatError(f"{path.name} is no importance file; `llavakit calibrate` writes them.")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise FormatError(f"the importance file {str(path)!r} cannot be read: {error}.") from error
    for name, values in found.items():
        if values.ndim != 1 or values.dtype != np.float32:
            raise ShapeError(f"{path.name}: {name!r} is {values.dtype} {values.shape}; a vector of float32 is needed.")
        if not np.isfinite(values).all() or not (values > 0).all():
            raise NonFiniteError(f"{path.name}: {name!r} holds numbers that are not finite and positive.")
    return found
