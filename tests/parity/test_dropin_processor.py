"""Processor and tokenizer of the drop-in surface against transformers' on the same files."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import llavakit
from llavakit.core.errors import ConfigError, PromptError, UnsupportedAttributeError
from llavakit.dropin.decoding import AnchoredDecoder
from llavakit.dropin.tokenizer import LlavaTokenizer
from llavakit.processing.tokenizer import Tokenizer
from tests.tiny.dropin_pair import Pair, load_pair, make_picture

ONE = "USER: <image>\nWhat is this? ASSISTANT:"
TWO = "USER: <image>\n<image>\nWhich one is red? ASSISTANT:"
NONE = "USER: What is a circle? ASSISTANT:"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("processor"), seed=31)


def _assert_same(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        mine = ours[name]
        if name == "pixel_values" and isinstance(value, list):
            assert len(mine) == len(value)
            assert all(np.array_equal(left, right) for left, right in zip(mine, value, strict=True))
        elif isinstance(value, list):
            assert mine == value
        else:
            assert type(mine) is type(value)
            assert mine.dtype == value.dtype
            assert np.array_equal(np.asarray(mine), np.asarray(value))


@pytest.mark.parametrize(
    "options",
    [
        {"return_tensors": "pt", "padding": True},
        {"return_tensors": "np", "padding": "longest", "padding_side": "right"},
        {"return_tensors": "pt", "padding": "max_length", "max_length": 90},
        {"return_tensors": "pt", "padding": True, "pad_to_multiple_of": 16},
        {"padding": False},
        {"padding": True, "add_special_tokens": False},
        {"return_tensors": "pt", "padding": True, "return_mm_token_type_ids": True},
        {"padding": True, "text_kwargs": {"padding_side": "right"}},
    ],
)
def test_options_of_a_batch(pair: Pair, options: dict[str, Any]) -> None:
    pictures = [make_picture(seed) for seed in range(3)]
    arguments = {"images": pictures, "text": [ONE, NONE, TWO], **options}
    _assert_same(pair.processor(**arguments), pair.their_processor(**arguments))


def test_kinds_of_pictures(pair: Pair) -> None:
    picture = make_picture(1)
    array = np.asarray(picture)
    for images in (
        picture,
        [picture],
        [[picture]],
        array,
        [array],
        torch.from_numpy(array.transpose(2, 0, 1).copy()),
        picture.convert("L").convert("RGB"),
        picture.convert("RGBA"),
        picture.convert("P"),
    ):
        arguments = {"images": images, "text": ONE, "return_tensors": "pt"}
        _assert_same(pair.processor(**arguments), pair.their_processor(**arguments))


def test_transparent_picture_is_laid_on_white(pair: Pair) -> None:
    picture = make_picture(1)
    picture.putalpha(make_picture(2).convert("L"))
    arguments = {"images": picture, "text": ONE, "return_tensors": "pt"}
    _assert_same(pair.processor(**arguments), pair.their_processor(**arguments))


def test_pictures_or_text_alone(pair: Pair) -> None:
    for arguments in ({"images": make_picture(3)}, {"text": NONE}, {"text": [NONE, NONE]}):
        _assert_same(
            pair.processor(**arguments, return_tensors="pt"), pair.their_processor(**arguments, return_tensors="pt")
        )
        _assert_same(pair.processor(**arguments), pair.their_processor(**arguments))


def test_conversations_of_every_form(pair: Pair) -> None:
    picture, url = make_picture(4), {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    text = {"type": "text", "text": "What is this?"}
    conversations = [
        [{"role": "user", "content": [text, {"type": "image", "image": picture}]}],
        [{"role": "user", "content": [url, {"type": "image"}, text, {"type": "text", "text": "And that?"}]}],
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "image"}, text]},
            {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
            {"role": "user", "content": [{"type": "text", "text": "Red?"}]},
        ],
    ]
    for conversation in [*conversations, conversations]:
        for prompts in (True, False):
            arguments = {"conversation": conversation, "add_generation_prompt": prompts}
            ours = pair.processor.apply_chat_template(**arguments)
            assert ours == pair.their_processor.apply_chat_template(**arguments)


def test_tokenized_batch_of_conversations(pair: Pair) -> None:
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": make_picture(seed)}, {"type": "text", "text": text}]}]
        for seed, text in enumerate(["What?", "What is in the picture of the circle?"])
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    options["processor_kwargs"] = {"padding": True}
    ours = pair.processor.apply_chat_template(conversations, **options)
    _assert_same(ours, pair.their_processor.apply_chat_template(conversations, **options))
    options["return_dict"] = False
    ids = pair.processor.apply_chat_template(conversations, **options)
    assert torch.equal(ids, pair.their_processor.apply_chat_template(conversations, **options))


def test_plain_string_content_keeps_its_words(pair: Pair) -> None:
    chat = [{"role": "user", "content": "What is a circle?"}]
    assert pair.processor.apply_chat_template(chat, add_generation_prompt=True) == "USER: What is a circle? ASSISTANT:"
    assert chat == [{"role": "user", "content": "What is a circle?"}]


def test_last_message_can_be_gone_on_with(pair: Pair) -> None:
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red "}]},
    ]
    for template in (None, "{% for m in messages %}[{{ m['content'][0]['text'] | trim }}]{% endfor %}"):
        arguments = {"conversation": chat, "continue_final_message": True, "chat_template": template}
        ours = pair.processor.apply_chat_template(**arguments)
        assert ours == pair.their_processor.apply_chat_template(**arguments)


def test_template_in_each_file_that_may_hold_it(pair: Pair, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    template = "{{ messages[0]['content'][0]['text'] }}-{{ eos_token }}{{ bos_token }}"
    places = {
        "chat_template.jinja": template,
        "chat_template.json": json.dumps({"chat_template": template}),
        "processor_config.json": json.dumps(
            {"processor_class": "LlavaProcessor", "patch_size": 14, "chat_template": template}
        ),
    }
    for name, content in places.items():
        folder = tmp_path / name.replace(".", "_")
        shutil.copytree(pair.folder, folder)
        (folder / "chat_template.json").unlink()
        (folder / name).write_text(content)
        processor = llavakit.AutoProcessor.from_pretrained(folder)
        assert processor.apply_chat_template(chat) == "What?-</s><s>"
        theirs = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
        assert theirs.apply_chat_template(chat) == "What?-</s><s>"
    (folder / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        llavakit.AutoProcessor.from_pretrained(folder).apply_chat_template(chat)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.from_regex(r"( |a|<image>|</s>|<s>|<pad>|\n|USER:|é|😀){0,12}", fullmatch=True))
def test_ids_and_text_of_any_string(pair: Pair, text: str) -> None:
    ours, theirs = pair.processor.tokenizer, pair.their_processor.tokenizer
    ids = theirs(text)["input_ids"]
    assert ours(text)["input_ids"] == ids
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_decoding_of_rows_tensors_and_numbers(pair: Pair) -> None:
    ours, theirs = pair.processor, pair.their_processor
    inputs = ours(images=[make_picture(1)], text=[ONE, NONE], padding=True, return_tensors="pt")
    ids = inputs["input_ids"]
    for value in (ids, ids[0], ids.tolist(), ids.numpy(), ids[0].tolist()):
        assert ours.decode(value) == theirs.decode(value)
        assert ours.post_process_image_text_to_text(value) == theirs.post_process_image_text_to_text(value)
    assert ours.batch_decode(ids, skip_special_tokens=True) == theirs.batch_decode(ids, skip_special_tokens=True)
    assert ours.decode(ids[0][2:], skip_special_tokens=True).startswith(" ") is False
    spaced = ours.tokenizer("Is it ? it 's , a n't")["input_ids"]
    for clean in (True, False, None):
        options = {"clean_up_tokenization_spaces": clean}
        assert ours.decode(spaced, **options) == theirs.decode(spaced, **options)


def test_special_tokens_of_the_tokenizer(pair: Pair) -> None:
    ours, theirs = pair.processor.tokenizer, pair.their_processor.tokenizer
    for name in ("bos_token", "eos_token", "pad_token", "bos_token_id", "eos_token_id", "pad_token_id", "padding_side"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    for name in ("vocab_size", "unk_token", "unk_token_id", "all_special_tokens", "model_max_length", "is_fast",
                 "add_eos_token", "truncation_side"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert str(ours.name_or_path) == str(theirs.name_or_path)


def test_tokens_and_ids_of_the_vocabulary(pair: Pair) -> None:
    ours, theirs = pair.processor.tokenizer, pair.their_processor.tokenizer
    assert ours.get_vocab() == theirs.get_vocab()
    for ids in ([1, 300, 2], torch.tensor([1, 377]), 300):
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens([1, 300, 378, 2], skip_special_tokens=True) == theirs.convert_ids_to_tokens(
        [1, 300, 378, 2], skip_special_tokens=True
    )
    for tokens in ("<image>", "no such token", ["<image>", "</s>", "a", "no such token"]):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.tokenize(ONE) == theirs.tokenize(ONE)
    assert ours.convert_tokens_to_string(["\u2581a", "b"]) == theirs.convert_tokens_to_string(["\u2581a", "b"])


def test_encoding_by_name_and_padding_afterwards(pair: Pair) -> None:
    ours, theirs = pair.processor.tokenizer, pair.their_processor.tokenizer
    assert torch.equal(ours.encode(NONE, return_tensors="pt"), theirs.encode(NONE, return_tensors="pt"))
    for options in ({}, {"truncation": True, "max_length": 4}, {"add_special_tokens": False}):
        assert ours.encode(NONE, **options) == theirs.encode(NONE, **options)
    for rows in ({"input_ids": [[5, 6], [7]]}, [{"input_ids": [5, 6]}, {"input_ids": [7], "attention_mask": [1]}][:1]):
        _assert_same(ours.pad(rows, return_tensors="pt"), theirs.pad(rows, return_tensors="pt"))
    masked = {"input_ids": [[5, 6], [7]], "attention_mask": [[0, 1], [1]]}
    options = {"padding": "max_length", "max_length": 4, "padding_side": "right"}
    _assert_same(ours.pad(masked, **options), theirs.pad(masked, **options))


def test_one_row_of_ids_is_one_text(pair: Pair) -> None:
    ours, theirs = pair.processor, pair.their_processor
    for ids in (torch.tensor([1, 300, 310, 2]), [1, 300], np.array([[1, 300], [2, 301]]), []):
        assert ours.batch_decode(ids) == theirs.batch_decode(ids)


def test_settings_of_the_tokenizer_that_can_be_changed_count(pair: Pair) -> None:
    text = "USER: What is a circle? ASSISTANT:"
    encoded = []
    for library, options in ((llavakit, {}), (transformers, {"backend": "pil"})):
        processor = library.AutoProcessor.from_pretrained(pair.folder, padding_side="right", **options)
        tokenizer = processor.tokenizer
        rows = [processor(text=[text, "a"], padding=True)["input_ids"]]
        tokenizer.model_max_length = 6
        rows.append(processor(text=text, truncation=True)["input_ids"])
        rows.append(tokenizer("a", padding="max_length")["input_ids"])
        tokenizer.truncation_side = "left"
        rows.append(tokenizer(text, truncation=True)["input_ids"])
        tokenizer.add_bos_token = False
        rows.append(tokenizer(text, truncation=True)["input_ids"])
        encoded.append(rows)
    assert encoded[0] == encoded[1]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("", "patch_size", 7),
        ("", "num_additional_image_tokens", 0),
        ("", "vision_feature_select_strategy", "full"),
        ("", "image_token", "<pad>"),
        ("tokenizer", "bos_token", "</s>"),
        ("tokenizer", "add_eos_token", True),
        ("tokenizer", "chat_template", "x"),
        ("image_processor", "do_normalize", False),
        ("image_processor", "do_center_crop", False),
        ("image_processor", "size", {"shortest_edge": 28}),
        ("image_processor", "crop_size", {"height": 28, "width": 28}),
        ("image_processor", "image_mean", [0.5, 0.5, 0.5]),
    ],
)
def test_attribute_that_cannot_be_set_is_refused_by_name(pair: Pair, part: str, name: str, value: Any) -> None:
    owner = getattr(pair.processor, part) if part else pair.processor
    with pytest.raises(UnsupportedAttributeError, match=name):
        setattr(owner, name, value)


def test_attributes_are_told_and_may_be_set_to_what_they_are(pair: Pair) -> None:
    ours, theirs = pair.processor, pair.their_processor
    for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy", "image_token",
                 "image_token_id"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
        setattr(ours, name, getattr(theirs, name))
    ours.patch_size = pair.model.config.vision_config.patch_size
    known = theirs.image_processor.to_dict()
    assert {name: ours.image_processor.to_dict()[name] for name in known} == known
    for name, value in known.items():
        if name != "image_processor_type":
            assert getattr(ours.image_processor, name) == value, name
            setattr(ours.image_processor, name, list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("part", ["", "tokenizer", "image_processor"])
@pytest.mark.parametrize(("name", "message"), [("save_pretrained", "llavakit convert"), ("mystery", "its spelling")])
def test_attribute_that_is_not_there_is_told(pair: Pair, part: str, name: str, message: str) -> None:
    owner = getattr(pair.processor, part) if part else pair.processor
    assert not hasattr(owner, name)
    with pytest.raises(UnsupportedAttributeError, match=f"{name}.*{message}"):
        getattr(owner, name)


def test_image_processor_by_itself(pair: Pair) -> None:
    ours, theirs = pair.processor.image_processor, pair.their_processor.image_processor
    options = {"return_tensors": "pt", "do_normalize": True}
    _assert_same(ours.preprocess(make_picture(1), **options), theirs.preprocess(make_picture(1), **options))
    with pytest.raises(UnsupportedAttributeError, match="do_normalize is True and cannot be set to False"):
        ours(make_picture(1), do_normalize=False)
    with pytest.raises(ConfigError, match="does not take 'do_normalise'"):
        ours(make_picture(1), do_normalise=False)


def test_processor_is_made_of_the_parts_of_another_one(pair: Pair) -> None:
    parts = {"tokenizer": pair.processor.tokenizer, "image_processor": pair.processor.image_processor}
    made = llavakit.LlavaProcessor(**parts, patch_size=14, vision_feature_select_strategy="default")
    arguments = {"images": make_picture(1), "text": ONE, "return_tensors": "pt"}
    _assert_same(made(**arguments), pair.processor(**arguments))
    assert made.chat_template is None
    with pytest.raises(UnsupportedAttributeError, match="patch_size is 14 and cannot be set to 7"):
        llavakit.LlavaProcessor(**parts, patch_size=7)
    with pytest.raises(ConfigError, match="it takes image_processor and tokenizer of another LlavaProcessor"):
        llavakit.LlavaProcessor(pair.their_processor.image_processor, pair.processor.tokenizer)


def test_copies_of_a_processor_do_the_same(pair: Pair) -> None:
    arguments = {"images": make_picture(1), "text": ONE, "return_tensors": "pt"}
    for copied in (copy.deepcopy(pair.processor), pickle.loads(pickle.dumps(pair.processor))):
        _assert_same(copied(**arguments), pair.processor(**arguments))


def test_padding_token_and_side_can_be_changed(pair: Pair) -> None:
    processor = llavakit.AutoProcessor.from_pretrained(pair.folder)
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    ids = processor(text=["USER: What? ASSISTANT:", "Red"], padding=True)["input_ids"]
    assert ids[1][-1] == processor.tokenizer.eos_token_id
    with pytest.raises(ConfigError, match="'no such token' is not one token"):
        processor.tokenizer.pad_token = "no such token"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ONE}, PromptError, "1 <image> placeholders, but 0 pictures"),
        ({"text": [ONE, TWO], "images": ["p", "p"]}, PromptError, "3 <image> placeholders, but 2 pictures"),
        (
            {"text": ONE, "images": ["p"], "truncation": True, "max_length": 12},
            PromptError,
            "leaves 8 of 16 image tokens",
        ),
        ({"text": [NONE, "Red"], "return_tensors": "pt"}, PromptError, "rows of 2 different lengths"),
        ({"text": NONE, "paddin": True}, ConfigError, "does not take 'paddin'"),
        ({"text": NONE, "padding": "left"}, ConfigError, "padding='left' is not supported"),
        ({"text": NONE, "return_tensors": "tf"}, ConfigError, "return_tensors='tf'"),
        ({"text": NONE, "videos": ["v"]}, ConfigError, "videos and audio are not supported"),
        ({"images": "What?", "text": make_picture(1)}, PromptError, r"The order of arguments is \(images, text\)"),
        ({}, PromptError, "neither images nor text"),
    ],
)
def test_call_that_cannot_be_done_is_refused(
    pair: Pair, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    if isinstance(images := arguments.get("images"), list):
        arguments = {**arguments, "images": [make_picture(1) for _ in images]}
    with pytest.raises(error, match=message):
        pair.processor(**arguments)


def test_truncation_behind_the_pictures_agrees(pair: Pair) -> None:
    arguments = {"text": ONE, "images": make_picture(1), "truncation": True, "max_length": 30, "return_tensors": "pt"}
    ours = pair.processor(**arguments)
    _assert_same(ours, pair.their_processor(**arguments))
    assert ours["input_ids"].shape[1] == 30


def test_unknown_names_of_the_template_are_refused(pair: Pair) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    with pytest.raises(ConfigError, match="does not know 'add_generation_promt'"):
        pair.processor.apply_chat_template(chat, add_generation_promt=True)
    rendered = pair.processor.apply_chat_template(chat, chat_template="{{ tone }}{{ messages | length }}", tone="calm ")
    assert rendered == "calm 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"revision": "v2"}, "revision='v2' is not supported"),
        ({"trust_remote_code": True}, "no code of a repository is ever run"),
        ({"use_fast": True}, "resampled by Pillow"),
        ({"fast": True}, "does not know the argument 'fast'"),
    ],
)
def test_argument_of_from_pretrained_is_refused_by_name(pair: Pair, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llavakit.AutoProcessor.from_pretrained(pair.folder, **arguments)


@pytest.mark.parametrize(
    "arguments", [{"revision": "main"}, {"trust_remote_code": False}, {"use_fast": False}, {"backend": "pil"}]
)
def test_argument_that_says_what_happens_anyway_is_accepted(pair: Pair, arguments: dict[str, Any]) -> None:
    assert llavakit.AutoProcessor.from_pretrained(pair.folder, **arguments).num_image_tokens == 16


def test_text_of_a_word_keeps_its_space_when_stop_strings_are_looked_for(pair: Pair) -> None:
    tokenizer = pair.processor.tokenizer.backend
    decoder = AnchoredDecoder(tokenizer)
    ids = tokenizer.encode("red circle")
    assert "".join(decoder.push(token_id) for token_id in ids) + decoder.finish() == " red circle"


def test_image_token_above_the_vocabulary_is_encoded_and_never_decoded(pair: Pair) -> None:
    known = pair.processor.tokenizer.backend
    folder_tokens = json.loads((pair.folder / "tokenizer.json").read_text())
    folder_tokens["added_tokens"] = [one for one in folder_tokens["added_tokens"] if one["content"] != "<image>"]
    above = 9999
    backend = Tokenizer(folder_tokens, bos_token_id=1, eos_token_id=2, image_token_id=above)
    tokenizer = LlavaTokenizer(backend, pair.model.config, {"pad_token": "<unk>"})
    ids = tokenizer.encode("USER: <image>\nWhat?")
    expected = known.encode("USER: <image>\nWhat?", parse_special=True, add_bos=True)
    assert ids == [above if token_id == known.image_token_id else token_id for token_id in expected]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "USER:  \nWhat?"


def test_a_whole_batch_is_no_ids(pair: Pair) -> None:
    inputs = pair.processor(text="USER: What? ASSISTANT:", return_tensors="pt")
    with pytest.raises(ConfigError, match="input_ids"):
        pair.processor.decode(inputs)
