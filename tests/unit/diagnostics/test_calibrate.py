"""Importance is the mean square of a layer's inputs, and quantizing with it makes errors smaller where it matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import llavakit
import llavakit.model.stored_matrix
from llavakit.api.loaded_model import LoadedModel
from llavakit.conversion.convert import convert
from llavakit.conversion.importance import check_writable, read_importance, write_importance
from llavakit.core.errors import ConfigError, FormatError, NonFiniteError, ShapeError, StoreError
from llavakit.diagnostics.calibrate import Calibration, calibrate_model
from llavakit.diagnostics.quality import answer_ids_of, forward_answer
from llavakit.model.layers import Linear
from tests.unit.diagnostics.prompts import PROMPTS


@pytest.fixture(scope="module")
def calibration(tiny: LoadedModel) -> Calibration:
    return calibrate_model(tiny, prompts=PROMPTS)


def _inputs_of(loaded: LoadedModel, name: str) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    module = loaded.model.get_submodule(name)
    for prompt in PROMPTS:
        ids = answer_ids_of(loaded, prompt, 64)
        hook = module.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0].flatten(0, -2)))
        forward_answer(loaded, loaded.prepare(prompt.text, images=list(prompt.images) or None), ids)
        hook.remove()
    return torch.cat(kept)


def test_importance_is_the_mean_square_of_the_inputs(tiny: LoadedModel, calibration: Calibration) -> None:
    linear = {f"{name}.weight" for name, module in tiny.model.named_modules() if isinstance(module, Linear)}
    assert set(calibration.importance) == linear
    for name in ("language_model.layers.2.mlp.down_proj", "multi_modal_projector.linear_1", "lm_head"):
        expected = _inputs_of(tiny, name).double().square().mean(dim=0)
        expected = (expected / expected.mean()).clamp_min(1e-4)
        np.testing.assert_allclose(calibration.importance[f"{name}.weight"], expected.numpy(), rtol=1e-5)


def test_errors_shrink_where_it_matters(tiny: LoadedModel, calibration: Calibration, tmp_path: Path) -> None:
    plain = llavakit.load(convert("llava:tiny", tmp_path / "a.gguf", type_name="q2_k").files[0], device="cpu")
    path = tmp_path / "importance"
    write_importance(path, calibration.importance, model="llava:tiny", num_tokens=calibration.num_tokens)
    files = convert("llava:tiny", tmp_path / "b.gguf", type_name="q2_k", importance=read_importance(path)).files
    weighted = llavakit.load(files[0], device="cpu")
    num_better = num_compared = 0
    for name, module in tiny.model.language_model.named_modules():
        if not isinstance(module, Linear) or "q_proj" in name or "k_proj" in name:  # their rows are interleaved
            continue
        errors = []
        for other in (plain, weighted):
            matrix = other.model.language_model.get_submodule(name).matrix
            assert isinstance(matrix, llavakit.model.stored_matrix.StoredMatrix)
            wrong = (matrix.expand() - module.weight).double().square()
            errors.append(
                float((wrong * torch.from_numpy(calibration.importance[f"language_model.{name}.weight"])).sum())
            )
        num_better += errors[1] < errors[0]
        num_compared += 1
    assert num_compared >= 20
    assert num_better == num_compared


def test_what_cannot_be_calibrated_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    file = convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0").files[0]
    with pytest.raises(ConfigError, match="is a GGUF file"):
        calibrate_model(file, prompts=PROMPTS)
    with pytest.raises(ConfigError, match="at least one"):
        calibrate_model(tiny, prompts=[])


def test_damaged_importance_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "importance"
    name = "lm_head.weight"
    for values, error in (
        (np.ones((2, 2), np.float32), ShapeError),
        (np.ones(3, np.float64), ShapeError),
        (np.array([1, np.nan], np.float32), NonFiniteError),
        (np.array([1, 0], np.float32), NonFiniteError),
    ):
        write_importance(path, {name: values}, model="m", num_tokens=1)
        with pytest.raises(error, match="lm_head"):
            read_importance(path)
    save_file({name: np.ones(3, np.float32)}, path)
    with pytest.raises(FormatError, match="no importance file"):
        read_importance(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        read_importance(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_importance(tmp_path / "absent")
    other = {"lm_head.weight": np.ones(7, np.float32)}
    with pytest.raises(ShapeError, match="measured on another model"):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0", importance=other)
    deeper = {"language_model.layers.99.mlp.up_proj.weight": np.ones(7, np.float32)}
    with pytest.raises(ShapeError, match=r"layers\.99.*measured on another model"):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0", importance=deeper)
    assert not (tmp_path / "a.gguf").exists()
    assert calibration.num_prompts == 3


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    values = {"lm_head.weight": np.ones(7, np.float32)}
    for path, problem in ((tmp_path / "absent" / "a", "is not there"), (tmp_path, "is a folder")):
        with pytest.raises(StoreError, match=problem):
            check_writable(path)
        with pytest.raises(StoreError, match="cannot be written"):
            write_importance(path, values, model="m", num_tokens=1)
    check_writable(tmp_path / "a")
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(StoreError, match="is there already"):
        check_writable(tmp_path / "mine.jsonl")
    check_writable(tmp_path / "mine.jsonl", is_overwrite_allowed=True)
    assert not list(tmp_path.parent.glob("*.part"))
