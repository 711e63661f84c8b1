"""The GGUF reader believes nothing: every false field is named, and no file makes it crash, hang or eat memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.core.errors import FormatError
from llavakit.weights.gguf_file import open_gguf
from tests.unit.weights.gguf_bytes import Entry, make_gguf, string, value

_HUGE = 2**63


def _write(folder: Path, content: bytes) -> Path:
    file = folder / "model.gguf"
    file.write_bytes(content)
    return file


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    numbers = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60000), 3: ("h", -300), 4: ("I", 2**31), 5: ("i", -5),
               6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**63), 11: ("q", -(2**40)), 12: ("d", 0.1)}  # fmt: skip
    pairs = [(f"n{kind}", value(kind, struct.pack(f"<{code}", number))) for kind, (code, number) in numbers.items()]
    pairs.append(("text", value(8, string("ü"))))
    pairs.append(("texts", value(9, struct.pack("<IQ", 8, 2) + string("a") + string(""))))
    pairs.append(("array", value(9, struct.pack("<IQ3i", 5, 3, 1, -2, 3))))
    found = open_gguf(_write(tmp_path, make_gguf(pairs)))
    assert {key: found.metadata[f"n{key}"] for key in numbers} == {
        kind: number for kind, (_, number) in numbers.items()
    }
    assert found.metadata["text"] == "ü"
    assert found.metadata["texts"] == ["a", ""]
    assert np.array_equal(np.asarray(found.metadata["array"]), [1, -2, 3])


def test_tensors_lie_where_they_are(tmp_path: Path) -> None:
    entries = [Entry("b", (3, 2), 0, 32), Entry("a", (32,), 8, 64)]
    data = bytes(32) + np.arange(6, dtype="<f4").tobytes() + bytes(8) + bytes(range(34))
    found = open_gguf(_write(tmp_path, make_gguf(entries=entries, data=data)))
    assert found.tensors["b"].shape == (2, 3)
    assert np.array_equal(found.tensors["b"].data.view("<f4"), np.arange(6))
    assert found.tensors["a"].dtype == "q8_0"
    assert found.tensors["a"].data.tobytes() == bytes(range(34))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"), (b"GG", "magic"), (make_gguf(magic=b"GGML"), "starts with b'GGML'"),
        (make_gguf(version=1), "version 1"), (make_gguf(version=4), "version 4"),
        (make_gguf(version=0x03000000), "big-endian"), (make_gguf(num_tensors=_HUGE), "tensors and"),
        (make_gguf(num_keys=_HUGE), "keys; at most"), (make_gguf(num_tensors=2), "needs|claims"),
        (make_gguf([("a", value(99, b""))]), "type 99"),
        (make_gguf([("a", value(8, string("x", length=_HUGE)))]), "claims"),
        (make_gguf([("a", value(8, string(b"\xff\xfe")))]), "no text"),
        (make_gguf([("a", value(9, struct.pack("<IQ", 4, _HUGE)))]), "elements"),
        (make_gguf([("a", value(9, struct.pack("<IQ", 8, _HUGE)))]), "strings"),
        (make_gguf([("a", value(9, struct.pack("<IQ", 9, 1) + value(9, b"") * 50))]), "array of type 9"),
        (make_gguf([("a", value(4, b"\1\0\0\0")), ("a", value(4, b"\1\0\0\0"))]), "stands twice"),
        (make_gguf([("general.alignment", value(4, struct.pack("<I", 0)))]), "power of two"),
        (make_gguf([("general.alignment", value(4, struct.pack("<I", 48)))]), "power of two"),
        (make_gguf([("general.alignment", value(8, string("32")))]), "power of two"),
        (make_gguf(entries=[Entry(), Entry()]), "stands twice"), (make_gguf(entries=[Entry(dims=())]), "0 dimensions"),
        (make_gguf(entries=[Entry(dims=(1,) * 5)]), "5 dimensions"),
        (make_gguf(entries=[Entry(dims=(4, 0))]), "impossible"),
        (make_gguf(entries=[Entry(dims=(2**40, 2**40))]), "impossible"),
        (make_gguf(entries=[Entry(type_id=16)]), "IQ2_XXS"), (make_gguf(entries=[Entry(type_id=4)]), "number 4"),
        (make_gguf(entries=[Entry(dims=(33,), type_id=8)]), "multiple of 32"),
        (make_gguf(entries=[Entry(dims=(128,), type_id=12)]), "multiple of 256"),
        (make_gguf(entries=[Entry(offset=7)]), "no multiple of 32"),
        (make_gguf(entries=[Entry(dims=(4000,))]), "ends at byte"),
        (make_gguf(entries=[Entry(offset=2**63)]), "ends at byte"),
        (make_gguf(entries=[Entry("a", (16,)), Entry("b", (4,), offset=32)]), "overlap"),
    ],
)  # fmt: skip
def test_false_fields_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_gguf(_write(tmp_path, content))


_VALID = make_gguf(
    [("general.architecture", value(8, string("llama"))),
     ("tokens", value(9, struct.pack("<IQ", 8, 3) + string("a") * 3)),
     ("scores", value(9, struct.pack("<IQ3f", 6, 3, 1, 2, 3))), ("general.alignment", value(4, struct.pack("<I", 32)))],
    [Entry("one", (8, 2), 0, 0), Entry("two", (32, 2), 8, 64)], data=bytes(160),
)  # fmt: skip
_EDITS = st.lists(st.tuples(st.integers(0, len(_VALID) - 1), st.integers(0, 255)), max_size=6)


@given(edits=_EDITS, keep=st.integers(0, len(_VALID)), extra=st.binary(max_size=40))
@settings(max_examples=500, deadline=None)
def test_mutated_files_open_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], keep: int, extra: bytes
) -> None:
    content = bytearray(_VALID)
    for position, byte in edits:
        content[position] = byte
    file = _write(tmp_path_factory.mktemp("gguf"), bytes(content[:keep]) + extra)
    tracemalloc.start()
    try:
        opened = open_gguf(file)
        for tensor in opened.tensors.values():
            assert tensor.start + tensor.num_bytes <= len(file.read_bytes())
    except FormatError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 400_000  # a file of 600 bytes, and what Python takes to say that it is wrong
