"""Conversions of the embedded model: read by the format's own package, run by us, and bit for bit back again."""

from __future__ import annotations

import json
from pathlib import Path

import gguf.quants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import llavakit
from llavakit.conversion.convert import Conversion, convert
from llavakit.core.shapes import expected_tensors
from llavakit.processing.tokenizer import Tokenizer
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import embedded_folder, resolve
from tests.parity.reference import relative_error

gguf = pytest.importorskip("gguf", reason="reads GGUF files as other programs do: pip install gguf")


QUESTIONS = ["How many red circles are there?", "Where is the star?", "What color is the triangle?"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conversion]:
    folder = tmp_path_factory.mktemp("pairs")
    return {
        name: convert("llava:tiny", folder / f"tiny-{name}.gguf", type_name=name) for name in ("f16", "q8_0", "q4_k_m")
    }


def _read(file: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(file)


def test_the_formats_own_package_reads_keys_and_vocabulary(pairs: dict[str, Conversion]) -> None:
    text, vision = (_read(file) for file in pairs["q4_k_m"].files)
    config = open_resolved(resolve("llava:tiny")).checkpoint.config
    fields = text.fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert fields["llama.block_count"].contents() == config.text_config.num_hidden_layers
    assert fields["llama.rope.dimension_count"].contents() == config.text_config.head_dim
    pieces = fields["tokenizer.ggml.tokens"].contents()
    assert len(pieces) == config.text_config.vocab_size
    assert pieces[config.image_token_id] == "<image>"
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert kinds[3] == gguf.TokenType.BYTE
    assert vision.fields["general.architecture"].contents() == "clip"
    assert vision.fields["clip.projector_type"].contents() == "mlp"
    assert vision.fields["clip.vision.block_count"].contents() == config.num_vision_blocks


def test_every_tensor_is_in_the_file_within_its_types_error(pairs: dict[str, Conversion]) -> None:
    """Weights, expanded by the format's own package, against the originals. Queries and keys are interleaved there."""
    source = open_resolved(resolve("llava:tiny")).checkpoint
    heads = source.config.text_config.num_attention_heads
    for name, allowed in (("f16", 0.0), ("q8_0", 0.006), ("q4_k_m", 0.09)):
        found = {tensor.name: tensor for file in pairs[name].files for tensor in _read(file).tensors}
        assert len(found) == len(expected_tensors(source.config))
        for ours, theirs in (("language_model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"),
                             ("language_model.layers.5.mlp.down_proj.weight", "blk.5.ffn_down.weight"),
                             ("lm_head.weight", "output.weight"),
                             ("vision_tower.encoder.layers.1.mlp.fc1.weight", "v.blk.1.ffn_down.weight")):  # fmt: skip
            tensor = source.tensors[ours]
            expected = tensor.data.view(np.float16).astype(np.float32).reshape(tensor.shape)
            if "attn_q" in theirs:
                expected = expected.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
            stored = gguf.quants.dequantize(found[theirs].data, found[theirs].tensor_type).reshape(tensor.shape)
            error = np.sqrt(np.square(stored - expected).mean()) / expected.std()
            assert error <= (0.0 if theirs.startswith("v.") else allowed), (name, theirs)


def test_a_pair_answers_as_the_model_it_came_from(pairs: dict[str, Conversion]) -> None:
    """F16: the same numbers, so the same tokens. Eight bits: the same answers to what the model is sure of."""
    picture = Image.open(Path("examples/shapes.png"))
    original = llavakit.load("llava:tiny", device="cpu")
    expected = [original.chat(question, images=[picture]).text for question in QUESTIONS]
    for name in ("f16", "q8_0"):
        model = llavakit.load(pairs[name].files[0], device="cpu")
        assert model.preset == original.preset
        assert [model.chat(question, images=[picture]).text for question in QUESTIONS] == expected, name


def test_vision_features_of_a_pair_are_right(pairs: dict[str, Conversion]) -> None:
    """Products of words are off by 2e-4 of their norm; what every block adds is off by little more, and so are sums of
    such blocks. Features rounded to bfloat16 would be off by 5e-3.
    """
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = [
            llavakit.load(name, device="cpu", dtype="float32").model.encode_images(pixels)
            for name in ("llava:tiny", pairs["q4_k_m"].files[0])
        ]
    assert relative_error(features[1], features[0]) < 2e-3


def test_token_ids_survive(pairs: dict[str, Conversion]) -> None:
    """The embedded tokenizer lists fewer merges than its pieces allow; the file carries it whole."""
    opened = open_resolved(resolve(pairs["f16"].files[0]))
    assert opened.vocabulary is not None
    assert opened.vocabulary.tokenizer_json is not None
    config = opened.checkpoint.config
    ours = Tokenizer.from_content(opened.vocabulary.tokenizer_json, config=config)
    theirs = Tokenizer.from_folder(embedded_folder(), config=config)
    for text in ("Where is the red circle? ASSISTANT:", "naïve ROBOT 🦙\n\t xx", "  two  spaces"):
        assert ours.encode(text) == theirs.encode(text)


def test_there_and_back_is_bit_for_bit(pairs: dict[str, Conversion], tmp_path: Path) -> None:
    convert(pairs["f16"].files[0], tmp_path / "back", type_name="f16")
    original, back = (load_file(folder / "model.safetensors") for folder in (embedded_folder(), tmp_path / "back"))
    assert original.keys() == back.keys()
    assert all((original[name] == back[name]).all() for name in original)
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "llavakit.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((embedded_folder() / name).read_text())


def test_from_one_type_to_another(pairs: dict[str, Conversion], tmp_path: Path) -> None:
    """The same type is copied byte for byte, another one is expanded first; the result says that it was quantized."""
    copied = convert(pairs["q8_0"].files[0], tmp_path / "copied.gguf", type_name="q8_0")
    assert copied.was_quantized
    old, new = (_read(files.files[0]) for files in (pairs["q8_0"], copied))
    assert all((a.data == b.data).all() for a, b in zip(old.tensors, new.tensors, strict=True))
    smaller = convert(pairs["q8_0"].files[0], tmp_path / "smaller.gguf", type_name="q4_0")
    assert smaller.num_bytes < copied.num_bytes
    assert llavakit.load(smaller.files[0], device="cpu").chat(QUESTIONS[0], images=["examples/shapes.png"]).text
