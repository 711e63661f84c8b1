"""Results of a model call: read by attribute, by name or by position, as in transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llavakit.core.errors import UnsupportedAttributeError

__all__ = ["ModelOutput"]


# What transformers' outputs have and these have not; completes "this output has no ...: ".
_MISSING = {
    "past_key_values": "the key-value cache belongs to the engine. Use generate(), which reuses it by itself",
    "last_hidden_state": "hidden states are not handed out",
    "sequences_scores": "scores of beams are not handed out",
    "beam_indices": "they are not kept",
}


class ModelOutput(Mapping[str, Any]):
    """Named results in order; those that are None are attributes but not entries.

    Raises
    ------
    UnsupportedAttributeError
        For a name that the output does not have.

    Examples
    --------
    >>> out = ModelOutput(loss=None, logits=3)
    >>> out.logits, out["logits"], out[0], out.loss, list(out)
    (3, 3, 3, None, ['logits'])
    """

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name != "_values" and name in self._values:
            return self._values[name]
        reason = f": {_MISSING[name]}." if name in _MISSING else "."
        raise UnsupportedAttributeError(f"this output has no {name!r}{reason}", name=name)

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, int | slice):
            return self.to_tuple()[key]
        if self._values.get(key) is None:
            raise KeyError(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in self._values.items() if value is not None)

    def __len__(self) -> int:
        return sum(value is not None for value in self._values.values())

    def __repr__(self) -> str:
        return f"ModelOutput({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the entries without their names."""
        return tuple(self.values())
