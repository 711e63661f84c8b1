"""Where tensors go: the argument forms of torch's ``.to`` and ``from_pretrained``'s dtype and device."""

from __future__ import annotations

from typing import Any

import torch

from llavakit.api.loading import choose_device
from llavakit.core.errors import ConfigError

__all__ = ["parse_dtype", "parse_to"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    """Read the arguments of ``.to(...)``.

    Parameters
    ----------
    args : tuple
        A device (name, number or `torch.device`), a dtype, or both in this order.
    kwargs : dict
        ``device``, ``dtype``, and ``non_blocking`` or ``copy``, which change no result.

    Returns
    -------
    device : torch.device or None
    dtype : torch.dtype or None

    Raises
    ------
    ConfigError
        If an argument is neither a device nor a dtype.
    CapacityError
        If this machine does not have the device.
    """
    if unknown := kwargs.keys() - {"device", "dtype", "non_blocking", "copy"}:
        raise ConfigError(f".to() does not take {', '.join(sorted(unknown))}; it takes a device, a dtype, or both.")
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for arg in args:
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, str | int | torch.device) and not isinstance(arg, bool):
            device = arg
        elif arg is not None:
            raise ConfigError(
                f".to() got {arg!r}, which is neither a device nor a dtype; pass e.g. 'cpu', 0 or torch.float16."
            )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ConfigError(f".to() got dtype={dtype!r}; it must be a torch dtype such as torch.float16.")
    return (None if device is None else choose_device(device)), dtype


def parse_dtype(dtype: str | torch.dtype | None, *, stored: str) -> torch.dtype:
    """Turn ``from_pretrained``'s dtype into a torch dtype.

    Parameters
    ----------
    dtype : str, torch.dtype or None
        ``float32``, ``float16``, ``bfloat16`` (as a name or as torch's), or ``"auto"``, which is also the
        default: as the checkpoint says it is stored.
    stored : str
        The checkpoint's dtype.

    Raises
    ------
    ConfigError
        If the dtype is another one.
    """
    if dtype is None or dtype == "auto":
        return _DTYPES[stored]
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; use 'auto' or one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
