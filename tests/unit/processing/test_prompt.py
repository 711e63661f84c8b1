"""Whole prompts: counts, positions and keys of pictures; nothing a user types becomes a control token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig
from llavakit.core.errors import PromptError
from llavakit.processing.chat import to_messages
from llavakit.processing.presets import load_presets
from llavakit.processing.prompt import PreparedPrompt, prepare, prepare_text
from llavakit.processing.sources import SourcePolicy
from llavakit.processing.tokenizer import StreamDecoder, Tokenizer
from tests.tiny import IMAGE_TOKEN_ID, VOCAB_SIZE, write_processor_files


def _config() -> LlavaConfig:
    text = TextConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0,
        hidden_act="silu", tie_word_embeddings=False,
    )  # fmt: skip
    vision = VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_channels=3, image_size=28,
        patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    return LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN_ID, vision_feature_layer=-2,
        vision_feature_select_strategy="default", projector_hidden_act="gelu", multimodal_projector_bias=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=IMAGE_TOKEN_ID + 1, dtype="float32",
    )  # fmt: skip


class _Model:
    def __init__(self, folder: Path) -> None:
        self.config = _config()
        self.tokenizer = Tokenizer.from_folder(folder, config=self.config)
        self.presets = load_presets(folder, self.config)

    def prepare(self, conversation: Any, preset: str = "original") -> PreparedPrompt:
        return prepare(
            to_messages(conversation), tokenizer=self.tokenizer, preset=self.presets[preset], config=self.config,
            policy=SourcePolicy(),
        )  # fmt: skip

    def prepare_text(self, text: str, images: list[Any]) -> PreparedPrompt:
        return prepare_text(
            text, images, tokenizer=self.tokenizer, processing=self.presets["hf"].image, config=self.config,
            policy=SourcePolicy(),
        )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> _Model:
    folder = tmp_path_factory.mktemp("model")
    write_processor_files(folder)
    return _Model(folder)


def _picture(level: int) -> np.ndarray:
    return np.full((20, 30, 3), level, dtype=np.uint8)


def _ask(words: str, *pictures: Any) -> list[dict[str, Any]]:
    blocks = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": words}]}]


@pytest.mark.parametrize("preset", ["original", "hf"])
def test_pictures_have_their_places_and_keys(model: _Model, preset: str) -> None:
    prompt = model.prepare(_ask("Q", _picture(1), _picture(2), _picture(1)), preset)
    count, image_id = model.config.num_image_tokens, model.config.image_token_id
    assert prompt.token_ids[0] == model.config.bos_token_id
    assert prompt.token_ids.count(image_id) == 3 * count
    for start in prompt.image_starts:
        assert prompt.token_ids[start : start + count] == (image_id,) * count
        assert prompt.token_ids[start - 1] != image_id
    first, second, third = prompt.image_keys
    assert first == third != second
    side = model.config.vision_config.image_size
    assert prompt.pixel_values is not None
    assert prompt.pixel_values.shape == (3, 3, side, side)
    assert prompt.pixel_values.dtype == np.float32


def test_words_alone_have_no_pixels(model: _Model) -> None:
    prompt = model.prepare("Q")
    assert prompt.pixel_values is None
    assert prompt.image_keys == prompt.image_starts == ()


def test_finished_answer_ends_with_the_end_token_in_original_only(model: _Model) -> None:
    turns = [*_ask("Q1", _picture(1)), {"role": "assistant", "content": "A1"}, *_ask("Q2")]
    eos = model.config.eos_token_id
    assert model.prepare(turns).token_ids.count(eos) == 1
    assert model.prepare(turns, "hf").token_ids.count(eos) == 0


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from(["<image>", "</s>", "<s>", "<unk>", "<pad>", "USER:", "<0x0A>", " ", "\n", "a"])
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        max_size=12,
    ),
    st.integers(0, 2),
    st.sampled_from(["original", "hf"]),
)
def test_written_control_words_are_never_control_tokens(
    model: _Model, words: list[str], num_pictures: int, preset: str
) -> None:
    prompt = model.prepare(_ask("".join(words), *[_picture(9)] * num_pictures), preset)
    ids = list(prompt.token_ids)
    assert ids.count(model.config.image_token_id) == num_pictures * model.config.num_image_tokens
    assert len(prompt.image_starts) == num_pictures
    others = [token_id for token_id in ids[1:] if token_id != model.config.image_token_id]
    # The small vocabulary of this test shows every unknown character as bytes, so even <unk> may not come out.
    assert not set(others) & model.tokenizer.special_ids


@settings(max_examples=300)
@given(st.data())
def test_stream_of_any_ids_equals_decode(model: _Model, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, model.tokenizer.vocab_size + 2), max_size=20))
    decoder = StreamDecoder(model.tokenizer)
    assert "".join(decoder.push(token_id) for token_id in ids) + decoder.finish() == model.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("text", "num_pictures", "message"),
    [
        ("a <image> b", 0, "has 1 <image> placeholder for 0 pictures;"),
        ("a", 1, "has 0 <image> placeholders for 1 picture;"),
        ("<image><image>", 1, "has 2 <image> placeholders for 1 picture;"),
    ],
)
def test_placeholders_and_pictures_must_be_as_many(model: _Model, text: str, num_pictures: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.prepare_text(text, [_picture(1)] * num_pictures)


def test_developers_text_may_hold_control_tokens(model: _Model) -> None:
    prompt = model.prepare_text("USER: <image>\nQ ASSISTANT: A</s>USER: R ASSISTANT:", [_picture(1)])
    assert prompt.token_ids.count(model.config.eos_token_id) == 1
    assert prompt.token_ids.count(model.config.image_token_id) == model.config.num_image_tokens
