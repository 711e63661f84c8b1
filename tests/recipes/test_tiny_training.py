"""Tokens, labels, and a run that is killed and resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib", reason="the recipe draws with matplotlib's fonts: pip install 'llavakit[recipes]'")

from llavakit.conversion.chat_templates import FOLDER_TEMPLATES
from llavakit.model.layers import apply_rotary
from recipes.tiny import train
from recipes.tiny.conversations import SYSTEM, encode
from recipes.tiny.grounding import (
    Gaze,
    find_meant,
    find_mentions,
    gaze_at_all,
    gaze_at_patches,
    gaze_at_tokens,
)
from recipes.tiny.muon import Muon, orthogonalize
from recipes.tiny.scenes import Shape, make_scene
from recipes.tiny.settings import Budget, Stage, llava_config
from recipes.tiny.vocabulary import IGNORE, Vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train.load_vocabulary(folder)
    return folder


def test_the_embedded_chat_template_is_the_recipes(repository: Path) -> None:
    stored = repository / "src" / "llavakit" / "assets" / "tiny" / "chat_template.jinja"
    assert stored.read_text(encoding="utf-8") == FOLDER_TEMPLATES["original"]


def test_only_answers_and_their_ends_are_learnt(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    encoded = encode(vocabulary, [("What color?", "Red"), ("Sure?", "Yes")], num_image_tokens=4)
    learnt = [label for label in encoded.labels if label != IGNORE]
    assert vocabulary.decode(learnt) == "Red Yes"
    assert learnt.count(vocabulary.eos_id) == 2
    assert encoded.ids.count(vocabulary.image_id) == 4
    assert all(label in (IGNORE, token_id) for label, token_id in zip(encoded.labels, encoded.ids, strict=True))


def test_the_picture_stands_between_two_lone_spaces(folder: Path) -> None:
    """Source: the ids around the image that LLaVA-1.5 was trained with (a lone space piece on both sides)."""
    vocabulary = Vocabulary(folder / "tokenizer.json")
    ids = encode(vocabulary, [("Hi", "Hello")], num_image_tokens=2).ids
    first = ids.index(vocabulary.image_id)
    space = vocabulary.encode("")
    lone = vocabulary.encode("\n")[0]
    assert space == []
    assert ids[first - 1] == lone
    assert ids[first + 2] == lone
    assert ids[: first - 1] == [vocabulary.bos_id, *vocabulary.encode(f"{SYSTEM} USER: ")[:-1]]


def test_only_phrases_that_mean_one_object_are_mentions() -> None:
    red = Shape("circle", "red", True, 0.1, 0.2, 0.1, 1.0, 0.0, (255, 0, 0))
    scene = replace(make_scene("train", 0), shapes=(red, replace(red, color="blue", x=0.9), replace(red, shape="star")))

    def ends(text: str) -> list[tuple[str, float]]:
        return [(text[: mention.end], mention.x) for mention in find_mentions(text, scene)]

    assert ends("Where is the blue circle?") == [("Where is the blue circle", pytest.approx(0.8))]
    assert ends("Is the star red?") == [("Is the star", pytest.approx(-0.8))]
    assert ends("Where is the circle?") == []  # there are two
    assert ends("Where is the green circle?") == []
    assert ends("How many circles are there?") == []


def test_mentions_end_at_the_last_token_of_a_phrase(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    star = Shape("star", "red", True, 0.25, 0.5, 0.1, 1.0, 0.0, (255, 0, 0))
    scene = replace(make_scene("train", 0), shapes=(star,))
    turns = [("Where is the red star?", "The red star is at the left."), ("Sure?", "The star, yes.")]
    encoded = encode(vocabulary, turns, num_image_tokens=4, scene=scene)
    assert [vocabulary.decode([encoded.ids[position]]).strip() for position, _, _ in encoded.places] == ["star"] * 3
    assert {place[1:] for place in encoded.places} == {(-0.5, 0.0)}


def test_a_question_about_two_objects_has_a_gap_before_its_answer(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    star = Shape("star", "red", True, 0.25, 0.5, 0.1, 1.0, 0.0, (255, 0, 0))
    scene = replace(make_scene("train", 0), shapes=(star, replace(star, shape="ring", x=0.75)))
    turns = [("Is the star above or below the ring?", "Above"), ("Where is the star?", "Left")]
    encoded = encode(vocabulary, turns, num_image_tokens=4, scene=scene)
    ((position, *gap),) = encoded.gaps
    assert gap == [-1.0, 0.0]
    assert encoded.labels[position] == IGNORE
    assert encoded.labels[position + 1] != IGNORE


def test_words_on_signs_are_spelled(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    assert len(vocabulary.encode('"ROBOT"')) == 1 + 1 + 5 + 1


class _KilledError(Exception):
    pass


def _micro_trainer(folder: Path, tokenizer_file: Path, stop_after: int | None) -> train.Trainer:
    """A tiny architecture; with ``stop_after``, the run dies at that checkpoint."""
    stage = Stage(num_steps=4, batch_size=2, peak_lr=1e-3, num_warmup_steps=1)
    folder.mkdir(exist_ok=True)
    shutil.copy(tokenizer_file, folder)
    vocabulary = train.load_vocabulary(folder)
    config = llava_config(vocab_size=-(-vocabulary.size // 64) * 64, image_token_id=vocabulary.image_id,
                          pad_token_id=vocabulary.pad_id)  # fmt: skip
    config = replace(
        config,
        text_config=replace(config.text_config, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                            num_attention_heads=2, num_key_value_heads=2, head_dim=8),
        vision_config=replace(config.vision_config, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                              num_attention_heads=2),
    )  # fmt: skip
    tuning = replace(stage, peak_lr_muon=1e-3)
    budget = Budget(vision=stage, reading=stage, seeing=stage, alignment=stage, instruction=tuning)
    trainer = train.Trainer(folder, budget, config=config)
    if stop_after is not None:
        save, count = trainer._save, [0]

        def save_and_die(*args: object) -> None:
            save(*args)  # type: ignore[arg-type]
            count[0] += 1
            if count[0] == stop_after:
                raise _KilledError

        trainer._save = save_and_die  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("stop_after", [2, 6, 11, 15, 19])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(train, "_SAVE_EVERY_S", -1.0)  # a checkpoint after every step
    tokenizer_file = folder / "tokenizer.json"
    whole = _micro_trainer(tmp_path / "whole", tokenizer_file, None)
    whole.run()
    with pytest.raises(_KilledError):
        _micro_trainer(tmp_path / "killed", tokenizer_file, stop_after).run()
    resumed = _micro_trainer(tmp_path / "killed", tokenizer_file, None)
    resumed.run()
    state = resumed.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_finished_model_practises_on_from_its_own_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAVE_EVERY_S", -1.0)
    finished = tmp_path / "finished"
    trainer = _micro_trainer(tmp_path / "first", folder / "tokenizer.json", None)
    train.export(trainer.model, tmp_path / "first" / "tokenizer.json", finished)

    longer = _micro_trainer(tmp_path / "longer", folder / "tokenizer.json", None)
    stage = replace(longer.budget.instruction, num_steps=2)
    longer.prolong(finished, stage, first_batch=50)
    state = longer.model.state_dict()
    for name, tensor in trainer.model.state_dict().items():
        is_tuned = not name.startswith("vision_tower.")
        start = tensor.half().float()
        assert torch.allclose(state[name], start, atol=0.05), name
        if not is_tuned:
            assert torch.equal(state[name], start), name
    assert not torch.equal(state["lm_head.weight"], trainer.model.state_dict()["lm_head.weight"].half().float())
    assert (tmp_path / "longer" / "prolonged.pt").is_file()


def test_gaze_is_where_the_attention_of_a_head_falls() -> None:
    """Beside the plain softmax of queries and keys, over what comes before."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 5, 2 * 8), torch.randn(2, 5, 2 * 8)
    angles = torch.arange(5)[None, None, :, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    angles = torch.cat((angles, angles), -1)
    gaze = Gaze(query, key, (angles.cos(), angles.sin()), head_dim=8)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 3])
    found = gaze.log_weights(rows, positions, head=1).exp()
    for idx, (row, position) in enumerate(zip(rows, positions, strict=True)):
        turned = [
            apply_rotary(part[row : row + 1, :, None, 8:].transpose(1, 2), angles.cos(), angles.sin())[0, 0]
            for part in (query, key)
        ]
        scores = turned[1][: position + 1] @ turned[0][position] / 8**0.5
        torch.testing.assert_close(found[idx, : position + 1], scores.softmax(-1))
        assert not found[idx, position + 1 :].any()


