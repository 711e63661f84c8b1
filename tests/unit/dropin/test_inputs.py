"""Padded tensors to prompts, and conversations to their normal form."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llavakit.core.errors import PromptError
from llavakit.dropin.conversation import find_images, normalise
from llavakit.dropin.decoding import assemble
from llavakit.dropin.inputs import check_input_ids, infer_attention_mask, split_rows
from tests.tiny.random_model import make_config

CONFIG = make_config()  # 4 tokens per picture, pictures of 28 pixels
IMAGE = CONFIG.image_token_id


def test_rows_lose_their_padding_and_take_their_pictures() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 5], [1, IMAGE, IMAGE, IMAGE, IMAGE]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    pixels = torch.randn(1, 3, 28, 28)
    first, second = split_rows(ids, mask, pixels, CONFIG)
    assert first.token_ids == (1, 5)
    assert first.pixel_values is None
    assert second.token_ids == (1, *[IMAGE] * 4)
    assert len(second.image_keys) == 1
    assert torch.equal(torch.from_numpy(second.pixel_values), pixels)  # type: ignore[arg-type]


def test_key_of_a_picture_is_its_content() -> None:
    ids = torch.tensor([[1, *[IMAGE] * 12]])
    pixels = torch.randn(2, 3, 28, 28)
    (prompt,) = split_rows(ids, None, torch.cat((pixels, pixels[:1])), CONFIG)
    assert prompt.image_keys[0] == prompt.image_keys[2] != prompt.image_keys[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_pixels_are_kept_exactly(dtype: torch.dtype) -> None:
    pixels = torch.randn(1, 3, 28, 28).to(dtype)
    (prompt,) = split_rows(torch.tensor([[1, *[IMAGE] * 4]]), None, pixels, CONFIG)
    assert torch.equal(torch.from_numpy(prompt.pixel_values).to(dtype), pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2]], "got a list"),
        (torch.tensor([[1.0]]), "got a torch.float32 tensor"),
        (torch.tensor([1, 2]), r"must have shape \(batch, length\).*got \(2,\)"),
        (torch.zeros((1, 0), dtype=torch.int64), r"got \(1, 0\)"),
        (torch.tensor([[1, -200]]), "input_ids holds -200, but the vocabulary has 97"),
        (torch.tensor([[1, 98]]), "input_ids holds 98"),
    ],
)
def test_ids_that_are_none_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_input_ids(ids, CONFIG)


def test_row_without_tokens_and_wrong_mask_are_refused() -> None:
    ids = torch.tensor([[1, 2], [1, 2]])
    with pytest.raises(PromptError, match="row 1 of input_ids is hidden entirely"):
        split_rows(ids, torch.tensor([[1, 1], [0, 0]]), None, CONFIG)
    with pytest.raises(PromptError, match=r"attention_mask has shape \(1, 2\), but input_ids has \(2, 2\)"):
        split_rows(ids, torch.ones(1, 2), None, CONFIG)


def test_padding_that_is_an_end_token_is_not_hidden() -> None:
    ids = torch.tensor([[7, 7, 1]])
    assert infer_attention_mask(ids, pad_token_id=7, eos_token_ids=(2,)).tolist() == [[0, 0, 1]]
    assert infer_attention_mask(ids, pad_token_id=7, eos_token_ids=(7,)).tolist() == [[1, 1, 1]]
    assert infer_attention_mask(ids, pad_token_id=None, eos_token_ids=()).tolist() == [[1, 1, 1]]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), width=st.integers(1, 4))
def test_assembled_rows_hold_prompt_answer_and_filler(lengths: list[int], width: int) -> None:
    ids = torch.arange(len(lengths) * width).reshape(len(lengths), width)
    answers = [list(range(100, 100 + length)) for length in lengths]
    output = assemble(ids, answers, fill_id=-7)
    assert output.shape == (len(lengths), width + max(lengths))
    for row, prompt, answer in zip(output.tolist(), ids.tolist(), answers, strict=True):
        assert row == prompt + answer + [-7] * (max(lengths) - len(answer))


def test_conversation_is_copied_and_none_entries_are_dropped() -> None:
    chat = [{"role": "user", "content": ["Hi", {"type": "image", "url": "a.png"}], "name": None}]
    assert normalise(chat) == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image", "url": "a.png"}]}
    ]
    assert chat[0]["name"] is None


def test_sources_are_found_in_order() -> None:
    data = base64.b64encode(b"pixels").decode()
    blocks = [
        {"type": "image", "path": "a"},
        {"type": "image"},
        {"type": "image", "base64": data},
        {"type": "image", "image": 3},
    ]
    assert find_images(normalise([{"role": "user", "content": blocks}])) == ["a", b"pixels", 3]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("What?", "must be a list of messages"),
        ([], "must be a list of messages"),
        ([{"role": "user"}], "must be a list of messages"),
        ([{"role": "user", "content": 3}], "content must be a string or a list of blocks, got int"),
        ([{"role": "user", "content": [3]}], "a content block must be a dict"),
        ([{"role": "user", "content": [{"type": "video", "path": "v"}]}], "blocks of type 'video' are not supported"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must have a string under 'text'"),
    ],
)
def test_malformed_conversation_is_refused(chat: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        normalise(chat)
