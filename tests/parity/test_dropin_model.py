"""The model class itself: dtypes, moves, what it tells, what it refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llavakit
from llavakit.core.errors import ConfigError, LlavakitError, ModelNotFoundError, UnsupportedAttributeError
from tests.tiny import make_tiny_llava
from tests.tiny.dropin_pair import Pair, load_pair, make_picture

PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("model"), seed=41)


def _load(pair: Pair, **arguments: Any) -> Any:
    return llavakit.LlavaForConditionalGeneration.from_pretrained(pair.folder, **arguments)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_default_dtype_is_the_checkpoints(tmp_path: Any, stored: str) -> None:
    make_tiny_llava(tmp_path, dtype=stored)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    ours = llavakit.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert ours.dtype == theirs.dtype == getattr(torch, stored)
    assert ours.device == torch.device("cpu")
    assert llavakit.LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype="float32").dtype == torch.float32


def test_dtype_can_be_changed_after_loading_and_back(pair: Pair) -> None:
    model = _load(pair)
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt")
    before = model.generate(**inputs, max_new_tokens=8)
    for change, dtype in (
        (model.half, torch.float16),
        (model.bfloat16, torch.bfloat16),
        (model.float, torch.float32),
    ):
        assert change() is model
        assert model.dtype == dtype
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model.generate(**inputs, max_new_tokens=8).shape == before.shape
    fresh = _load(pair)
    assert torch.equal(fresh.to("cpu", torch.float32).generate(**inputs, max_new_tokens=8), before)


def test_bfloat16_tokens_agree_with_transformers(pair: Pair) -> None:
    ours = _load(pair, torch_dtype=torch.bfloat16)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(pair.folder, dtype=torch.bfloat16).eval()
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt").to(torch.bfloat16)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=16), theirs.generate(**inputs, max_new_tokens=16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_products_give_the_bits_of_transformers(tmp_path: Path, dtype: str) -> None:
    """Nothing but the order of sums in a product tells this model from transformers'."""
    make_tiny_llava(tmp_path, seed=3, dtype=dtype, text_hidden_size=256, text_intermediate_size=688)
    _begin_at_cache_line(tmp_path / "model.safetensors")
    inputs = llavakit.AutoProcessor.from_pretrained(tmp_path)(images=make_picture(1), text=PROMPT, return_tensors="pt")

    def logits_of(library: Any, model: Any) -> torch.Tensor:
        settings = library.GenerationConfig(
            max_new_tokens=12, pad_token_id=2, return_dict_in_generate=True, output_logits=True
        )
        model.generation_config = library.GenerationConfig(pad_token_id=2)
        result = model.generate(**inputs.to(model.dtype), generation_config=settings)
        return torch.stack(result.logits).to(model.dtype)

    theirs, faster, ours = (
        library.LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
        for library in (transformers, llavakit, llavakit)
    )
    ours.model.use_torch_products()
    expected = logits_of(transformers, theirs)
    assert torch.equal(logits_of(llavakit, ours), expected)
    if dtype == "float16":  # bfloat16 rounds so coarsely that at this size a faster product mostly gives the same bits
        assert not torch.equal(logits_of(llavakit, faster), expected)


