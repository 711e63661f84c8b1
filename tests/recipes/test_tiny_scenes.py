"""The recipe's data: reproducible, truthful, and never shared between training and evaluation."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the recipe draws with matplotlib's fonts: pip install 'llavakit[recipes]'")

from recipes.tiny.dense_labels import PATCH_TARGETS, dense_labels
from recipes.tiny.questions import SKILLS, ask, describe
from recipes.tiny.scenes import COLOR_NAMES, HELD_OUT_PAIRS, SHAPES, draw_scene, make_scene, scene_rng
from recipes.tiny.words import HELD_OUT_WORDS, TRAINING_WORDS


def test_the_same_scene_is_drawn_twice_alike() -> None:
    for index in range(30):
        first, second = (np.asarray(draw_scene(make_scene("train", index))) for _ in range(2))
        assert np.array_equal(first, second)


def test_splits_draw_from_different_streams() -> None:
    draws = {split: scene_rng(split, 5).integers(1 << 60) for split in ("train", "eval", "compositional")}
    assert len(set(draws.values())) == 3


def test_training_never_shows_held_out_pairs_or_words() -> None:
    assert not set(HELD_OUT_WORDS) & set(TRAINING_WORDS)
    for index in range(2000):
        scene = make_scene("train", index)
        assert not {(shape.color, shape.shape) for shape in scene.shapes} & HELD_OUT_PAIRS
        assert scene.sign is None or scene.sign.word in TRAINING_WORDS


def test_the_compositional_split_shows_only_them() -> None:
    scenes = [make_scene("compositional", index) for index in range(300)]
    loose = [scene for scene in scenes if scene.kind in ("shapes", "sign")]
    assert all({(s.color, s.shape) for s in scene.shapes} <= HELD_OUT_PAIRS for scene in loose)
    assert all(scene.sign.word in HELD_OUT_WORDS for scene in scenes if scene.sign is not None)


def test_the_pixel_at_an_objects_middle_has_its_colour() -> None:
    num_checked = 0
    for index in range(400):
        scene = make_scene("train", index)
        if scene.jpeg_quality is not None:
            continue
        pixels = np.asarray(draw_scene(scene)).astype(int)
        for shape in scene.shapes:
            if shape.shape == "ring" or shape.radius * min(scene.width, scene.height) < 5:
                continue
            x, y = int(shape.x * scene.width), int(shape.y * scene.height)
            assert np.abs(pixels[y, x] - shape.rgb).max() <= 2
            num_checked += 1
    assert num_checked > 200


def test_dense_labels_put_every_centre_where_the_object_is() -> None:
    names = list(PATCH_TARGETS)
    for index in range(200):
        scene = make_scene("train", index)
        grid = dense_labels(scene, image_size=112, patch_size=14).patches
        centers = np.flatnonzero(grid[names.index("center")])
        kinds, colors = grid[names.index("shape")], grid[names.index("color")]
        found = {(SHAPES[kinds[p] - 1], COLOR_NAMES[colors[p] - 1]) for p in centers}
        assert found <= {(shape.shape, shape.color) for shape in scene.shapes}
        assert bool(found) == bool(scene.shapes)
        places = list(zip(grid[names.index("row")], grid[names.index("column")], strict=True))
        assert places == [(1 + p // 8, 1 + p % 8) for p in range(64)]


def test_counts_and_existence_agree_with_the_scene() -> None:
    num_checked = 0
    for index in range(600):
        scene = make_scene("eval", index)
        question = ask(scene, np.random.default_rng(index), skill="count")
        if question is None or " objects " in question.text or " shapes " in question.text:
            continue
        matching = [
            shape for shape in scene.shapes
            if (shape.shape in question.text or f"{shape.shape}es" in question.text)
            and (shape.color in question.text or not any(color in question.text for color in COLOR_NAMES))
        ]  # fmt: skip
        if "object" in question.text or "shape" in question.text:
            continue
        assert question.short == str(len(matching)), (question, scene)
        num_checked += 1
    assert num_checked > 50


def test_tallies_agree_with_the_scene() -> None:
    ways = set()
    for index in range(300):
        scene = make_scene("eval", index)
        question = ask(scene, np.random.default_rng(index), skill="tally")
        if question is None:
            continue
        words = question.text.replace("crosses", "cross").rstrip("?").split()
        kinds = {word.removesuffix("s") if word.removesuffix("s") in SHAPES else word for word in words}
        has_color, has_shape = bool(kinds & set(COLOR_NAMES)), bool(kinds & set(SHAPES))
        assert has_color or has_shape
        matching = [
            shape
            for shape in scene.shapes
            if (shape.color in kinds or not has_color) and (shape.shape in kinds or not has_shape)
        ]
        assert question.short == str(len(matching)), (question, scene)
        ways.add((has_color, has_shape))
    assert len(ways) == 3


def test_every_skill_can_be_asked_and_is_not_settled_by_one_answer() -> None:
    for skill in SKILLS:
        scenes = [(idx, make_scene("eval", idx)) for idx in range(400)]
        questions = (
            ask(scene, np.random.default_rng(idx), skill=skill)
            for idx, scene in scenes
            if skill != "word" or scene.sign is not None
        )
        answers = [question.short for question in questions if question is not None and question.skill == skill]
        assert len(answers) > 20
        most_common = max(answers.count(answer) for answer in set(answers))
        # Tallies are practised and not examined: what they are to teach is to count beyond one.
        assert most_common / len(answers) < 0.62 or skill in ("absent", "tally")


def test_a_description_names_everything() -> None:
    for index in range(100):
        scene = make_scene("eval", index)
        text = describe(scene)
        assert all(f"{shape.color} {shape.shape}" in text for shape in scene.shapes)
        assert scene.sign is None or f'"{scene.sign.word}"' in text
        assert all(f"{bar.color} bar of {bar.value}" in text for bar in scene.bars)
