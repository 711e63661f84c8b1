"""What quantizing has cost: zero for the same model, and what a slow sum says for another."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import llavakit
from llavakit.api.loaded_model import LoadedModel
from llavakit.conversion.convert import convert
from llavakit.core.errors import ConfigError, ContextOverflowError
from llavakit.diagnostics.quality import QualityPrompt, QualityReport, measure_quality, read_prompts
from tests.unit.diagnostics.prompts import PROMPTS


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("q2_k")
    return llavakit.load(convert("llava:tiny", folder / "tiny.gguf", type_name="q2_k").files[0], device="cpu")


@pytest.fixture(scope="module")
def report(tiny: LoadedModel, quantized: LoadedModel) -> QualityReport:
    return measure_quality(tiny, quantized, prompts=PROMPTS)


def test_a_model_loses_nothing_to_itself(tiny: LoadedModel) -> None:
    for group in measure_quality(tiny, tiny, prompts=PROMPTS).groups:
        assert group.divergence.value == group.divergence.low == group.divergence.high == 0
        assert group.agreement.value == 1
        assert group.perplexity_ratio.value == 1


def test_figures_are_those_of_a_slow_sum(tiny: LoadedModel, quantized: LoadedModel, report: QualityReport) -> None:
    """Token by token, from the start each time; the answer that came with the prompt ends with the end token."""
    prompt = PROMPTS[1]
    answer = [*tiny.tokenizer.encode(" Blue"), tiny.config.eos_token_id]
    total, losses = 0.0, [0.0, 0.0]
    for idx, token in enumerate(answer):
        rows = []
        for model in (tiny, quantized):
            ready = model.prepare(prompt.text, images=list(prompt.images))
            with torch.inference_mode():
                features = model.model.encode_images(torch.from_numpy(ready.pixel_values))[0]
                ids = torch.tensor([[*ready.token_ids, *answer[:idx]]])
                logits = model.model(model.model.embed(ids, features), torch.arange(ids.shape[1])[None])[0, -1]
            rows.append(torch.log_softmax(logits.double(), -1))
        total += float((rows[0].exp() * (rows[0] - rows[1])).sum())
        losses = [loss - float(row[token]) for loss, row in zip(losses, rows, strict=True)]
    (group,) = measure_quality(tiny, quantized, prompts=[prompt]).groups
    assert group.num_tokens == len(answer)
    # The quantized model's products depend on the number of rows: eight bits, then a division of small numbers.
    assert group.divergence.value == pytest.approx(total / len(answer), rel=0.05, abs=1e-4)
    assert group.perplexity == pytest.approx(math.exp(losses[0] / len(answer)), rel=1e-3)
    assert group.quantized_perplexity == pytest.approx(math.exp(losses[1] / len(answer)), rel=0.02)


def test_two_bits_cost_something_and_intervals_hold_the_value(report: QualityReport) -> None:
    assert [group.name for group in report.groups] == ["pictures", "text"]
    assert report.groups[0].num_prompts == 2
    assert report.groups[0].divergence.value > 0
    for group in report.groups:
        for estimate in (group.divergence, group.agreement, group.perplexity_ratio):
            assert estimate.low <= estimate.value <= estimate.high
    assert report.quantized_bytes < report.model_bytes
    assert json.loads(report.to_json())["groups"][0]["num_tokens"] == report.groups[0].num_tokens


def test_sizes_are_those_of_the_files(tiny: LoadedModel, quantized: LoadedModel) -> None:
    """A file holds the weights, a header and the last vision block; in memory this model takes twice as much."""
    report = measure_quality(tiny, tiny, prompts=PROMPTS[1:2])
    file_bytes = (tiny.folder / "model.safetensors").stat().st_size
    assert report.quantized_bytes == report.model_bytes
    assert 0.9 * file_bytes < report.model_bytes < file_bytes
    files_bytes = sum(file.stat().st_size for file in quantized.folder.glob("*.gguf"))
    embeddings = tiny.model.vision_tower.embeddings
    widened = sum(part.weight.numel() * 2 for part in (embeddings.patch_embedding, embeddings.position_embedding))
    quantized_bytes = measure_quality(tiny, quantized, prompts=PROMPTS[1:2]).quantized_bytes
    assert 0.95 * files_bytes < quantized_bytes < files_bytes + widened


@pytest.mark.parametrize("side", ["text", "answer"])
def test_what_is_longer_than_the_context_is_refused(tiny: LoadedModel, side: str) -> None:
    long = "red " * tiny.config.max_context_tokens
    prompt = QualityPrompt(long, (), "Blue") if side == "text" else QualityPrompt("What?", (), long)
    with pytest.raises(ContextOverflowError, match=f"context is {tiny.config.max_context_tokens}"):
        measure_quality(tiny, tiny, prompts=[prompt])


def test_other_models_are_refused(tiny: LoadedModel, quantized: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "prepare", lambda *_args, **_kwargs: tiny.prepare("something else"))
    monkeypatch.setattr(LoadedModel, "with_preset", lambda self, name: self)
    with pytest.raises(ConfigError, match=r"tokenize .* differently"):
        measure_quality(tiny, quantized, prompts=PROMPTS)


def test_prompts_are_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "a.png")
    file.write_text('{"text": "What?", "images": ["a.png"], "answer": "This."}\n\n{"text": "Why?"}\n')
    assert read_prompts(file) == [QualityPrompt("What?", (tmp_path / "a.png",), "This."), QualityPrompt("Why?")]
    file.write_bytes(b"\xef\xbb\xbf" + b'{"text": "Why?"}')  # as editors on Windows begin a file
    assert read_prompts(file) == [QualityPrompt("Why?")]


def test_an_answer_that_is_held_for_impossible_has_no_end_of_perplexity(tiny: LoadedModel) -> None:
    wrong = llavakit.load("llava:tiny", device="cpu")
    with torch.no_grad():
        wrong.model.lm_head.weight.mul_(5000)
    report = measure_quality(tiny, wrong, prompts=[QualityPrompt("Hi", answer="zebra piano seven green")])
    (group,) = report.groups
    assert group.quantized_perplexity == math.inf
    assert json.loads(report.to_json(), parse_constant=pytest.fail)["groups"][0]["quantized_perplexity"] is None


@pytest.mark.parametrize("line", ["", "[1]", "{", '{"text": 5}', '{"text": "a", "images": "b"}', '{"images": []}',
                                  '{"text": "a", "answer": 1}', '{"text": "a", "answre": "b"}'])  # fmt: skip
def test_what_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    with pytest.raises(ConfigError, match=r"prompts\.jsonl"):
        read_prompts(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")
