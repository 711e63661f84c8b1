"""Opening and reading large files costs no memory of its own, and the views are the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llavakit.weights.mapped_file import MappedFile
from llavakit.weights.safetensors_file import open_safetensors
from llavakit.weights.torch_file import open_torch_file
from tests.unit.weights import builders as b

SIX_GB = 6 * 1024**3


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    pytest.skip("this system does not tell RssAnon")


def sparse(path: Path) -> int:
    header = {"a": {"dtype": "F16", "shape": [SIX_GB // 2], "data_offsets": [0, SIX_GB]}}
    content = b.raw_safetensors(header, b"")
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + SIX_GB)
    return len(content)


def test_a_file_of_six_gigabytes_opens_without_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    sparse(path)
    before = anonymous_bytes()
    tensor = open_safetensors(path)["a"]
    data = tensor.data
    assert data.nbytes == SIX_GB
    for start in range(0, SIX_GB, SIX_GB // 64):  # touch pages all over the file
        assert data[start] == 0
    assert anonymous_bytes() - before < 16 * 1024**2


def test_reading_and_releasing_keeps_the_peak_flat(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    names = [f"t{idx}" for idx in range(8)]
    path.write_bytes(b.safetensors_bytes({name: np.ones(2 * 1024**2, np.float32) for name in names}))

    def mapped_bytes() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile:"))

    tensors = open_safetensors(path)
    before = mapped_bytes()
    peak = 0
    for name in names:
        assert float(tensors[name].data.view(np.float32).sum()) == 2 * 1024**2
        peak = max(peak, mapped_bytes() - before)
        tensors[name].release()
    assert peak < 24 * 1024**2  # one tensor of 8 MiB and read-ahead, not 64 MiB
    assert float(tensors["t3"].data.view(np.float32)[0]) == 1.0  # released pages come back from the file


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_writing_into_a_tensor_never_reaches_the_file(tmp_path: Path, suffix: str) -> None:
    state = {"first": np.arange(8, dtype=np.float32)}
    path = tmp_path / f"file.{suffix}"
    if suffix == "bin":
        b.write_torch(path, state)
    else:
        path.write_bytes(b.safetensors_bytes(state))
    before = path.read_bytes()
    tensor = (open_torch_file if suffix == "bin" else open_safetensors)(path)["first"]
    tensor.data[:] = 255
    assert path.read_bytes() == before


def test_a_misaligned_tensor_is_copied_so_that_it_can_be_viewed(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-(8 + len(header)) % 4 + 1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.array([1.5, -2.0], np.float32).tobytes())
    assert open_safetensors(path)["a"].data.view(np.float32).tolist() == [1.5, -2.0]


def test_an_aligned_tensor_is_a_view_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b.safetensors_bytes({"a": np.arange(4, dtype=np.float32)}))
    tensor = open_safetensors(path)["a"]
    assert not tensor.data.flags.owndata
    assert np.shares_memory(tensor.data, tensor.file.view(tensor.start, tensor.num_bytes))


def test_a_released_range_smaller_than_a_page_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 10)
    file = MappedFile(path)
    file.release(0, 30)
    assert file.view(3, 3).tobytes() == b"abc"
