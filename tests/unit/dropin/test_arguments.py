"""Arguments of `from_pretrained`, quantization settings, and defaults of `generate`."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llavakit.core.errors import CapacityError, ConfigError, SamplingError, UnsupportedAttributeError
from llavakit.dropin import BitsAndBytesConfig, GenerationConfig
from llavakit.dropin.decoding import make_plan
from llavakit.dropin.generation_config import load_generation_config, merge_generation_config
from llavakit.dropin.loading_arguments import read_model_arguments
from llavakit.dropin.placement import parse_dtype
from llavakit.dropin.quantization import quantize_decoder
from llavakit.model.layers import Linear
from tests.tiny.random_model import make_config, make_model


@pytest.mark.parametrize(
    "device_map", [None, "cpu", {"": "cpu"}, torch.device("cpu"), {"model": "cpu", "lm_head": "cpu"}]
)
def test_device_map_of_one_place(device_map: Any) -> None:
    assert read_model_arguments({"device_map": device_map}).device == torch.device("cpu")


def test_device_map_of_several_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="spreads the model over 0, cpu"):
        read_model_arguments({"device_map": {"vision_tower": 0, "language_model": "cpu"}})


def test_both_names_of_the_dtype_may_agree_but_not_differ() -> None:
    same = read_model_arguments({"dtype": torch.float16, "torch_dtype": torch.float16})
    assert same.dtype == torch.float16
    with pytest.raises(ConfigError, match=r"torch.float16 and torch_dtype='float32' differ"):
        read_model_arguments({"dtype": torch.float16, "torch_dtype": "float32"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, torch.bfloat16),
        ("auto", torch.bfloat16),
        ("float16", torch.float16),
        ("torch.float32", torch.float32),
        (torch.float16, torch.float16),
    ],
)
def test_dtype_by_name_and_by_checkpoint(given: Any, expected: torch.dtype) -> None:
    assert parse_dtype(given, stored="bfloat16") == expected


@pytest.mark.parametrize("dtype", ["int8", torch.float64, "half"])
def test_other_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(ConfigError, match="is not supported; use 'auto' or one of float32, float16, bfloat16"):
        parse_dtype(dtype, stored="float16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low_cpu_mem_usag": True}, "does not know the argument 'low_cpu_mem_usag'"),
        ({"offload_folder": "o"}, "offload_folder='o' is not supported: weights are mapped"),
        ({"attn_implementation": "paged"}, "attn_implementation='paged' is not supported"),
        ({"use_safetensors": False}, "use_safetensors=False is not supported: they are taken where"),
        ({"quantization_config": 4}, "quantization_config is a int"),
        ({"quantization_config": {"bits": 4}}, "does not know bits"),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "load_in_4bit": True}, "say it once"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "both True"),
    ],
)
def test_argument_that_cannot_be_honoured_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_model_arguments(arguments)


def test_arguments_that_change_nothing_are_accepted() -> None:
    read = read_model_arguments({
        "low_cpu_mem_usage": True, "use_safetensors": True, "attn_implementation": "sdpa", "load_in_4bit": False,
        "quantization_config": None, "revision": "main", "token": None, "local_files_only": True,
    })  # fmt: skip
    assert read.quantization is None
    assert not read.allow_download


def test_eager_attention_is_served_and_said() -> None:
    with pytest.warns(UserWarning, match="computes the same as the 'eager' implementation"):
        read_model_arguments({"attn_implementation": "eager"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bnb_4bit_quant_type": "int4"}, "must be 'fp4' or 'nf4'"),
        ({"bnb_4bit_compute_dtype": "int8"}, "bnb_4bit_compute_dtype is 'int8'"),
        ({"bnb_4bit_quant_storage": torch.int64}, "bnb_4bit_quant_storage"),
        ({"load_in_4bit": 1}, "load_in_4bit must be True or False"),
        ({"llm_int8_threshold": "six"}, "llm_int8_threshold must be a number"),
        ({"llm_int8_skip_modules": "lm_head"}, "must be a list of module names"),
        ({"llm_int8_enable_fp32_cpu_offload": True}, "neither offloaded nor trained"),
    ],
)
def test_quantization_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitsAndBytesConfig(**settings)


def test_quantization_settings_take_names_of_dtypes() -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.bnb_4bit_quant_storage == torch.uint8
    assert config.num_bits == 4


class _FakeParameter(torch.nn.Parameter):
    """Stands in for bitsandbytes' parameter classes, which need a GPU."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False, **_: Any) -> Any:
        return super().__new__(cls, data, requires_grad)


class _FakeBitsAndBytes:
    class nn:  # the name is the package's
        Params4bit = Int8Params = _FakeParameter

        class Linear4bit(torch.nn.Linear):
            def __init__(self, in_features: int, out_features: int, bias: bool, **options: Any) -> None:
                super().__init__(in_features, out_features, bias=bias)
                self.options = options


def test_on_a_gpu_only_the_decoders_matrices_are_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)  # there may be no GPU here
    monkeypatch.setitem(sys.modules, "bitsandbytes", _FakeBitsAndBytes)
    model = make_model()
    before = model.language_model.layers[0].self_attn.q_proj.weight.clone()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["down_proj"])
    quantize_decoder(model, config, torch.device("cuda"))
    quantized = {name for name, one in model.named_modules() if isinstance(one, _FakeBitsAndBytes.nn.Linear4bit)}
    kinds = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
    ]
    assert quantized == {f"language_model.layers.{idx}.{kind}" for idx in range(2) for kind in kinds}
    assert isinstance(model.lm_head, Linear)
    assert torch.equal(model.language_model.layers[0].self_attn.q_proj.weight, before)
    assert model.language_model.layers[0].self_attn.q_proj.options["quant_type"] == "nf4"


