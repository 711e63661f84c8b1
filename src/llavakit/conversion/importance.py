"""Importance files: what `llavakit calibrate` writes and `llavakit convert --importance` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llavakit.core.errors import FormatError, NonFiniteError, ShapeError
from llavakit.core.version import __version__

__all__ = ["read_importance", "write_importance"]

_FORMAT = "llavakit-importance-1"


def write_importance(path: Path, importance: Mapping[str, np.ndarray], *, model: str, num_tokens: int) -> None:
    """Write a file of vectors, one per matrix, under its name only when whole."""
    metadata = {"format": _FORMAT, "model": model, "num_tokens": str(num_tokens), "llavakit": __version__}
    part = path.with_name(f"{path.name}.part")
    save_file(dict(importance), part, metadata=metadata)
    Path(part).replace(path)


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
