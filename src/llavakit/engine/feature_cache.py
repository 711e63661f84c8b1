"""Picture features by content, so that no picture is encoded twice."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

__all__ = ["FeatureCache"]


class FeatureCache:
    """Least-recently-used store of image features, bounded in bytes.

    Keys are SHA-256 digests of the preprocessed pixels, so two presets of one picture never meet.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str) -> Tensor | None:
        """Return the features (num_image_tokens, D), or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, features: Tensor) -> None:
        """Store features, dropping the least recently used ones beyond the bound."""
        if key in self._entries:
            return
        self._entries[key] = features
        self._num_bytes += features.nbytes
        while self._num_bytes > self.max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._num_bytes -= dropped.nbytes

    @property
    def num_bytes(self) -> int:
        """Of all features."""
        return self._num_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
