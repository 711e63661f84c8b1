"""One state dict in every dialect and container gives the same tensors, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llavakit.core.errors import FormatError, MissingTensorError, ShapeError, UnexpectedTensorError
from llavakit.weights.checkpoint import Checkpoint, open_checkpoint
from llavakit.weights.names import Dialect
from tests.unit.weights import builders as b

STORED = {np.float32: "float32", np.float16: "float16", np.uint16: "bfloat16"}


def assert_same(checkpoint: Checkpoint, state: b.State, dtype: Any) -> None:
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == STORED[dtype]
        assert tensor.shape == state[name].shape
        assert tensor.name == name
        assert tensor.data.tobytes() == state[name].tobytes()
    assert checkpoint.num_bytes == sum(value.nbytes for value in state.values())
    assert checkpoint.storage_dtypes == {STORED[dtype]: len(state)}


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", list(STORED))
def test_legacy_names_in_every_container_and_dtype(tmp_path: Path, dtype: Any, suffix: str, num_shards: int) -> None:
    state = b.make_state(dtype=dtype)
    folder = b.write_folder(
        tmp_path / "m", b.to_legacy({**state, **b.unused_vision(dtype)}), suffix=suffix, num_shards=num_shards
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.dialect is Dialect.HF_LEGACY
    assert_same(checkpoint, state, dtype)
    assert len(checkpoint.skipped) == len(b.unused_vision())
    assert all("feature layer" in reason for _, reason in checkpoint.skipped)


@pytest.mark.parametrize("has_level", [True, False])
def test_current_names_with_and_without_the_vision_level(tmp_path: Path, has_level: bool) -> None:
    state = b.make_state()
    named = b.to_current({**state, **b.unused_vision()}, has_level=has_level)
    checkpoint = open_checkpoint(b.write_folder(tmp_path / "m", named))
    assert checkpoint.dialect is Dialect.HF_CURRENT
    assert_same(checkpoint, state, np.float32)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_original_with_a_separate_tower(tmp_path: Path, suffix: str, prefix: str) -> None:
    state = b.make_state()
    named = b.to_original(state)
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    folder = b.write_folder(tmp_path / "m", named, config=b.ORIGINAL_CONFIG, suffix=suffix, num_shards=2)
    tower = b.to_clip({**state, **b.unused_vision()}, prefix=prefix)
    vision = b.write_folder(tmp_path / "clip", tower, config=b.VISION, suffix=suffix)
    checkpoint = open_checkpoint(folder, vision_folder=vision)
    assert checkpoint.dialect is Dialect.ORIGINAL
    assert checkpoint.config.image_token_id == 97
    assert_same(checkpoint, state, np.float32)
    assert any("inv_freq" in name for name, _ in checkpoint.skipped)


def test_the_files_of_the_tower_are_needed_first(tmp_path: Path) -> None:
    state = b.make_state()
    folder = b.write_folder(tmp_path / "a", b.to_original(state), config=b.ORIGINAL_CONFIG)
    tower = b.write_folder(tmp_path / "b", b.to_clip(state), config=b.VISION)
    first, second = open_checkpoint(folder, vision_folder=tower).files_as_needed
    assert (first.parent, second.parent) == (tower, folder)


def test_original_with_a_whole_clip_skips_its_text_side(tmp_path: Path) -> None:
    state = b.make_state()
    folder = b.write_folder(tmp_path / "m", b.to_original(state), config=b.ORIGINAL_CONFIG, suffix="bin")
    tower = b.to_clip({**state, **b.unused_vision()})
    extra = {
        "logit_scale": np.ones((), np.float32), "visual_projection.weight": np.ones((8, 16), np.float32),
        "text_projection.weight": np.ones((8, 8), np.float32),
        "text_model.embeddings.position_ids": np.ones((1, 7), np.int64),
        "text_model.encoder.layers.0.mlp.fc1.weight": np.ones((3, 2), np.float32),
        "vision_model.embeddings.position_ids": np.arange(5)[None],
    }  # fmt: skip
    vision = b.write_folder(tmp_path / "clip", {**tower, **extra}, suffix="bin", config={
        "model_type": "clip", "projection_dim": 8, "logit_scale_init_value": 2.6592, "vision_config": b.VISION,
        "text_config": {"model_type": "clip_text_model"}, "vision_config_dict": {},
    })  # fmt: skip
    checkpoint = open_checkpoint(folder, vision_folder=vision)
    assert_same(checkpoint, state, np.float32)
    assert set(extra) <= {name for name, _ in checkpoint.skipped}


def test_a_tuned_tower_inside_the_checkpoint_wins_over_the_separate_one(tmp_path: Path) -> None:
    state, other = b.make_state(), b.make_state(seed=1)
    inside = {f"model.vision_tower.vision_tower.{name}": value for name, value in b.to_clip(state).items()}
    folder = b.write_folder(tmp_path / "m", {**b.to_original(state), **inside}, config=b.ORIGINAL_CONFIG)
    vision = b.write_folder(tmp_path / "clip", b.to_clip(other), config=b.VISION)
    assert_same(open_checkpoint(folder, vision_folder=vision), state, np.float32)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    state = b.make_state()
    del state["language_model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        MissingTensorError, match=r"1 of \d+ .*language_model\.layers\.1\.mlp\.up_proj\.weight \(48, 32\)"
    ):
        open_checkpoint(b.write_folder(tmp_path / "m", b.to_legacy(state)))


def test_a_long_list_of_missing_tensors_ends_in_a_count(tmp_path: Path) -> None:
    state = {name: value for name, value in b.make_state().items() if "vision" not in name}
    with pytest.raises(MissingTensorError, match=r"and \d+ more"):
        open_checkpoint(b.write_folder(tmp_path / "m", b.to_legacy(state)))


def test_unexpected_tensors_are_named(tmp_path: Path) -> None:
    state = {**b.to_legacy(b.make_state()), "image_newline": np.ones(32, np.float32)}
    with pytest.raises(UnexpectedTensorError, match=r"'m' has 1 tensor that LLaVA-1\.5 has not: image_newline \(32,\)"):
        open_checkpoint(b.write_folder(tmp_path / "m", state))


def test_a_vision_block_beyond_the_tower_is_unexpected(tmp_path: Path) -> None:
    state = b.to_legacy(b.make_state())
    state["vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias"] = np.ones(24, np.float32)
    with pytest.raises(UnexpectedTensorError, match=r"layers\.3\.mlp"):
        open_checkpoint(b.write_folder(tmp_path / "m", state))


def test_the_same_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    state = b.to_legacy(b.make_state())
    state["language_model.norm.weight"] = state["language_model.model.norm.weight"]
    with pytest.raises(UnexpectedTensorError, match=r"a second language_model\.norm\.weight"):
        open_checkpoint(b.write_folder(tmp_path / "m", state))


def test_a_wrong_shape_names_both_shapes(tmp_path: Path) -> None:
    state = b.make_state()
    state["language_model.norm.weight"] = np.ones(31, np.float32)
    with pytest.raises(
        ShapeError, match=r"'m' has 1 tensor of another .*norm\.weight: file has \(31,\), config needs \(32,\)"
    ):
        open_checkpoint(b.write_folder(tmp_path / "m", b.to_legacy(state)))


def test_integers_where_weights_belong_are_refused(tmp_path: Path) -> None:
    state = b.make_state()
    state["language_model.norm.weight"] = np.ones(32, np.int64)
    for suffix in ("safetensors", "bin"):
        with pytest.raises(FormatError, match=r"norm\.weight: int64"):
            open_checkpoint(b.write_folder(tmp_path / suffix, b.to_legacy(state), suffix=suffix))


def test_names_of_another_family_are_refused(tmp_path: Path) -> None:
    folder = b.write_folder(tmp_path / "m", {"transformer.h.0.attn.weight": np.ones(3, np.float32)})
    with pytest.raises(UnexpectedTensorError, match="no known LLaVA"):
        open_checkpoint(folder)


def test_tied_embeddings_need_no_head_and_skip_one(tmp_path: Path) -> None:
    state = b.make_state()
    config = {**b.HF_CONFIG, "tie_word_embeddings": True}
    with_head = open_checkpoint(b.write_folder(tmp_path / "a", b.to_legacy(state), config=config))
    assert "lm_head.weight" not in with_head.tensors
    assert ("language_model.lm_head.weight", "tied to the token embeddings") in with_head.skipped
    del state["lm_head.weight"]
    without = open_checkpoint(b.write_folder(tmp_path / "b", b.to_legacy(state), config=config))
    assert set(without.tensors) == set(state)
