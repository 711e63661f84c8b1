"""Features of pictures: from memory, from the disk, or computed a few layers at a time.

A picture takes the vision tower seconds on a CPU. Between its layers the engine can give everybody their next token.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llavakit.core.bounded_cache import BoundedCache
from llavakit.engine.disk_store import DiskStore
from llavakit.model.llava import Llava
from llavakit.scheduling.blocks import root_digest

__all__ = ["PictureEncoder", "PictureKey"]


class PictureKey(NamedTuple):
    """What features are found by: whose they are, and the picture's digest."""

    tenant: str
    digest: str


@dataclass
class _Progress:
    """A picture on its way through the tower: what the layers so far gave."""

    key: PictureKey
    states: Tensor
    num_layers_done: int = 0


class PictureEncoder:
    """The vision tower and what it gave before.

    Parameters
    ----------
    model : Llava
    max_bytes : int
        Of features in memory.
    disk : DiskStore, optional
        Where features outlive the process.
    fingerprint : str
        Of the model's files: what else than the picture decides its features.
    """

    def __init__(self, model: Llava, *, max_bytes: int, disk: DiskStore | None, fingerprint: str) -> None:
        self._model = model
        self._features: BoundedCache[PictureKey, Tensor] = BoundedCache(max_bytes=max_bytes)
        self._disk = disk
        self._fingerprint = fingerprint
        self._halfway: _Progress | None = None
        self.num_encoded = 0
        self.num_hits = 0

    @property
    def num_bytes(self) -> int:
        """Of features in memory."""
        return self._features.num_bytes

    @property
    def max_bytes(self) -> int:
        """Of features in memory, at most."""
        return self._features.max_bytes

    def find(self, key: PictureKey) -> Tensor | None:
        """Return the features (num_image_tokens, D) of a picture that this tenant has shown before."""
        features = self._features.get(key)
        if features is None and self._disk is not None and (data := self._disk.get(self._name(key))) is not None:
            features = self._from_bytes(data)
            self._features.put(key, features)
        self.num_hits += features is not None
        return features

    def advance(self, key: PictureKey, pixels: np.ndarray, *, slice_s: float | None) -> Tensor | None:
        """Go on encoding a picture for about ``slice_s`` seconds, to its end with None; return the features at the end.

        Parameters
        ----------
        key : PictureKey
        pixels : float32 array of shape (3, S, S)
            Normalised.
        """
        started = time.perf_counter()
        if self._halfway is None or self._halfway.key != key:
            self._halfway = self._begin(key, pixels)
        progress = self._halfway
        while self._pass_layer(progress):
            if slice_s is not None and time.perf_counter() - started >= slice_s:
                return None
        self._halfway = None
        return self._finish(progress)

    def by_layers(self, key: PictureKey, pixels: np.ndarray) -> Generator[None, None, Tensor]:
        """Encode a picture beside the one that `advance` is at: yield after every layer, and return the features."""
        progress = self._begin(key, pixels)
        while self._pass_layer(progress):
            yield
        return self._finish(progress)

    def _begin(self, key: PictureKey, pixels: np.ndarray) -> _Progress:
        batch = torch.from_numpy(pixels[None]).to(self._model.device)
        return _Progress(key, self._model.vision_tower.begin(batch))

    def _pass_layer(self, progress: _Progress) -> bool:
        """Compute the next layer; return whether more of them are left."""
        layers = self._model.vision_tower.encoder.layers
        progress.states = layers[progress.num_layers_done](progress.states)
        progress.num_layers_done += 1
        return progress.num_layers_done < len(layers)

    def _finish(self, progress: _Progress) -> Tensor:
        states = self._model.vision_tower.finish(progress.states)
        features: Tensor = self._model.multi_modal_projector(states)[0]
        self.num_encoded += 1
        self._features.put(progress.key, features)
        if self._disk is not None:
            self._disk.put(self._name(progress.key), features.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return features

    def _from_bytes(self, data: bytes) -> Tensor:
        width = self._model.config.text_config.hidden_size
        dtype = self._model.multi_modal_projector.linear_2.bias.dtype
        return torch.frombuffer(bytearray(data), dtype=dtype).view(-1, width).to(self._model.device)

    def _name(self, key: PictureKey) -> str:
        root = root_digest(self._fingerprint, str(self._model.dtype), key.tenant)
        return f"{root.hex()[:16]}-{key.digest}"
