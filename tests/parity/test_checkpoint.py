"""Folders that transformers and torch wrote, against what our reader makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llavakit.core.shapes import expected_tensors
from llavakit.model.loader import build_meta_model
from llavakit.weights.checkpoint import Checkpoint, open_checkpoint
from llavakit.weights.names import Dialect
from tests.parity.reference import config_from
from tests.tiny import make_tiny_llava


def to_torch(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(tensor.data).view(getattr(torch, tensor.dtype)).view(tensor.shape)


def assert_holds(checkpoint: Checkpoint, model: Any) -> None:
    """Every parameter of our model has, bit for bit, the value that transformers' model has under its own name."""
    theirs = {
        name.removeprefix("model.").replace("pre_layrnorm", "pre_layernorm"): value
        for name, value in model.state_dict().items()
    }
    assert set(checkpoint.tensors) == set(expected_tensors(checkpoint.config))
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(to_torch(tensor), theirs[name]), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_size", [None, "60KB"])
def test_what_transformers_saves_opens(tmp_path: Path, dtype: str, shard_size: str | None) -> None:
    model = make_tiny_llava(tmp_path, dtype=dtype)
    if shard_size is not None:
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
        model.save_pretrained(tmp_path, max_shard_size=shard_size)
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    checkpoint = open_checkpoint(tmp_path)
    # transformers 5 writes the old names, but for the vision level, which it leaves out.
    assert checkpoint.dialect is Dialect.HF_LEGACY
    assert checkpoint.config.dtype == dtype
    assert checkpoint.storage_dtypes == {dtype: len(checkpoint.tensors)}
    assert_holds(checkpoint, model)


def test_the_configuration_is_the_one_transformers_uses(tmp_path: Path) -> None:
    model = make_tiny_llava(tmp_path)
    ours, theirs = open_checkpoint(tmp_path).config, config_from(model.config)
    assert ours.text_config == theirs.text_config
    assert ours.vision_config == theirs.vision_config
    assert (ours.image_token_id, ours.vision_feature_layer) == (theirs.image_token_id, theirs.vision_feature_layer)


def test_the_names_of_transformers_modules_open(tmp_path: Path) -> None:
    model = make_tiny_llava(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dialect is Dialect.HF_CURRENT
    assert_holds(checkpoint, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state}, lambda state: state])
def test_what_torch_saves_opens(tmp_path: Path, dtype: torch.dtype, wrap: Any) -> None:
    model = make_tiny_llava(tmp_path)
    model = model.to(dtype)
    (tmp_path / "model.safetensors").unlink()
    torch.save(wrap(model.state_dict()), tmp_path / "pytorch_model.bin")
    assert_holds(open_checkpoint(tmp_path), model)


def test_parameters_and_shared_storages_open(tmp_path: Path) -> None:
    """A state dict of parameters, all of them windows on one storage, beside an integer buffer."""
    model = make_tiny_llava(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {name: value.detach() for name, value in model.state_dict().items()}
    flat = torch.cat([value.flatten() for value in state.values()])
    shared: dict[str, Any] = {}
    begin = 0
    for name, value in state.items():
        shared[name] = torch.nn.Parameter(flat[begin : begin + value.numel()].view(value.shape))
        begin += value.numel()
    shared["model.vision_tower.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(shared, tmp_path / "pytorch_model.bin")
    assert_holds(open_checkpoint(tmp_path), model)


@pytest.mark.parametrize("is_whole_clip", [True, False])
def test_an_original_checkpoint_beside_a_clip_that_transformers_saved(tmp_path: Path, is_whole_clip: bool) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    from tests.unit.weights.builders import ORIGINAL_CONFIG, write_folder

    model = make_tiny_llava(tmp_path / "hf")
    vision_config = model.config.vision_config
    if is_whole_clip:
        text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
        clip = CLIPModel(CLIPConfig(vision_config=vision_config.to_dict(), text_config=text))
        tower = clip.vision_model
    else:
        tower = clip = CLIPVisionModel(vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    state = {}
    for name, value in model.state_dict().items():
        if "vision_tower" not in name:
            name = (
                name.replace("model.language_model.", "model.")
                .replace(".linear_1.", ".0.")
                .replace(".linear_2.", ".2.")
            )
            state[name.replace("multi_modal_projector", "mm_projector")] = value.numpy()
    text_config = model.config.text_config
    sizes = {key: getattr(text_config, key) for key in ("vocab_size", "hidden_size", "intermediate_size",
             "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")}  # fmt: skip
    folder = write_folder(tmp_path / "original", state, config={**ORIGINAL_CONFIG, **sizes}, suffix="bin")
    checkpoint = open_checkpoint(folder, vision_folder=tmp_path / "clip")
    assert checkpoint.dialect is Dialect.ORIGINAL
    assert_holds(checkpoint, model)


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_expected_tensors_are_the_parameters_of_the_model(is_tied: bool) -> None:
    from tests.tiny.random_model import make_config

    config = make_config(tie_word_embeddings=is_tied)
    parameters = {name: tuple(value.shape) for name, value in build_meta_model(config).named_parameters()}
    assert parameters == expected_tensors(config)


def test_the_comparison_itself_notices_a_difference(tmp_path: Path) -> None:
    model = make_tiny_llava(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-6
    with pytest.raises(AssertionError, match="lm_head"):
        assert_holds(checkpoint, model)
