"""Loading, whoever asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llavakit.api import loading
from llavakit.diagnostics.compare import bound_of_stored
from llavakit.model.llava import Llava
from llavakit.model.storage import count_types, is_stored


def test_every_load_reads_the_weights_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def record(files: Sequence[Path]) -> None:
        asked.extend(files)

    monkeypatch.setattr(loading, "start_reading_ahead", record)
    loading.load("llava:tiny")
    assert [file.name for file in asked] == ["model.safetensors"]


def test_large_models_in_16_bits_keep_their_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearer to float32 than activations in 16 bits are, and within what their products explain."""
    exact = loading.load("llava:tiny", device="cpu")
    assert not is_stored(exact.model)
    monkeypatch.setattr(loading, "_MAX_WIDENED_BYTES", 0)
    kept, half = loading.load("llava:tiny", device="cpu"), loading.load("llava:tiny", dtype="float16", device="cpu")
    assert (kept.dtype, half.dtype) == (torch.float32, torch.float16)
    assert next(iter(count_types(kept.model))) == "float16"
    assert not is_stored(half.model)
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([exact.prepare("What is this? Say all that you see.").token_ids])

    @torch.inference_mode()
    def compute(model: Llava) -> list[torch.Tensor]:
        features = model.encode_images(pixels.to(model.dtype))
        return [features.float(), model(model.embed(ids, None), torch.arange(ids.shape[1])[None]).float()]

    config = exact.config
    layers = (config.num_vision_blocks + 1, config.text_config.num_hidden_layers)
    for want, mine, theirs, num_layers in zip(
        *(compute(one.model) for one in (exact, kept, half)), layers, strict=True
    ):
        error, of_half = (float((found - want).norm() / want.norm()) for found in (mine, theirs))
        assert 0 < error <= bound_of_stored(num_layers, is_quantized=False)[0]
        assert error < of_half


def test_where_there_is_no_library_the_dtype_of_the_files_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_MAX_WIDENED_BYTES", 0)
    monkeypatch.setattr(loading, "has_library", lambda: False)
    assert loading.load("llava:tiny", device="cpu").dtype == torch.float16
