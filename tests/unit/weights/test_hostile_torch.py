"""Damaged and hostile ``.bin`` files: nothing in them runs, each fault is a FormatError."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llavakit.core.errors import FormatError, LlavakitError
from llavakit.weights.state_dict_pickle import read_state_dict
from llavakit.weights.torch_file import open_torch_file
from tests.unit.weights import builders as b

STATE = {"first": np.arange(6, dtype=np.float32).reshape(2, 3), "second": np.ones(4, np.float16)}
PICKLE = b.tensor_pickle(STATE)
FLOATS = b.storage("FloatStorage", "0", 6)


def opened(tmp_path: Path, data_pkl: bytes | None = None, **options: Any) -> dict[str, Any]:
    path = tmp_path / "pytorch_model.bin"
    b.write_torch(path, STATE, data_pkl=data_pkl, **options)
    return open_torch_file(path)


def test_the_honest_file_opens(tmp_path: Path) -> None:
    tensors = opened(tmp_path)
    assert {name: tensor.data.tobytes() for name, tensor in tensors.items()} == {
        name: value.tobytes() for name, value in STATE.items()
    }


class _Executes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_runs_code_does_not(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "was-run"
    hostile = pickle.dumps({"weight": _Executes(trace)}, protocol)
    with pytest.raises(FormatError):
        opened(tmp_path, hostile)
    assert not trace.exists()
    pickle.loads(hostile)  # the attack itself works, so the refusal above means something
    assert trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("posix", "system"), ("torch", "load"),
     ("torch._utils", "_rebuild_qtensor"),
     ("torch.serialization", "load"), ("numpy.core.multiarray", "_reconstruct"), ("functools", "partial"),
     ("collections", "deque"), ("builtins", "getattr"), ("operator", "attrgetter"), ("torch", "os.systemStorage")],
)  # fmt: skip
def test_globals_that_no_state_dict_needs_are_named_and_refused(tmp_path: Path, module: str, name: str) -> None:
    hostile = f"c{module}\n{name}\n.".encode()
    with pytest.raises(FormatError, match=f"{module}.{name}.*was not run"):
        opened(tmp_path, hostile)
    with pytest.raises(FormatError, match=f"{module}.{name}"):
        opened(tmp_path, pickle.PROTO + b"\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c"
               + bytes([len(name)]) + name.encode() + b"\x93.")  # fmt: skip


HOSTILE: dict[str, bytes] = {
    "an extension code": b"\x80\x02\x82\x01.",
    "an instance the old way": b"(ios\nsystem\n.",
    "a new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "BUILD on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "a call of a storage class": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a call with too few arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "an unknown persistent id": b"\x80\x02K\x01Q.",
    "a textual persistent id": b"Pstorage\n.",
    "a memo entry that is not there": b"\x80\x02h\x05.",
    "a huge memo index": b"\x80\x02Nr\xff\xff\xff\xff0.",
    "bytes of 2**62": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
    "text of 2**31": b"\x80\x02X\xff\xff\xff\x7f.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an empty stack": b"\x80\x02.",
    "a mark as the result": b"\x80\x02(.",
    "pops from nothing": b"\x80\x02\x87.",
    "keys without values": b"\x80\x02}(X\x01\x00\x00\x00au.",
    "not a dict": b.dump([1, 2]),
    "a tensor, not a dict": b.dump(b.described(FLOATS, 0, (6,), (1,))),
    "an unknown storage": b.dump({"a": b.described(b.storage("ComplexStorage", "0", 6), 0, (6,), (1,))}),
    "a storage that is not there": b.dump({"a": b.described(b.storage("FloatStorage", "9", 6), 0, (6,), (1,))}),
    "a path as storage": b.dump({"a": b.described(b.storage("FloatStorage", "../version", 6), 0, (6,), (1,))}),
    "a key that is no text": b.dump({"a": b.described(b.storage("FloatStorage", (1,), 6), 0, (6,), (1,))}),
    "more elements than the storage": b.dump({"a": b.described(FLOATS, 0, (7,), (1,))}),
    "an offset behind the storage": b.dump({"a": b.described(FLOATS, 1, (6,), (1,))}),
    "a negative offset": b.dump({"a": b.described(FLOATS, -1, (6,), (1,))}),
    "a negative size": b.dump({"a": b.described(FLOATS, 0, (-6,), (1,))}),
    "sizes that overflow": b.dump({"a": b.described(FLOATS, 0, (2**40, 2**40), (2**40, 1))}),
    "a transposed tensor": b.dump({"a": b.described(FLOATS, 0, (3, 2), (1, 3))}),
    "stride and shape of different lengths": b.dump({"a": b.described(FLOATS, 0, (6,), ())}),
    "a shape of text": b.dump({"a": b.described(FLOATS, 0, ("6",), (1,))}),
    "a shape with a truth value": b.dump({"a": b.described(FLOATS, 0, (True,), (1,))}),
    "40 dimensions": b.dump({"a": b.described(FLOATS, 0, (1,) * 40, (1,) * 40)}),
    "a storage of another length": b.dump({"a": b.described(b.storage("FloatStorage", "0", 5), 0, (5,), (1,))}),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(HOSTILE))
def test_one_fault_per_pickle(tmp_path: Path, fault: str) -> None:
    with pytest.raises(FormatError, match=r"pytorch_model\.bin"):
        opened(tmp_path, HOSTILE[fault])


def test_nested_tuples_as_a_key_do_not_hash_for_ever(tmp_path: Path) -> None:
    bomb = b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s."  # every step doubles the tuple
    started = time.monotonic()
    with pytest.raises(FormatError, match="key of type tuple"):
        opened(tmp_path, bomb)
    assert time.monotonic() - started < 5


def test_what_trainers_add_is_no_obstacle() -> None:
    """The metadata of a module's state dict, a wrapping ``state_dict``, other entries, parameters, shared storages."""
    tensor = b.described(FLOATS, 0, (2, 3), (3, 1))
    parameter = b._Call(b._Global("torch._utils", "_rebuild_parameter"), tensor, True, OrderedDict())
    inner = OrderedDict(weight=tensor, same=parameter, row=b.described(FLOATS, 3, (1, 3), (7, 1)))
    inner._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    found = read_state_dict(
        b.dump({"state_dict": inner, "epoch": 3, "betas": (0.9, 0.99), "steps": {1: [2.5, None]}}), "x"
    )
    assert list(found) == ["weight", "same", "row"]
    assert found["same"] == found["weight"]
    assert (found["row"].offset, found["row"].shape) == (3, (1, 3))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="compressed"):
        opened(tmp_path, compression=zipfile.ZIP_DEFLATED)


