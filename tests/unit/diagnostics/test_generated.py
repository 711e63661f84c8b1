"""Generated inputs: the same for the same seed, and as varied as they claim."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from llavakit.diagnostics.generated import encode_jpeg, make_picture, make_pictures, make_questions


def test_the_same_seed_gives_the_same_inputs() -> None:
    for first, second in zip(make_pictures(12, seed=3), make_pictures(12, seed=3), strict=True):
        assert first.mode == second.mode
        assert np.array_equal(np.asarray(first), np.asarray(second))
    assert [question.text for question in make_questions(5)] == [question.text for question in make_questions(5)]
    assert encode_jpeg(make_picture(1)) != encode_jpeg(make_picture(2))


def test_pictures_have_all_modes_and_sizes() -> None:
    pictures = make_pictures(40)
    assert {picture.mode for picture in pictures} == {"RGB", "L", "RGBA", "P", "1", "CMYK", "LA"}
    assert {(1, 1), (1200, 900), (31, 7)} <= {picture.size for picture in pictures}


def test_questions_have_none_to_three_pictures() -> None:
    counts = [len(question.images) for question in make_questions(8)]
    assert counts == [1, 2, 3, 0, 1, 2, 3, 0]
    assert all(not question.images for question in make_questions(4, max_images=0))


def test_a_jpeg_file_comes_back_as_a_picture() -> None:
    with Image.open(io.BytesIO(encode_jpeg(make_picture(0, mode="RGBA")))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (640, 480))