def _write(folder: Path, content: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_generation_config_file_sets_defaults_and_its_bookkeeping_is_skipped(tmp_path: Path) -> None:
    folder = _write(
        tmp_path, {"eos_token_id": [2, 5], "max_length": 99, "transformers_version": "4.36", "_from_model_config": True}
    )
    loaded = load_generation_config(folder, make_config())
    assert loaded.to_dict() == {"bos_token_id": 1, "eos_token_id": [2, 5], "max_length": 99}


@pytest.mark.parametrize("name", ["suppress_tokens", "bad_words_ids", "max_new_token"])
def test_setting_that_cannot_be_done_is_refused_wherever_it_is_made(name: str) -> None:
    config = GenerationConfig()
    for make in (
        lambda: GenerationConfig(**{name: [[5]]}),
        lambda: GenerationConfig.from_dict({name: [[5]]}),
        lambda: config.update(max_new_tokens=3, **{name: [[5]]}),
        lambda: setattr(config, name, [[5]]),
    ):
        with pytest.raises(SamplingError, match=name):
            make()
    assert config.to_dict() == {}


def test_settings_that_ask_for_nothing_are_taken_and_read_as_none() -> None:
    config = GenerationConfig(no_repeat_ngram_size=0, max_new_tokens=4, typical_p=None)
    config.bad_words_ids = None
    assert config.update(num_beam_groups=1, num_beams=2) == {}
    assert config.to_dict() == {"max_new_tokens": 4, "num_beams": 2}
    assert config.no_repeat_ngram_size is None
    assert not hasattr(config, "max_new_token")
    with pytest.raises(UnsupportedAttributeError, match="GenerationConfig has no 'save_pretrained'"):
        config.save_pretrained  # noqa: B018
    assert copy.deepcopy(config) == config == GenerationConfig.from_dict(config.to_dict())
    config.max_new_tokens = None
    assert config.max_new_tokens is None


def test_settings_of_a_model_can_be_read_alone() -> None:
    assert GenerationConfig.from_pretrained("llava:tiny").eos_token_id == 2


def test_without_a_file_special_tokens_come_from_the_model(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path, make_config()).to_dict() == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"no_repeat_ngram_size": 3}, "generate does not do no_repeat_ngram_size=3"),
        ({"forced_eos_token_id": 2}, "forced_eos_token_id=2"),
        ({"mystery": 1}, "does not know the argument 'mystery'"),
        ([1], "holds list"),
    ],
)
def test_generation_config_file_that_asks_for_more_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_generation_config(_write(tmp_path, content), make_config())


def test_call_wins_over_given_config_wins_over_model() -> None:
    base = GenerationConfig(max_new_tokens=1, num_beams=2, repetition_penalty=1.5)
    merged = merge_generation_config(base, GenerationConfig(max_new_tokens=2, num_beams=3), {"max_new_tokens": 4})
    assert (merged.max_new_tokens, merged.num_beams, merged.repetition_penalty) == (4, 3, 1.5)
    assert base.max_new_tokens == 1


def test_sampling_defaults_are_those_of_transformers() -> None:
    config = merge_generation_config(GenerationConfig(), None, {"do_sample": True})
    (params,) = make_plan(config, num_rows=1, prompt_len=3, seed=0).params
    assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens) == (1.0, 50, None, 20)
    for value in (0, None):
        config = merge_generation_config(GenerationConfig(top_k=7), None, {"do_sample": True, "top_k": value})
        (off,) = make_plan(config, num_rows=1, prompt_len=3, seed=0).params
        assert off.top_k is None


def test_none_switches_a_default_off_and_leaves_the_rest() -> None:
    base = GenerationConfig(temperature=0.9, eos_token_id=2, max_new_tokens=5)
    merged = merge_generation_config(
        base, GenerationConfig(temperature=0.8), {"temperature": None, "eos_token_id": None}
    )
    assert (merged.temperature, merged.eos_token_id, merged.max_new_tokens) == (None, None, 5)


def test_sampling_settings_without_sampling_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llavakit"):
        make_plan(GenerationConfig(temperature=0.2, top_p=0.6), num_rows=1, prompt_len=3, seed=None)
    assert "temperature=0.2, top_p=0.6 say how to sample, but do_sample is not set" in caplog.text
    caplog.clear()
    make_plan(GenerationConfig(temperature=1.0, top_p=1.0), num_rows=1, prompt_len=3, seed=None)
    assert not caplog.text


def test_padding_falls_back_to_the_end_token() -> None:
    assert make_plan(GenerationConfig(eos_token_id=[7, 8]), num_rows=1, prompt_len=3, seed=None).fill_id == 7
    assert make_plan(GenerationConfig(eos_token_id=7, pad_token_id=0), num_rows=1, prompt_len=3, seed=None).fill_id == 0
    beams = GenerationConfig(eos_token_id=7, pad_token_id=0, num_beams=2)
    assert make_plan(beams, num_rows=1, prompt_len=3, seed=None).fill_id == 7


def test_bad_end_token_is_refused() -> None:
    with pytest.raises(SamplingError, match="eos_token_id must be a token id"):
        make_plan(GenerationConfig(eos_token_id=["</s>"]), num_rows=1, prompt_len=3, seed=None)  # type: ignore[list-item]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_map_of_a_missing_gpu_is_refused() -> None:
    with pytest.raises(CapacityError, match="needs a CUDA GPU"):
        read_model_arguments({"device_map": "cuda:0"})