def test_a_zip_bomb_unfolds_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000_000)
    with pytest.raises(FormatError, match="100000000 bytes"):
        open_torch_file(path)


def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    b.write_torch(path, STATE)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(FormatError, match="same name"):
        open_torch_file(path)


@pytest.mark.parametrize("names", [["archive/other"], ["a/data.pkl", "b/data.pkl"]])
def test_not_exactly_one_pickle_is_refused(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PICKLE)
    with pytest.raises(FormatError, match=r"with \d data\.pkl"):
        open_torch_file(path)


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    b.write_torch(path, STATE)
    path.write_bytes(path.read_bytes().replace(b"little", b"bigbig"))
    with pytest.raises(FormatError, match="big-endian"):
        open_torch_file(path)


def test_files_of_before_2020_get_advice(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    with pytest.raises(FormatError, match="save them as safetensors"):
        open_torch_file(path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_anywhere(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "pytorch_model.bin"
    b.write_torch(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FormatError, match="empty" if keep == 0.0 else "truncated or damaged"):
        open_torch_file(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_any_damage_to_the_pickle_gives_our_error_or_tensors(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(PICKLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = opened(tmp_path, bytes(content))
    except LlavakitError:
        return
    assert all(tensor.data.nbytes == tensor.num_bytes for tensor in tensors.values())


# Pieces of pickles, in any order: deeper into the machine than random bytes get.
PIECES = [
    b"(", b")", b"}", b"]", b"0", b"1", b"2", b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\xff", b"X\x01\x00\x00\x00a",
    b"q\x00",
    b"h\x00", b"\x94", b"\x85", b"\x86", b"\x87", b"t", b"s", b"u", b"a", b"e", b"R", b"Q", b"b", b"\x93", b"\x81",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n", b"X\x07\x00\x00\x00storage", b"X\x03\x00\x00\x00cpu", b"X\x01\x00\x00\x000",
    b"G" + bytes(8),
]  # fmt: skip


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_program_of_pickle_operations_gives_our_error_or_a_dict(pieces: list[bytes]) -> None:
    try:
        found = read_state_dict(b"\x80\x02" + b"".join(pieces) + b".", "x.bin")
    except FormatError:
        return
    assert isinstance(found, dict)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_any_damage_to_the_archive_gives_our_error_or_tensors(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "pytorch_model.bin"
    b.write_torch(path, STATE)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = open_torch_file(path)
    except LlavakitError:
        return
    assert all(tensor.data.nbytes == tensor.num_bytes for tensor in tensors.values())
