"""Pictures that were prepared before: every turn of a conversation brings its pictures again."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llavakit.core.bounded_cache import BoundedCache
from llavakit.processing.image import ImageProcessing

__all__ = ["PixelCache", "PreparedPicture"]


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture as the vision tower takes it.

    Attributes
    ----------
    pixels : float32 array of shape (3, S, S)
    key : str
        SHA-256 of the pixels.
    """

    pixels: np.ndarray
    key: str

    @property
    def nbytes(self) -> int:
        """Of the pixels."""
        return int(self.pixels.nbytes)


class PixelCache:
    """Prepared pictures by the bytes they were sent as, under one policy; threads may share it.

    Parameters
    ----------
    max_bytes : int
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._pictures: BoundedCache[Hashable, PreparedPicture] = BoundedCache(max_bytes=max_bytes)
        self.num_hits = 0

    @property
    def num_bytes(self) -> int:
        """Of all pictures."""
        return self._pictures.num_bytes

    @property
    def max_bytes(self) -> int:
        """Of all pictures, at most."""
        return self._pictures.max_bytes

    @staticmethod
    def key_of(source: Any, processing: ImageProcessing, owner: str) -> Hashable | None:
        """Return the key of a source that holds its own bytes; None for a path or address, whose content may change.

        Parameters
        ----------
        source : bytes, data URI or anything else
        processing : ImageProcessing
        owner : str
            Whose picture it is, where what is kept for one may not serve another.
        """
        is_uri = isinstance(source, str) and source[:5].lower() == "data:"
        if not is_uri and not isinstance(source, bytes):
            return None
        content = source.encode("utf-8", "surrogatepass") if is_uri else source
        return hashlib.sha256(content).digest(), is_uri, processing, owner

    def find(self, key: Hashable | None) -> PreparedPicture | None:
        """Return a picture that was prepared before."""
        found = None if key is None else self._pictures.get(key)
        self.num_hits += found is not None
        return found

    def put(self, key: Hashable | None, picture: PreparedPicture) -> None:
        """Keep a prepared picture."""
        if key is not None:
            self._pictures.put(key, picture)
