"""Every dialect of config.json: published files, full dumps, the original repository; and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.core.config_json import is_original_config, parse_llava_config
from llavakit.core.errors import ConfigError, LlavakitError

# As published: what is not here, the library's class defaults supplied.
PUBLISHED_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
    "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "tie_word_embeddings": False,
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
    },
    "torch_dtype": "float16", "transformers_version": "4.36.0.dev0", "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default", "vocab_size": 32064,
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
}  # fmt: skip
SIZES_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
             "num_key_value_heads": 40}  # fmt: skip
ORIGINAL_13B: dict[str, Any] = {
    "_name_or_path": "llava-v1.5-13b", "architectures": ["LlavaLlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "hidden_act": "silu", **SIZES_13B,
    "image_aspect_ratio": "pad", "image_grid_pinpoints": None, "initializer_range": 0.02, "max_length": 4096,
    "max_position_embeddings": 4096, "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None, "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava", "pad_token_id": 0,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.31.0", "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False, "use_cache": True, "use_mm_proj": True,
    "vocab_size": 32000, "tokenizer_model_max_length": 2048, "tokenizer_padding_side": "right",
}  # fmt: skip


def changed(path: str, value: Any, base: dict[str, Any] = PUBLISHED_7B) -> dict[str, Any]:
    raw = copy.deepcopy(base)
    *parents, leaf = path.split("/")
    level = raw
    for parent in parents:
        level = level[parent]
    level[leaf] = value
    return raw


def without(path: str, base: dict[str, Any] = PUBLISHED_7B) -> dict[str, Any]:
    raw = changed(path, None, base)
    *parents, leaf = path.split("/")
    level = raw
    for parent in parents:
        level = level[parent]
    del level[leaf]
    return raw


def test_the_published_7b_file() -> None:
    config = parse_llava_config(PUBLISHED_7B)
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 32, 128)
    assert (text.rms_norm_eps, text.rope_theta, text.max_position_embeddings) == (1e-5, 10000.0, 4096)
    assert (vision.hidden_act, vision.layer_norm_eps, vision.num_channels) == ("quick_gelu", 1e-5, 3)
    assert (config.num_vision_blocks, config.num_image_tokens) == (23, 576)
    assert (config.image_token_id, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (
        32000,
        32001,
        1,
        2,
    )
    assert (config.dtype, config.multimodal_projector_bias) == ("float16", True)


def test_the_published_13b_file() -> None:
    raw = copy.deepcopy(PUBLISHED_7B)
    raw["text_config"].update(SIZES_13B, _name_or_path="meta-llama/Llama-2-13b-hf")
    text = parse_llava_config(raw).text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads, text.head_dim) == (5120, 40, 40, 128)


def test_the_original_13b_file_with_its_tower() -> None:
    assert is_original_config(ORIGINAL_13B)
    for vision in (
        PUBLISHED_7B["vision_config"],
        {"model_type": "clip", "vision_config": PUBLISHED_7B["vision_config"]},
    ):
        config = parse_llava_config(ORIGINAL_13B, vision_raw=vision)
        assert config.image_token_id == config.text_config.vocab_size == 32000
        assert (config.num_vision_blocks, config.num_image_tokens, config.max_context_tokens) == (23, 576, 4096)
        assert config.text_config.hidden_size == 5120


def test_an_original_file_without_its_tower_says_which() -> None:
    with pytest.raises(ConfigError, match="openai/clip-vit-large-patch14-336"):
        parse_llava_config(ORIGINAL_13B)


def test_spellings_of_transformers_5() -> None:
    raw = without("image_token_index", without("torch_dtype"))
    raw.update(image_token_id=32000, dtype="bfloat16", image_seq_length=576, multimodal_projector_bias=True)
    raw["text_config"].update(rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
                              attention_bias=False,
                              mlp_bias=False, attention_dropout=0.0, head_dim=128, pretraining_tp=1,
                              pad_token_id=None)  # fmt: skip
    config = parse_llava_config(raw)
    assert (config.image_token_id, config.dtype, config.text_config.rope_theta) == (32000, "bfloat16", 5000.0)


@pytest.mark.parametrize(
    "path",
    ["text_config/rms_norm_eps", "text_config/max_position_embeddings", "text_config/vocab_size",
     "vision_feature_layer",
     "vision_feature_select_strategy", "projector_hidden_act", "image_token_index", "text_config", "vision_config",
     "vision_config/hidden_size", "vision_config/patch_size", "vision_config/num_hidden_layers", "model_type"],
)  # fmt: skip
def test_what_is_mathematics_is_never_guessed(path: str) -> None:
    with pytest.raises(ConfigError):
        parse_llava_config(without(path))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config/rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling"),
        ("text_config/attention_bias", True, "attention_bias"),
        ("text_config/mlp_bias", True, "mlp_bias"),
        ("text_config/sliding_window", 4096, "sliding_window"),
        ("text_config/rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rope_parameters"),
        ("text_config/rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "factor": 2}, "factor"),
        ("text_config/model_type", "mistral", "mistral"),
        ("vision_config/model_type", "siglip_vision_model", "siglip"),
        ("model_type", "llava_next", "llava_next"),
        ("quantization_config", {"quant_method": "awq"}, "quantization_config"),
        ("some_new_switch", 1, "unknown keys some_new_switch"),
        ("text_config/qk_norm", True, "unknown keys qk_norm"),
        ("vision_config/use_pooler", True, "unknown keys use_pooler"),
        ("vision_feature_layer", [-2, -5], "vision_feature_layer"),
        ("vision_feature_layer", 26, "possible"),
        ("vision_feature_select_strategy", "cls", "cls"),
        ("projector_hidden_act", "relu", "relu"),
        ("text_config/hidden_act", "gelu", "gelu"),
        ("text_config/hidden_size", 4097, "multiple"),
        ("text_config/hidden_size", "4096", "whole number"),
        ("text_config/hidden_size", 0, "between"),
        ("text_config/num_hidden_layers", 10**9, "between"),
        ("text_config/num_attention_heads", 0, "num_attention_heads"),
        ("text_config/num_key_value_heads", 5, "num_key_value_heads"),
        ("text_config/rms_norm_eps", -1.0, "rms_norm_eps"),
        ("text_config/rms_norm_eps", float("nan"), "rms_norm_eps"),
        ("text_config/rope_theta", 0.0, "rope_theta"),
        ("vision_config/patch_size", 13, "patch_size"),
        ("vision_config/num_channels", 4, "channels"),
        ("image_token_index", 40000, "image_token_id"),
        ("image_token_index", True, "whole number"),
        ("pad_token_id", "32001", "whole number"),
        ("tie_word_embeddings", "false", "true or false"),
        ("multimodal_projector_bias", 1, "true or false"),
        ("torch_dtype", "int8", "int8"),
    ],
)  # fmt: skip
def test_what_is_not_llava_15_is_refused_by_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_llava_config(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [("mm_projector_type", "linear"), ("mm_vision_select_feature", "cls_patch"), ("mm_use_im_start_end", True),
     ("image_aspect_ratio", "anyres"), ("mm_patch_merge_type", "spatial"), ("model_type", "llava_mistral")],
)  # fmt: skip
def test_an_original_file_of_another_kind_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        parse_llava_config(changed(path, value, ORIGINAL_13B), vision_raw=PUBLISHED_7B["vision_config"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
PATHS = [*PUBLISHED_7B, *(f"text_config/{key}" for key in PUBLISHED_7B["text_config"]),
         *(f"vision_config/{key}" for key in PUBLISHED_7B["vision_config"]), "text_config/hidden_size",
         "text_config/num_attention_heads", "text_config/head_dim", "text_config/rope_parameters", "dtype",
         "text_config/bos_token_id"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(PATHS), VALUES, min_size=1, max_size=3))
def test_any_value_gives_a_config_or_our_error(changes: dict[str, Any]) -> None:
    raw = copy.deepcopy(PUBLISHED_7B)
    for path, value in sorted(changes.items(), reverse=True):
        *parents, leaf = path.split("/")
        level = raw[parents[0]] if parents else raw
        level[leaf] = value
    try:
        config = parse_llava_config(raw)
    except LlavakitError:
        return
    assert config.num_image_tokens > 0


@given(st.dictionaries(st.sampled_from(sorted(ORIGINAL_13B)), VALUES, max_size=3), VALUES)
def test_any_value_in_an_original_file_gives_a_config_or_our_error(changes: dict[str, Any], vision: Any) -> None:
    for vision_raw in (PUBLISHED_7B["vision_config"], {**PUBLISHED_7B["vision_config"], "vision_config": vision}):
        try:
            config = parse_llava_config({**ORIGINAL_13B, **changes}, vision_raw=vision_raw)
        except LlavakitError:
            continue
        assert config.num_image_tokens > 0
