"""What transformers' interface takes for a model, and the embedded one through it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import llavakit
from llavakit.conversion.convert import convert
from llavakit.core.errors import ConfigError
from llavakit.dropin.generation_config import merge_generation_config

_SHAPES = Path(__file__).parents[3] / "examples" / "shapes.png"
_QUESTION = "How many red circles are there?"
_MESSAGES = [
    {"role": "user", "content": [{"type": "image", "path": str(_SHAPES)}, {"type": "text", "text": _QUESTION}]}
]


def test_the_embedded_model_is_asked_as_it_was_trained() -> None:
    processor = llavakit.AutoProcessor.from_pretrained("llava:tiny")
    inputs = processor.apply_chat_template(
        _MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = llavakit.load("llava:tiny").prepare(_QUESTION, images=[str(_SHAPES)])
    assert inputs["input_ids"][0].tolist() == list(expected.token_ids)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "There are 2."}]}
    text = processor.apply_chat_template([*_MESSAGES, answer, *_MESSAGES], add_generation_prompt=True)
    assert text.count("A chat between") == 1
    assert f"USER: <image>\n{_QUESTION} ASSISTANT: There are 2.</s>USER: <image>\n{_QUESTION} ASSISTANT:" in text


@pytest.mark.parametrize("device", [-1, "cpu", torch.device("cpu")])
def test_a_pipeline_on_the_processor(device: object) -> None:
    pipe = llavakit.pipeline("image-text-to-text", model="llava:tiny", device=device)  # type: ignore[arg-type]
    assert pipe.device == torch.device("cpu")
    found = pipe(text=_MESSAGES, max_new_tokens=20)[0]["generated_text"]
    assert found[-1]["content"].strip() == "There are 2 red circles."


def test_settings_of_a_generation_may_be_a_mapping() -> None:
    merged = merge_generation_config(llavakit.GenerationConfig(), {"max_new_tokens": 3}, {"do_sample": False})
    assert (merged.max_new_tokens, merged.do_sample) == (3, False)


def test_a_gguf_file_is_named_as_one(tmp_path: Path) -> None:
    file = convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0").files[0]
    for load in (llavakit.AutoProcessor.from_pretrained, llavakit.LlavaForConditionalGeneration.from_pretrained):
        with pytest.raises(ConfigError, match="is a GGUF file"):
            load(str(file))


def test_a_model_is_not_made_of_a_configuration() -> None:
    model = llavakit.LlavaForConditionalGeneration.from_pretrained("llava:tiny")
    with pytest.raises(ConfigError, match=r"makes no models with random weights. Load one with from_pretrained"):
        llavakit.LlavaForConditionalGeneration(model.config)  # type: ignore[arg-type, call-arg]
    with pytest.raises(ConfigError, match="makes no models with random weights"):
        llavakit.LlavaForConditionalGeneration(config=None)  # type: ignore[call-arg]
    assert copy.deepcopy(model).dtype == model.dtype


def test_a_tokenizer_takes_what_asks_for_nothing_and_names_what_it_cannot_do() -> None:
    tokenizer = llavakit.AutoProcessor.from_pretrained("llava:tiny").tokenizer
    plain = tokenizer("a red circle")["input_ids"]
    assert tokenizer("a red circle", None, return_token_type_ids=False, verbose=True)["input_ids"] == plain
    with pytest.raises(ConfigError, match="does not support text_pair='b'"):
        tokenizer("a", "b")
    with pytest.raises(ConfigError, match="does not support return_offsets_mapping=True"):
        tokenizer("a", return_offsets_mapping=True)
    with pytest.raises(ConfigError, match="does not take 'paddding'"):
        tokenizer("a", paddding=True)