def _begin_at_cache_line(file: Path) -> None:
    """Move a safetensors file's data: where weights lie decides the order of sums of torch's product of one row."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end] + b" " * (-end % 64)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def test_evaluation_mode_is_the_only_one(pair: Pair) -> None:
    assert pair.model.eval() is pair.model
    assert pair.model.train(False) is pair.model
    assert not pair.model.training
    with pytest.raises(ConfigError, match="training is not part of this release"):
        pair.model.train()


def test_sizes_and_name_are_told(pair: Pair) -> None:
    used = {name for name, _ in pair.their_model.named_parameters() if "layers.2." not in name or "vision" not in name}
    used -= {name for name in used if "post_layernorm" in name}
    theirs = sum(parameter.numel() for name, parameter in pair.their_model.named_parameters() if name in used)
    assert pair.model.num_parameters() == theirs
    assert pair.model.get_memory_footprint() == 4 * theirs
    assert set(pair.model.state_dict()) == {name for name, _ in pair.model.named_parameters()}
    assert "dtype=float32, device='cpu'" in repr(pair.model)
    assert pair.model.config.text_config.hidden_size == pair.their_model.config.text_config.hidden_size


def test_numbers_of_parameters_agree_with_and_without_embeddings(pair: Pair) -> None:
    ours, theirs = pair.model, pair.their_model
    table = ours.get_input_embeddings().weight
    assert torch.equal(table, theirs.get_input_embeddings().weight)
    assert torch.equal(ours.get_output_embeddings().weight, theirs.get_output_embeddings().weight)
    assert ours.lm_head is ours.get_output_embeddings()
    positions = ours.num_parameters() - ours.num_parameters(exclude_embeddings=True) - table.numel()
    assert positions == sum(
        parameter.numel() for name, parameter in theirs.named_parameters() if "position_embedding" in name
    )
    assert ours.num_parameters(only_trainable=True) == 0


def test_parts_of_the_model_are_torch_modules(pair: Pair) -> None:
    names = {name for name, _ in pair.model.named_modules()}
    assert "language_model.layers.0.self_attn.q_proj" in names
    assert len(list(pair.model.modules())) == len(names)
    assert [name for name, _ in pair.model.named_children()][-1] == "lm_head"
    assert len(list(pair.model.children())) == 4
    assert all(isinstance(buffer, torch.Tensor) for buffer in pair.model.buffers())
    assert pair.model.can_generate() == pair.their_model.can_generate()
    assert pair.model.main_input_name == pair.their_model.main_input_name
    assert pair.model.requires_grad_(False) is pair.model
    with pytest.raises(ConfigError, match="keeps no gradients"):
        pair.model.requires_grad_()


def test_features_of_pictures_agree(pair: Pair) -> None:
    pixels = pair.processor(images=[make_picture(1), make_picture(2)], return_tensors="pt")["pixel_values"]
    ours = pair.model.get_image_features(pixels).pooler_output
    theirs = pair.their_model.get_image_features(pixels).pooler_output
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="vision_feature_layer is not supported"):
        pair.model.get_image_features(pixels, vision_feature_layer=-1)


def test_numbers_of_the_configuration_agree(pair: Pair) -> None:
    ours, theirs = pair.model.config, pair.their_model.config
    for name in ("model_type", "architectures", "image_token_id", "image_token_index", "image_seq_length",
                 "vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.to_dict()[name] == getattr(theirs, name), name
    for part, their_part in (
        (ours.text_config, theirs.text_config),
        (ours.get_text_config(), theirs.get_text_config()),
        (ours.vision_config, theirs.vision_config),
    ):
        known = their_part.to_dict()
        shared = {name: value for name, value in part.to_dict().items() if name in known}
        assert len(shared) >= 9
        assert shared == {name: known[name] for name in shared}
    assert ours == _load(pair).config


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("", "vision_feature_layer", -1), ("", "use_cache", False), ("text_config", "hidden_size", 5), ("", "mystery", 1)],
)
def test_configuration_cannot_be_changed(pair: Pair, part: str, name: str, value: Any) -> None:
    config = getattr(pair.model.config, part) if part else pair.model.config
    with pytest.raises(UnsupportedAttributeError, match=name):
        setattr(config, name, value)


def test_value_that_the_configuration_has_may_be_set(pair: Pair) -> None:
    pair.model.config.use_cache = True
    pair.model.config.text_config.pad_token_id = pair.their_model.config.text_config.pad_token_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("save_pretrained", "llavakit convert"),
        ("push_to_hub", "hf upload"),
        ("resize_token_embeddings", "vocabulary is that of the checkpoint"),
        ("gradient_checkpointing_enable", "training is not part of this release"),
        ("load_state_dict", "state_dict"),
        ("mystery", "check its spelling"),
    ],
)
def test_attribute_that_is_not_there_is_told(pair: Pair, name: str, message: str) -> None:
    assert not hasattr(pair.model, name)
    with pytest.raises(UnsupportedAttributeError, match=f"{name}.*{message}") as caught:
        getattr(pair.model, name)
    assert isinstance(caught.value, LlavakitError)
    assert isinstance(caught.value, AttributeError)


def test_attribute_that_cannot_be_set_is_told(pair: Pair) -> None:
    for name, value in (("config", {}), ("dtype", torch.float64), ("training", True)):
        with pytest.raises(UnsupportedAttributeError, match=f"{name} is .* cannot be set"):
            setattr(pair.model, name, value)
    pair.model.training = False


def test_copies_answer_alike(pair: Pair) -> None:
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt")
    expected = pair.model.generate(**inputs, max_new_tokens=4)
    for copied in (copy.deepcopy(pair.model), pickle.loads(pickle.dumps(pair.model))):
        assert torch.equal(copied.generate(**inputs, max_new_tokens=4), expected)
    assert copy.deepcopy(pair.model.config) == pair.model.config


def test_generation_config_of_the_model_can_be_changed(pair: Pair) -> None:
    model = _load(pair)
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt")
    model.generation_config.max_new_tokens = 3
    assert model.generate(**inputs).shape[1] == inputs["input_ids"].shape[1] + 3


def test_model_that_is_not_there_is_told(tmp_path: Any) -> None:
    with pytest.raises(ModelNotFoundError):
        llavakit.LlavaForConditionalGeneration.from_pretrained(tmp_path / "nothing", local_files_only=True)


def test_forward_refuses_what_it_does_not_do(pair: Pair) -> None:
    inputs = pair.processor(text="What?", return_tensors="pt")
    for name in ("output_attentions", "output_hidden_states", "use_cache"):
        with pytest.raises(ConfigError, match="not supported"):
            pair.model(**inputs, **{name: True})
    with pytest.raises(ConfigError, match="does not take an argument 'token_type_ids'"):
        pair.model(**inputs, token_type_ids=inputs["input_ids"])
    assert isinstance(pair.model(**inputs, return_dict=False), tuple)


@pytest.mark.parametrize("arguments", [{}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"load_in_8bit": True}])
@pytest.mark.parametrize("part", ["multi_modal_projector", "vision_tower", "norm"])
def test_weights_changed_in_place_are_those_of_the_next_answer(
    pair: Pair, arguments: dict[str, Any], part: str
) -> None:
    model, untouched = _load(pair, **arguments), _load(pair, **arguments)
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt").to(model.dtype)
    settings = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    model.generate(**inputs, **settings)
    for one in (model, untouched):
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if part in name:
                    parameter.mul_(-2.0)
    changed, fresh = model.generate(**inputs, **settings), untouched.generate(**inputs, **settings)
    assert torch.equal(torch.stack(changed.logits), torch.stack(fresh.logits))


def test_reset_forgets_what_weights_changed_through_data_left(pair: Pair) -> None:
    model, untouched = _load(pair), _load(pair)
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt")
    model.generate(**inputs, max_new_tokens=4)
    for one in (model, untouched):
        one.model.multi_modal_projector.linear_1.weight.data.zero_()
    model.reset()
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), untouched.generate(**inputs, max_new_tokens=4))


@pytest.mark.parametrize("settings", [{}, {"stop_strings": ["zz"]}])
def test_weights_go_with_the_last_name_for_the_model(pair: Pair, settings: dict[str, Any]) -> None:
    inputs = pair.processor(images=make_picture(1), text=PROMPT, return_tensors="pt")
    gc.collect()
    gc.disable()
    try:
        model = _load(pair)
        model.generate(**inputs, max_new_tokens=2, tokenizer=pair.processor.tokenizer, **settings)
        weight = weakref.ref(next(iter(model.parameters())))
        del model
        assert weight() is None
    finally:
        gc.enable()
