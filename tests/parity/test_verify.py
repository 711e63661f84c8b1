"""`verify` passes on true models of every dialect, and fails when something is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="parity needs transformers: pip install 'llavakit[verify]'")

import llavakit
from benchmarks.random_checkpoint import SHAPES, write_checkpoint
from llavakit.api.loaded_model import LoadedModel
from llavakit.conversion.convert import convert
from llavakit.diagnostics import verify
from llavakit.diagnostics.compare import Verdict
from llavakit.diagnostics.verify import VerifyReport, verify_loaded, verify_model
from tests.tiny import make_tiny_llava

_STAGES = ["pixels", "ids", "vision features", "projected features", "logits", "greedy tokens",
           "greedy tokens, batches of 4"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_llava(folder, vision_image_size=56)
    return folder


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return llavakit.load(folder, dtype="float32", device="cpu")


def _run(loaded: LoadedModel) -> VerifyReport:
    return verify_loaded(loaded, num_prompts=3, max_new_tokens=8)


def _verdicts(report: VerifyReport) -> dict[str, Verdict]:
    return {stage.name: stage.verdict for stage in report.stages}


def test_a_true_model_passes_every_stage(folder: Path) -> None:
    steps: list[str] = []
    report = verify_model(
        folder, num_prompts=20, max_new_tokens=64, on_progress=lambda name, _done, _total: steps.append(name)
    )
    assert [stage.name for stage in report.stages] == _STAGES
    assert report.is_ok
    assert not report.are_weights_shared
    verdicts = _verdicts(report)
    assert verdicts["pixels"] is verdicts["ids"] is Verdict.EQUAL
    assert verdicts["greedy tokens"] is verdicts["greedy tokens, batches of 4"] is Verdict.EQUAL, report.stages
    assert all(stage.relative_error is None or stage.relative_error <= 1e-5 for stage in report.stages)
    tokens = report.stages[-1]
    assert tokens.num_compared == 20 * 64
    assert "up to 3 pictures" in tokens.detail
    assert set(_STAGES) <= set(steps)


def test_old_names_and_bfloat16(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SHAPES["small"], dtype="bfloat16")
    report = verify_model(tmp_path, dtype="bfloat16", num_prompts=2, max_new_tokens=8)
    assert report.is_ok, report.stages
    assert report.dtype == "bfloat16"


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_k_m"])
def test_a_gguf_pair_beside_its_expanded_weights(
    tmp_path: Path, type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = convert("llava:tiny", tmp_path / "tiny.gguf", type_name=type_name).files[0]
    report = verify_model(file, num_prompts=3, max_new_tokens=8)
    assert report.is_ok, report.stages
    assert report.are_weights_shared
    errors = {stage.name: stage.relative_error for stage in report.stages}
    assert 0 < (errors["vision features"] or 0) < 1e-3
    # Expanded for each product, the logits are the same; tokens would take too long.
    monkeypatch.setattr(verify, "read_available_bytes", lambda: 0)
    frugal = verify_model(file, num_prompts=3, max_new_tokens=8)
    assert _verdicts(frugal)["greedy tokens"] is Verdict.SKIPPED
    assert {stage.name: stage.relative_error for stage in frugal.stages}["logits"] == pytest.approx(errors["logits"])


def test_a_wrong_order_of_rows_in_a_gguf_pair_is_found(tmp_path: Path) -> None:
    loaded = llavakit.load(convert("llava:tiny", tmp_path / "tiny.gguf", type_name="q8_0").files[0], device="cpu")
    run = verify._Run(loaded, num_prompts=3, max_new_tokens=8, on_progress=None)
    loaded.model.language_model.layers[0].self_attn.q_proj.interleaved_head_dim = None
    assert run.compare_logits().verdict is Verdict.FAIL


def test_shared_weights_give_the_same_verdicts(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _run(loaded)
    monkeypatch.setattr(verify, "read_available_bytes", lambda: 0)
    shared = _run(loaded)
    assert (own.are_weights_shared, shared.are_weights_shared) == (False, True)
    assert _verdicts(own) == _verdicts(shared)
    assert shared.is_ok


def test_shared_weights_are_not_copied(loaded: LoadedModel) -> None:
    reference = verify.Reference(loaded.model, loaded.folder, is_shared=True)
    ours = {parameter.data_ptr() for parameter in loaded.model.parameters()}
    theirs = {parameter.data_ptr() for parameter in reference.model.parameters()}
    assert ours <= theirs
    assert not any(tensor.is_meta for tensor in reference.model.state_dict().values())


def _double(loaded: LoadedModel, name: str) -> None:
    """Replace a parameter: the loader's tensors may be the mapped file."""
    module_name, _, leaf = name.rpartition(".")
    module = loaded.model.get_submodule(module_name)
    setattr(module, leaf, torch.nn.Parameter(getattr(module, leaf) * 2, requires_grad=False))


@pytest.mark.parametrize(
    ("parameter", "first_wrong"),
    [
        ("vision_tower.encoder.layers.1.mlp.fc2.weight", "vision features"),
        ("multi_modal_projector.linear_2.bias", "projected features"),
        ("language_model.layers.1.self_attn.k_proj.weight", "logits"),
        ("lm_head.weight", "logits"),
    ],
)
def test_a_wrong_weight_fails_from_its_stage_on(loaded: LoadedModel, parameter: str, first_wrong: str) -> None:
    _double(loaded, parameter)
    verdicts = _verdicts(_run(loaded))
    names = list(verdicts)
    failed = [name for name in names if verdicts[name] is Verdict.FAIL]
    assert failed
    assert failed[0] == first_wrong
    assert "logits" in failed


def test_wrong_pixels_fail(loaded: LoadedModel) -> None:
    from dataclasses import replace

    preset = loaded.presets["hf"]
    loaded.presets["hf"] = replace(preset, image=replace(preset.image, mean=(0.5, 0.5, 0.5)))
    verdicts = _verdicts(_run(loaded))
    assert verdicts["pixels"] is Verdict.FAIL
    assert verdicts["vision features"] is not Verdict.FAIL  # both sides get our pixels


def test_wrong_tokenizer_fails(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = loaded.tokenizer.encode
    monkeypatch.setattr(loaded.tokenizer, "encode", lambda text, **settings: right(text.replace("  ", " "), **settings))
    assert _verdicts(_run(loaded))["ids"] is Verdict.FAIL


def test_the_report_is_json_even_with_nan(loaded: LoadedModel) -> None:
    name = "multi_modal_projector.linear_1.bias"
    _double(loaded, name)
    loaded.model.get_parameter(name).data[0] = float("nan")
    report = _run(loaded)
    content = json.loads(report.to_json())
    assert content["is_ok"] is False
    wrong = next(stage for stage in content["stages"] if stage["name"] == "projected features")
    assert wrong["verdict"] == "fail"
    assert wrong["max_abs_difference"] is None
    assert "NaN" in wrong["detail"]
