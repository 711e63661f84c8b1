"""Conversions that are stopped, refused or hostile; mixtures against published sizes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llavakit.conversion import convert as module
from llavakit.conversion.convert import convert
from llavakit.core.config_json import parse_llava_config
from llavakit.core.errors import ConfigError, DiskFullError, NonFiniteError, StoreError
from llavakit.core.shapes import expected_tensors
from llavakit.weights import streamed_file
from llavakit.weights.checkpoint import open_checkpoint
from llavakit.weights.ggml_types import stored_bytes
from llavakit.weights.gguf_checkpoint import open_gguf_checkpoint
from llavakit.weights.mixtures import MIXTURES, choose_type, find_mixture
from llavakit.weights.store import embedded_folder
from tests.unit.core.test_config_json import PUBLISHED_7B, SIZES_13B
from tests.unit.weights.builders import CONFIG, HF_CONFIG, make_state, safetensors_bytes, to_legacy

_7B = parse_llava_config({**PUBLISHED_7B, "text_config": {**PUBLISHED_7B["text_config"], "vocab_size": 32000},
                          "image_token_index": 32000})  # fmt: skip
_13B = parse_llava_config(
    {**PUBLISHED_7B, "text_config": {**PUBLISHED_7B["text_config"], **SIZES_13B, "vocab_size": 32000}}
)


def _language_bytes(config: Any, mixture: str) -> int:
    return sum(
        stored_bytes(choose_type(name, shape, find_mixture(mixture), config), math.prod(shape))
        for name, shape in expected_tensors(config).items()
        if name.startswith(("language_model", "lm_head"))
    )


@pytest.mark.parametrize(
    ("mixture", "num_bytes"),
    [("q4_0", 7_365_089_280), ("q4_k_s", 7_422_433_280), ("q4_k_m", 7_865_210_880), ("q5_k_m", 9_229_178_880),
     ("q6_k", 10_678_394_880), ("q8_0", 13_830_574_080), ("f16", 26_032_558_080)],
)  # fmt: skip
def test_tensor_bytes_of_the_13b_are_those_of_published_files(mixture: str, num_bytes: int) -> None:
    """Source: logs of llama.cpp loading such files."""
    assert _language_bytes(_13B, mixture) == num_bytes


@pytest.mark.parametrize(
    ("mixture", "gib"),
    [("q3_k_s", 2.75), ("q3_k_m", 3.07), ("q3_k_l", 3.35), ("q4_0", 3.56),
     ("q4_k_s", 3.59), ("q4_k_m", 3.80), ("q5_0", 4.33), ("q5_k_s", 4.33), ("q5_k_m", 4.45),
     ("q6_k", 5.15)],
)  # fmt: skip
def test_sizes_of_the_7b_are_those_that_peers_print(mixture: str, gib: float) -> None:
    """Source: the table in the help of llama.cpp's quantizer, which rounds to two digits."""
    assert _language_bytes(_7B, mixture) / 2**30 == pytest.approx(gib, abs=0.0101)


def test_rows_of_broken_blocks_fall_back() -> None:
    assert choose_type("language_model.layers.0.mlp.up_proj.weight", (8, 704), MIXTURES["q4_k_m"], CONFIG) == "q5_0"
    assert choose_type("lm_head.weight", (8, 704), MIXTURES["q4_k_m"], CONFIG) == "q8_0"
    assert choose_type("lm_head.weight", (8, 30), MIXTURES["q4_k_m"], CONFIG) == "float16"
    assert choose_type("language_model.norm.weight", (8,), MIXTURES["q4_k_m"], CONFIG) == "float32"


def _small_folder(folder: Path, state: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(to_legacy(state)))
    return folder


