"""Damaged and hostile folders and safetensors files: each fault a clear FormatError, never anything else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llavakit.core.errors import FormatError, LlavakitError
from llavakit.weights.checkpoint import open_checkpoint
from llavakit.weights.gguf_checkpoint import open_gguf_checkpoint
from llavakit.weights.safetensors_file import open_safetensors
from llavakit.weights.torch_file import open_torch_file
from tests.unit.weights import builders as b

STATE = {"first": np.arange(6, dtype=np.float32).reshape(2, 3), "second": np.ones(4, np.float16)}
GOOD = b.safetensors_bytes(STATE)
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


def opened(tmp_path: Path, content: bytes) -> dict[str, Any]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return open_safetensors(path)


def test_the_honest_file_opens(tmp_path: Path) -> None:
    tensors = opened(tmp_path, GOOD)
    assert {name: tensor.data.tobytes() for name, tensor in tensors.items()} == {
        name: value.tobytes() for name, value in STATE.items()
    }


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40, len(GOOD) - 1])
def test_truncated_anywhere(tmp_path: Path, length: int) -> None:
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        opened(tmp_path, GOOD[:length])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "llava.gguf"])
def test_git_lfs_pointer_is_called_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4998\n")
    read = {".safetensors": open_safetensors, ".bin": open_torch_file, ".gguf": open_gguf_checkpoint}[path.suffix]
    with pytest.raises(FormatError, match=f"{name} is a Git LFS pointer of 69 bytes .* `git lfs pull` in '{tmp_path}'"):
        read(path)  # type: ignore[operator]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "bytes behind the last tensor": (GOOD + b"x", "valid"),
    "header longer than the file": ((10**6).to_bytes(8, "little") + b"{}", "claims 1000000 bytes"),
    "header of 2**63 bytes": ((2**63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808"),
    "header is no JSON": (b.raw_safetensors(b"{not json}", b""), "JSON"),
    "header is no UTF-8": (b.raw_safetensors(b'{"\xff\xfe":1}', b""), "JSON"),
    "header is a list": (b.raw_safetensors([], b""), "list"),
    "header is nested deeply": (b.raw_safetensors(b"[" * 200_000, b""), "JSON"),
    "a number of 10,000 digits": (b.raw_safetensors(b'{"a":' + b"9" * 10_000 + b"}", b""), "JSON"),
    "overlapping ranges": (b.raw_safetensors({"a": ENTRY, "b": ENTRY}, EIGHT), "valid"),
    "a hole": (b.raw_safetensors({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)), "valid"),
    "range beyond the file": (
        b.raw_safetensors({"a": {**ENTRY, "shape": [4], "data_offsets": [0, 16]}}, EIGHT), "valid"
    ),
    "range reversed": (b.raw_safetensors({"a": {**ENTRY, "data_offsets": [8, 0]}}, EIGHT), "valid"),
    "negative offset": (b.raw_safetensors({"a": {**ENTRY, "data_offsets": [-8, 0]}}, EIGHT), "valid"),
    "shape against range": (b.raw_safetensors({"a": {**ENTRY, "shape": [3]}}, EIGHT), "valid"),
    "dtype against range": (b.raw_safetensors({"a": {**ENTRY, "dtype": "F16"}}, EIGHT), "valid"),
    "dimensions that overflow": (b.raw_safetensors({"a": {**ENTRY, "shape": [2**32, 2**32, 2**32]}}, EIGHT), "valid"),
    "negative dimension": (b.raw_safetensors({"a": {**ENTRY, "shape": [-2]}}, EIGHT), "valid"),
    "unknown dtype": (b.raw_safetensors({"a": {**ENTRY, "dtype": "Q4"}}, EIGHT), "valid"),
    "known dtype, not ours": (
        b.raw_safetensors({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}, EIGHT), "stored as F8_E4M3"
    ),
    "entry is no object": (b.raw_safetensors({"a": 3}, b""), "valid"),
    "entry without shape": (b.raw_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 0]}}, b""), "valid"),
    "the same name twice": (
        b.raw_safetensors(b'{"a":' + json.dumps(ENTRY).encode() + b',"a":' + json.dumps(ENTRY).encode() + b"}", EIGHT),
        "twice",
    ),
    "HTML instead of a model": (b"<!DOCTYPE html><html>not found</html>", "no safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(HOSTILE))
def test_one_fault_per_file(tmp_path: Path, fault: str) -> None:
    content, message = HOSTILE[fault]
    with pytest.raises(FormatError, match=message):
        opened(tmp_path, content)


def test_a_header_above_our_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((50_000_000).to_bytes(8, "little"))
        file.truncate(60_000_000)
    with pytest.raises(FormatError, match="at most 16777216 are read"):
        open_safetensors(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_any_damage_to_the_header_gives_our_error_or_the_same_kind_of_file(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD)
    header_end = 8 + int.from_bytes(GOOD[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = opened(tmp_path, bytes(content))
    except LlavakitError:
        return
    assert all(tensor.data.nbytes == tensor.num_bytes for tensor in tensors.values())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.dictionaries(
        st.text(max_size=5),
        JSON_VALUES | st.fixed_dictionaries(
            {"dtype": st.sampled_from(["F32", "BF16", "I64", "X"]) | JSON_VALUES,
             "shape": st.lists(st.integers(-2, 2**65), max_size=3) | JSON_VALUES,
             "data_offsets": st.lists(st.integers(-8, 2**65), max_size=3) | JSON_VALUES}
        ), max_size=3,
    )
)  # fmt: skip
def test_any_header_gives_our_error_or_tensors(tmp_path: Path, header: dict[str, Any]) -> None:
    try:
        tensors = opened(tmp_path, b.raw_safetensors(header, bytes(16)))
    except LlavakitError:
        return
    assert all(tensor.data.nbytes == tensor.num_bytes for tensor in tensors.values())


# --- folders


def test_an_empty_folder_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_lists_what_it_has(tmp_path: Path) -> None:
    b.write_folder(tmp_path, b.to_legacy(b.make_state()))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no weights.*found: config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000, b'"text"', b"{}"])
def test_a_damaged_config_is_one_of_our_errors(tmp_path: Path, content: bytes) -> None:
    b.write_folder(tmp_path, b.to_legacy(b.make_state()))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LlavakitError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(5 * 1024**3)
    with pytest.raises(FormatError, match="at most"):
        open_checkpoint(tmp_path)


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FormatError, match="no ordinary file"):
        open_checkpoint(tmp_path)


def sharded(tmp_path: Path) -> Path:
    return b.write_folder(tmp_path / "m", b.to_legacy(b.make_state()), num_shards=3)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FormatError, match="lacks 1 of 3 shards: model-00002-of-00003"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\\b.safetensors", "x" * 5000,
     "a\0.safetensors", "config.json", 7, None],
)  # fmt: skip
def test_an_index_that_names_something_else_than_a_shard_is_refused(tmp_path: Path, name: Any) -> None:
    folder = sharded(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(GOOD)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["language_model.model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="refused"):
        open_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, "text", 5])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: Any) -> None:
    folder = sharded(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match="weight_map"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    first, second = (folder / f"model-0000{idx}-of-00003.safetensors" for idx in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(FormatError, match=r"stands in model-00001-of-00003\.safetensors and in model-00002"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = b.write_folder(tmp_path / "m", b.to_legacy(b.make_state()))
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(FormatError, match="link that leads out"):
        open_checkpoint(folder)


def test_links_inside_a_folder_and_to_a_whole_folder_are_followed(tmp_path: Path) -> None:
    folder = b.write_folder(tmp_path / "m", b.to_legacy(b.make_state()))
    (folder / "model.safetensors").rename(folder / "real.safetensors")
    (folder / "model.safetensors").symlink_to("real.safetensors")
    (tmp_path / "alias").symlink_to(folder)
    assert len(open_checkpoint(tmp_path / "alias").tensors) == len(b.make_state())


def test_a_link_to_itself_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = b.write_folder(tmp_path / "m", b.to_legacy(b.make_state()))
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(FormatError):
        open_checkpoint(folder)
