"""What a loaded model takes, in which forms, and what it refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import llavakit
from llavakit.core.errors import CapacityError, ConfigError, LlavakitError, PromptError, SamplingError
from llavakit.core.types import FinishReason

QUESTION = "How many red circles are there?"


@pytest.fixture(scope="module")
def model() -> Any:
    return llavakit.load("llava:tiny", device="cpu")


@pytest.fixture(scope="module")
def picture(repository: Path) -> Path:
    return repository / "examples" / "shapes.png"


def test_none_and_neutral_forms_of_settings_are_their_defaults(model: Any) -> None:
    expected = model.chat(QUESTION, max_new_tokens=3).token_ids
    assert model.chat(QUESTION, max_new_tokens=3, stop=None, logit_bias=None).token_ids == expected
    assert model.chat(QUESTION, max_new_tokens=3, stop=[], logit_bias={}).token_ids == expected


@pytest.mark.parametrize("form", [dict, list, tuple, lambda pairs: [list(pair) for pair in pairs]])
def test_logit_bias_in_every_form(model: Any, form: Any) -> None:
    token_id = 100
    assert token_id not in model.chat(QUESTION, max_new_tokens=1).token_ids
    answer = model.chat(QUESTION, max_new_tokens=1, logit_bias=form([(token_id, 1000.0)]))
    assert answer.token_ids == (token_id,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_bias": 5}, r"logit_bias must be a tuple of \(token id, bias\), got 5"),
        ({"logit_bias": {"a": 1.0}}, "a token of logit_bias must be a whole number, got 'a'"),
        ({"logit_bias": [(1, 2, 3)]}, "logit_bias must be a tuple"),
        ({"stop": 5}, "stop must be a tuple of strings, got 5"),
        ({"sampling": {"max_new_tokens": 3}}, "sampling is a dict; pass llavakit.SamplingParams"),
        ({"max_new_token": 3}, "unknown sampling settings max_new_token"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        model.chat(QUESTION, **settings)


def test_min_new_tokens_holds_the_end_back(model: Any) -> None:
    short = model.chat(QUESTION, max_new_tokens=24)
    assert short.finish_reason is FinishReason.STOP
    least = len(short.token_ids) + 2
    longer = model.chat(QUESTION, max_new_tokens=least, min_new_tokens=least)
    assert len(longer.token_ids) == least
    assert longer.token_ids[: len(short.token_ids) - 1] == short.token_ids[:-1]


def test_prompts_and_pictures_may_come_from_generators(model: Any, picture: Path) -> None:
    expected = model.generate([QUESTION, QUESTION], images=[picture, None], max_new_tokens=3)
    lazily = model.generate((one for one in [QUESTION] * 2), images=(one for one in [picture, None]), max_new_tokens=3)
    assert [one.token_ids for one in lazily] == [one.token_ids for one in expected]
    alone = model.generate(QUESTION, images=(one for one in [picture]), max_new_tokens=3)
    assert alone[0].token_ids == expected[0].token_ids
    assert model.chat(QUESTION, images=(one for one in [picture]), max_new_tokens=3).token_ids == alone[0].token_ids


@pytest.mark.parametrize("kind", ["path", "name", "bytes", "opened", "file", "array"])
def test_one_picture_beside_several_prompts_is_refused(model: Any, picture: Path, kind: str) -> None:
    with Image.open(picture) as opened, picture.open("rb") as file:
        single = {
            "path": picture, "name": str(picture), "bytes": picture.read_bytes(), "opened": opened, "file": file,
            "array": np.asarray(opened),
        }[kind]  # fmt: skip
        with pytest.raises(PromptError, match=r"`images` is a single picture .* it needs one entry per prompt"):
            model.generate(["a", "b"], images=single)
        assert model.generate("a", images=single, max_new_tokens=1)[0].timings.num_images == 1


@pytest.mark.parametrize("prompts", [None, 5, {"role": "user", "content": "a"}])
def test_prompts_that_are_no_list_are_refused(model: Any, prompts: Any) -> None:
    with pytest.raises(
        PromptError, match=f"prompts must be a string or a list of prompts, got {type(prompts).__name__}"
    ):
        model.generate(prompts)


@pytest.mark.parametrize("num_read", [0, 1, 2])
def test_an_answer_whose_iterator_was_closed_is_cancelled(model: Any, num_read: int) -> None:
    stream = model.stream(QUESTION, max_new_tokens=8, ignore_eos=True)
    events = iter(stream)
    for _ in range(num_read):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert stream.result.finish_reason is FinishReason.CANCELLED
    assert len(stream.result.token_ids) == num_read


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copying_is_refused_with_advice(model: Any, copier: Any) -> None:
    with pytest.raises(ConfigError, match=r"neither copied nor pickled.*llavakit.load\('llava:tiny'\)"):
        copier(model)


@pytest.mark.parametrize("device", [1.5, ["cpu"], True, -1, "quantum"])
def test_device_that_is_none_is_refused(device: Any) -> None:
    with pytest.raises(ConfigError, match="is not known; use 'cpu'"):
        llavakit.load("llava:tiny", device=device)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Apple's GPU")
def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(CapacityError, match="'mps' needs Apple's GPU"):
        llavakit.load("llava:tiny", device="mps")


def test_names_of_other_kinds_are_refused(model: Any) -> None:
    for ask in (lambda: model.with_preset([]), lambda: llavakit.load("llava:tiny", dtype=[])):
        with pytest.raises(LlavakitError, match=r"\[\]"):
            ask()


def test_projector_changed_in_place_is_that_of_the_next_answer(picture: Path) -> None:
    changed, fresh = llavakit.load("llava:tiny", device="cpu"), llavakit.load("llava:tiny", device="cpu")
    before = changed.chat(QUESTION, images=[picture], max_new_tokens=8).token_ids
    with torch.no_grad():
        for one in (changed, fresh):
            for parameter in one.model.multi_modal_projector.parameters():
                parameter.zero_()
    after = changed.chat(QUESTION, images=[picture], max_new_tokens=8).token_ids
    assert after == fresh.chat(QUESTION, images=[picture], max_new_tokens=8).token_ids != before


def test_weights_go_with_the_last_name_for_the_model() -> None:
    gc.collect()
    gc.disable()
    try:
        loaded = llavakit.load("llava:tiny", device="cpu")
        loaded.chat(QUESTION, max_new_tokens=1)
        weight = weakref.ref(next(loaded.model.parameters()))
        del loaded
        assert weight() is None
    finally:
        gc.enable()
