"""GGUF pairs: the same model as the floats they expand to, whatever the types and names in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import llavakit
from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, FormatError, ModelNotFoundError, ShapeError
from llavakit.model.layers import quick_gelu
from llavakit.model.llava import Llava
from llavakit.model.loader import build_meta_model
from llavakit.model.stored_matrix import StoredMatrix
from tests.parity.reference import relative_error
from tests.tiny.gguf_pair import write_pair
from tests.tiny.random_model import make_config

pytest.importorskip("gguf", reason="GGUF files are made with the gguf package")

_TYPES = ("q4_k", "q6_k", "q8_0", "q5_k", "q2_k", "q3_k", "q4_0", "q4_1", "q5_0", "q5_1")


def _config(**text: Any) -> LlavaConfig:
    config = make_config(vocab_size=320, hidden_size=256, intermediate_size=512, num_attention_heads=8,
                         num_key_value_heads=4, head_dim=32, max_position_embeddings=512, **text)  # fmt: skip
    return replace(config, image_token_id=320)


def _float_model(config: LlavaConfig, weights: dict[str, torch.Tensor]) -> Llava:
    model = build_meta_model(config)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False)


@torch.inference_mode()
def _logits(model: Llava, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vision_config.image_size
    pixels = torch.randn((1, 3, size, size), generator=generator)
    words = torch.randint(3, 300, (1, 9), generator=generator)
    image = torch.full((1, model.config.num_image_tokens), model.config.image_token_id)
    ids = torch.cat((words[:, :3], image, words[:, 3:]), dim=1)
    embeds = model.embed(ids, model.encode_images(pixels))
    return model(embeds, torch.arange(ids.shape[1])[None])


@pytest.mark.parametrize("swap_names", [False, True])
@pytest.mark.parametrize("first", range(len(_TYPES)))
def test_exact_products_give_the_logits_of_the_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, swap_names: bool
) -> None:
    """With products of the expanded matrices nothing is left but names, orders and shapes."""
    weights = write_pair(tmp_path, _config(), types=_TYPES[first:] + _TYPES[:first], swap_names=swap_names)
    loaded = llavakit.load(tmp_path / "model.gguf", device="cpu")

    def multiply(self: StoredMatrix, x: torch.Tensor, bias: torch.Tensor | None = None, *, activation: int = 0) -> Any:
        out = x @ self.expand().T
        out = out if bias is None else out + bias
        return quick_gelu(out) if activation else out

    def multiply_twice(
        self: StoredMatrix, x: torch.Tensor, bias: torch.Tensor | None, second: StoredMatrix,
        second_bias: torch.Tensor | None, *, activation: int,
    ) -> Any:  # fmt: skip
        return multiply(second, multiply(self, x, bias, activation=activation), second_bias)

    monkeypatch.setattr(StoredMatrix, "multiply", multiply)
    monkeypatch.setattr(StoredMatrix, "multiply_twice", multiply_twice)
    assert relative_error(_logits(loaded.model), _logits(_float_model(_config(), weights))) < 1e-5


def test_products_from_the_blocks_are_as_close_as_eight_bits_allow(tmp_path: Path) -> None:
    """The greatest of 256 normal numbers is 3.3 deviations, so rounding to 1/127 of it is a noise of 0.008 of them a
    product; fourteen products in a row, and random attention sharp enough to double it, stay under 0.1.
    """
    for dtype in _TYPES:
        weights = write_pair(tmp_path, _config(), types=(dtype,))
        ours = _logits(llavakit.load(tmp_path / "model.gguf", device="cpu").model)
        assert relative_error(ours, _logits(_float_model(_config(), weights))) < 0.1, dtype


def test_a_pair_answers_about_a_picture_and_in_batches(tmp_path: Path) -> None:
    write_pair(tmp_path, _config(), types=("q4_k", "q6_k"))
    model = llavakit.load(str(tmp_path / "model.gguf"), device="cpu")
    assert model.preset.name == "original"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    alone = [model.chat(text, images=[picture], max_new_tokens=8).token_ids for text in ("abc", "what is it")]
    together = model.generate(["abc", "what is it"], images=[picture, picture], max_new_tokens=8)
    assert [result.token_ids for result in together] == alone


def test_weights_are_not_copied(tmp_path: Path) -> None:
    write_pair(tmp_path, _config(), types=("q4_k",))
    model = llavakit.load(tmp_path / "model.gguf", device="cpu").model
    matrix = model.language_model.layers[0].mlp.gate_proj.matrix
    assert matrix is not None and matrix.dtype == "q4_k"
    base: Any = matrix.data
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base).__name__ in ("mmap", "memoryview")
    tower = model.vision_tower.encoder.layers[0].mlp.fc1.matrix
    assert tower is not None and tower.dtype == "float16"


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"clip.vision.block_count": 5}, ConfigError, "says it has 5 vision blocks"),
        ({"llama.block_count": 3}, llavakit.LlavakitError, "lacks 9 of 71 tensors"),
        ({"llama.embedding_length": None}, ConfigError, "embedding_length.*missing"),
        ({"llama.attention.head_count": 7}, ConfigError, "7 attention heads"),
        ({"llama.rope.dimension_count": 8}, ConfigError, "8 of 32 dimensions"),
        ({"clip.vision.image_grid_pinpoints": 1}, FormatError, "LLaVA-1.6"),
        ({"llama.expert_count": 8}, FormatError, "experts"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_refused(
    tmp_path: Path, metadata: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_pair(tmp_path, _config(), types=("q8_0",), metadata=metadata)
    with pytest.raises(error, match=message):
        llavakit.load(tmp_path / "model.gguf", device="cpu")


def test_projector_is_found_or_asked_for(tmp_path: Path) -> None:
    write_pair(tmp_path, _config(), types=("q8_0",))
    model, projector = tmp_path / "model.gguf", tmp_path / "mmproj-model-f16.gguf"
    with pytest.raises(FormatError, match="is a projector"):
        llavakit.load(projector, device="cpu")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = projector.rename(elsewhere / "vision.gguf")
    with pytest.raises(ModelNotFoundError, match="--mmproj FILE"):
        llavakit.load(model, device="cpu")
    assert llavakit.load(model, mmproj=moved, device="cpu").name == str(model)
    (elsewhere / "wide").mkdir()
    wide = _config()
    wide = replace(wide, text_config=replace(wide.text_config, hidden_size=512, head_dim=64))
    write_pair(elsewhere / "wide", wide, types=("q8_0",))
    with pytest.raises(ShapeError, match="belong to different models"):
        llavakit.load(model, mmproj=elsewhere / "wide" / "mmproj-model-f16.gguf", device="cpu")
