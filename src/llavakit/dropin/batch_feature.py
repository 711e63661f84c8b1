"""What a processor returns: a mapping of tensors that moves to a device as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.placement import parse_to

__all__ = ["BatchFeature"]


class BatchFeature(MutableMapping[str, Any]):
    """Model inputs by name.

    A mapping, so that ``model.generate(**inputs)`` works, with the entries as attributes as well.

    Parameters
    ----------
    data : dict
        ``input_ids``, ``attention_mask``, ``pixel_values`` and the like: nested lists or arrays.
    tensor_type : {"pt", "np", None}
        Convert to torch tensors, to numpy arrays, or leave as it is.

    Raises
    ------
    PromptError
        If rows of different lengths should become a tensor.
    ConfigError
        If ``tensor_type`` is another one.
    """

    data: dict[str, Any]

    def __init__(self, data: dict[str, Any] | None = None, *, tensor_type: str | None = None) -> None:
        self.data = dict(data or {})
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        # Only called when no real attribute has the name; "data" itself is absent while an instance is unpickled.
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"BatchFeature has no entry {name!r}")

    def __repr__(self) -> str:
        return repr(self.data)

    def __or__(self, other: Mapping[str, Any]) -> BatchFeature:
        return BatchFeature({**self, **other})

    def __ror__(self, other: Mapping[str, Any]) -> BatchFeature:
        return BatchFeature({**other, **self})

    def copy(self) -> BatchFeature:
        """Return another mapping of the same tensors."""
        return BatchFeature(self.data)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Convert every entry in place; see the class for the types."""
        if tensor_type is None:
            return self
        if tensor_type not in ("pt", "np"):
            raise ConfigError(
                f"return_tensors={tensor_type!r} is not supported; use 'pt' (torch), 'np' (numpy) or None."
            )
        for name, value in self.data.items():
            array = _to_array(name, value)
            self.data[name] = torch.from_numpy(array) if tensor_type == "pt" else array
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move every tensor to a device, and cast the floating ones to a dtype.

        Parameters
        ----------
        *args, **kwargs
            As for `torch.Tensor.to`: a device, a dtype, or both. Token ids and masks keep their dtype.

        Returns
        -------
        BatchFeature
            The same object.

        Raises
        ------
        CapacityError
            If this machine does not have the device.
        """
        device, dtype = parse_to(args, kwargs)
        for name, value in self.data.items():
            if isinstance(value, torch.Tensor):
                self.data[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return self


def _to_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value
    lengths = {len(row) for row in value if isinstance(row, list | tuple)}
    if len(lengths) > 1:
        raise PromptError(
            f"{name} has rows of {len(lengths)} different lengths ({min(lengths)} to {max(lengths)}), which no "
            "tensor can hold. Pass padding=True, or return_tensors=None for lists."
        )
    return np.asarray(value)