def test_a_gaze_at_the_right_patch_costs_nothing() -> None:
    weights = torch.full((1, 20), -torch.inf)
    weights[0, 2 + 4 * 1 + 3] = 0.0  # second row, last column of a 4 x 4 grid that starts at position 2
    starts = torch.tensor([2])
    assert gaze_at_patches(weights, starts, torch.tensor([[0.75, -0.25]]), side=4).item() == 0
    assert gaze_at_patches(weights, starts, torch.tensor([[-0.75, -0.25]]), side=4).item() == torch.inf
    assert gaze_at_tokens(weights, torch.tensor([9])).item() == 0


def test_compared_phrases_are_those_of_the_gap(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    star = Shape("star", "red", True, 0.25, 0.5, 0.1, 1.0, 0.0, (255, 0, 0))
    scene = replace(make_scene("train", 0), shapes=(star, replace(star, shape="ring", x=0.75)))
    encoded = encode(vocabulary, [("Is the star above or below the ring?", "Above")], num_image_tokens=4, scene=scene)
    ((first, second),) = encoded.compared
    assert [vocabulary.decode([encoded.ids[idx]]).strip() for idx in (first, second)] == ["star", "ring"]


def test_the_objects_that_a_question_means() -> None:
    red = Shape("circle", "red", True, 0.1, 0.2, 0.1, 1.0, 0.0, (255, 0, 0))
    scene = replace(
        make_scene("train", 0), shapes=(red, replace(red, color="blue", x=0.9), replace(red, shape="cross"))
    )

    def count(question: str) -> int | None:
        meant = find_meant(question, scene)
        return None if meant is None else len(meant)

    assert count("How many circles are there?") == 2
    assert count("How many red objects do you see?") == 2
    assert count("What is the number of shapes?") == 3
    assert count("How many crosses are there?") == 1
    assert count("Is there a green star?") == 0
    assert count("What color is the small circle?") == 0
    assert count("What shape is the blue object?") == 1  # "shape" is what is asked for, and means nothing
    assert count("Is the red circle above the blue circle?") is None
    assert count("Describe the picture.") is None
    ((x, y),) = find_meant("Where is the blue circle?", scene) or [(0.0, 0.0)]
    square = max(scene.width, scene.height)
    assert (x, y) == (pytest.approx(0.8 * scene.width / square), pytest.approx(-0.6 * scene.height / square))


def test_equal_shares_for_the_first_token_and_every_object_cost_nothing() -> None:
    """Two questions about a 4 x 4 grid that starts at position 1: one means two objects, the other none."""
    weights = torch.zeros((2, 20))
    weights[0, [0, 1 + 0, 1 + 15]] = 1 / 3
    weights[1, 0] = 1.0
    starts, questions = torch.tensor([1, 1]), torch.tensor([0, 0])
    corners = torch.tensor([[-0.75, -0.75], [0.75, 0.75]])
    divergence, error = gaze_at_all((weights + 1e-12).log(), starts, questions, corners, side=4)
    assert divergence.item() == pytest.approx(0, abs=1e-5)
    assert error == pytest.approx(0, abs=1e-4)
    weights[0, [0, 1, 16]] = torch.tensor([1 / 2, 1 / 2, 1e-3])  # as if there were one
    divergence, error = gaze_at_all((weights + 1e-12).log(), starts, questions, corners, side=4)
    assert divergence.item() > 0.5
    assert error == pytest.approx(0.5, abs=1e-2)


def test_tallies_stand_before_the_answer(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    star = Shape("star", "red", True, 0.25, 0.5, 0.1, 1.0, 0.0, (255, 0, 0))
    scene = replace(make_scene("train", 0), shapes=(star, replace(star, x=0.75)))
    encoded = encode(vocabulary, [("How many stars are there?", "2")], num_image_tokens=4, scene=scene)
    ((position, places),) = encoded.tallies
    assert len(places) == 2
    assert vocabulary.decode([i for i in encoded.labels[position + 1 :] if i != vocabulary.eos_id]).strip() == "2"
    assert encoded.labels[position] == -100


def test_muon_is_torchs() -> None:
    """Bit for bit in the dtype that torch's iterates in, for wide, square and tall matrices."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((8, 24), (16, 16), (24, 8))]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    own = Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        own.step()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(own.state[one]["momentum_buffer"], reference.state[other]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    """Between the iteration's own limits, 0.68 and 1.14, in float32 as in float64."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonalize(matrix, dtype=torch.float64)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    # Each of fifteen products adds a rounding of sums of 64, which the next amplify at most by the slope at zero.
    torch.testing.assert_close(orthogonalize(matrix, dtype=torch.float32).double(), found, rtol=0, atol=1e-4)
