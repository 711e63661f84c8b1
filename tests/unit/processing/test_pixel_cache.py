"""Prepared pictures are found by the bytes they were sent as, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llavakit.processing.image import ImageProcessing
from llavakit.processing.pixel_cache import PixelCache, PreparedPicture

_PROCESSING = ImageProcessing(
    mode="pad", image_size=4, shortest_edge=4, resample=3, rescale_factor=1 / 255, mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5), is_exif_turned=True, alpha="drop",
)  # fmt: skip
_PICTURE = PreparedPicture(np.zeros((3, 4, 4), np.float32), "a")


def test_what_was_put_is_found_again() -> None:
    cache = PixelCache(max_bytes=1000)
    key = cache.key_of(b"picture", _PROCESSING, "")
    assert cache.find(key) is None
    cache.put(key, _PICTURE)
    assert cache.find(cache.key_of(b"picture", _PROCESSING, "")) is _PICTURE
    assert (cache.num_hits, cache.num_bytes, cache.max_bytes) == (1, _PICTURE.pixels.nbytes, 1000)


def test_other_bytes_processing_and_owners_do_not_meet() -> None:
    keys = {
        PixelCache.key_of(source, processing, owner)
        for source in (b"data:,one", b"two", "data:,one", "DATA:,one")
        for processing in (_PROCESSING, replace(_PROCESSING, mode="crop"))
        for owner in ("", "somebody")
    }
    assert len(keys) == 4 * 2 * 2


@pytest.mark.parametrize("source", ["https://example.org/a.png", "a.png", Path("a.png"), np.zeros((2, 2, 3))])
def test_what_may_change_has_no_key(source: object) -> None:
    cache = PixelCache(max_bytes=1000)
    key = cache.key_of(source, _PROCESSING, "")
    assert key is None
    cache.put(key, _PICTURE)
    assert cache.find(key) is None
    assert (cache.num_bytes, cache.num_hits) == (0, 0)