def _list(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("die_at", [0, 1, 20, 70, 140])
def test_a_killed_conversion_leaves_no_final_name_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    monkeypatch.setattr(streamed_file, "_SECONDS_BETWEEN_MARKS", 0.0)
    convert("llava:tiny", tmp_path / "whole.gguf", type_name="q8_0")
    expected = (tmp_path / "whole.gguf").read_bytes()
    encode, made = module.encode_tensor, [0]

    def die_there(*arguments: Any) -> Any:
        if made[0] == die_at:
            raise _KilledError
        made[0] += 1
        return encode(*arguments)

    folder = tmp_path / "out"
    monkeypatch.setattr(module, "encode_tensor", die_there)
    with pytest.raises(_KilledError):
        convert("llava:tiny", folder / "whole.gguf", type_name="q8_0")
    assert not [name for name in _list(folder) if name.endswith(".gguf")]
    made[0] = -1000
    convert("llava:tiny", folder / "whole.gguf", type_name="q8_0")
    assert made[0] + 1000 == len(expected_tensors(open_checkpoint(embedded_folder()).config)) - die_at
    assert (folder / "whole.gguf").read_bytes() == expected
    assert _list(folder) == ["mmproj-whole-f16.gguf", "whole.gguf"]


def test_a_part_of_another_conversion_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_file, "_SECONDS_BETWEEN_MARKS", 0.0)
    encode, made = module.encode_tensor, [0]

    def die_later(*arguments: Any) -> Any:
        made[0] += 1
        if made[0] == 30:
            raise _KilledError
        return encode(*arguments)

    monkeypatch.setattr(module, "encode_tensor", die_later)
    with pytest.raises(_KilledError):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    monkeypatch.setattr(module, "encode_tensor", encode)
    convert("llava:tiny", tmp_path / "a.gguf", type_name="q5_0")
    convert("llava:tiny", tmp_path / "b" / "a.gguf", type_name="q5_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b" / "a.gguf").read_bytes()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("precious")
    with pytest.raises(StoreError, match="--overwrite"):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    assert (tmp_path / "a.gguf").read_text() == "precious"
    convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0", is_overwrite_allowed=True)
    assert open_gguf_checkpoint(tmp_path / "a.gguf")


def test_input_and_output_the_same_are_refused(tmp_path: Path) -> None:
    convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    before = (tmp_path / "a.gguf").read_bytes()
    with pytest.raises(StoreError, match="part of the model"):
        convert(tmp_path / "a.gguf", tmp_path / "a.gguf", type_name="q4_0", is_overwrite_allowed=True)
    folder = tmp_path / "folder"
    shutil.copytree(embedded_folder(), folder)
    with pytest.raises(StoreError, match="part of the model"):
        convert(folder, folder, type_name="f32", is_overwrite_allowed=True)
    assert (tmp_path / "a.gguf").read_bytes() == before


@pytest.mark.parametrize(
    ("value", "type_name", "message"), [(np.nan, "q8_0", "NaN"), (np.inf, "f32", "NaN"), (1e6, "f16", "bf16 or f32")]
)
def test_weights_that_cannot_be_kept_are_refused_by_name(
    tmp_path: Path, value: float, type_name: str, message: str
) -> None:
    state = make_state()
    state["language_model.layers.1.self_attn.k_proj.weight"][3, 4] = value
    folder = _small_folder(tmp_path / "model", state)
    shutil.copy(embedded_folder() / "tokenizer.json", folder)
    out = tmp_path / "out"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {k: v for k, v in content["model"]["vocab"].items() if v < 90}
    content["model"]["merges"], content["added_tokens"] = [], content["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(NonFiniteError, match=message) as caught:
        convert(folder, out, type_name=type_name) if type_name != "q8_0" else convert(
            folder, out / "m.gguf", type_name=type_name
        )
    assert "k_proj" in str(caught.value)
    assert not _list(out)


def test_a_full_disk_is_told_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DiskFullError, match="5 are free"):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "type_name", "message"),
    [("folder", "q4_k_m", r"\.gguf"), ("a.gguf", "iq2_xs", "the types are"), ("a.gguf", "q8_0 ", "the types are")],
)
def test_senseless_requests_are_refused(tmp_path: Path, out: str, type_name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert("llava:tiny", tmp_path / out, type_name=type_name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be made"):
        convert("llava:tiny", tmp_path / "file" / "a.gguf", type_name="q8_0")


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    convert("llava:tiny", tmp_path / "a.gguf", type_name="f16", on_progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert seen[-1][0] >= 0.99 * seen[-1][1]
