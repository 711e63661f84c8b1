"""PyTorch ``.bin`` checkpoints, read without running anything that is in them.

Such a file is a ZIP archive: a pickle that describes tensors, and their bytes. The pickle is interpreted with every
global but the handful that a plain state dict needs refused, and even those are stand-ins of ours that only record what
they were given. No code of the file's choosing runs; the bytes are mapped, not copied.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.core.errors import FormatError
from llavakit.weights.mapped_file import MappedFile, RawTensor

__all__ = ["open_torch_file"]

_MAX_PICKLE_BYTES = 64 * 1024**2
_MAX_ENTRIES = 100_000
_STORAGES = {"FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2), "BFloat16Storage": ("bfloat16", 2)}
_OTHER_STORAGES = {"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "ByteStorage": 1, "CharStorage": 1,
                   "BoolStorage": 1, "DoubleStorage": 8}  # fmt: skip


@dataclass(frozen=True)
class _StorageType:
    name: str


@dataclass(frozen=True)
class _Storage:
    type_name: str
    key: str
    num_elements: int


@dataclass(frozen=True)
class _Description:
    """What a pickled tensor says of itself."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def open_torch_file(path: Path) -> dict[str, RawTensor]:
    """Map a ``.bin`` file and list its tensors by their names in the file.

    Integer buffers are listed nowhere: no weight of LLaVA is one.

    Raises
    ------
    FormatError
        If the file is no ZIP archive, is damaged, or its pickle asks for anything but tensors.
    """
    file = MappedFile(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            if len(entries) > _MAX_ENTRIES:
                raise FormatError(f"{path.name} has {len(entries)} parts; at most {_MAX_ENTRIES} are read.")
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise FormatError(f"{path.name} is a ZIP archive with {len(pickles)} data.pkl; a PyTorch file has one.")
            if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
                raise FormatError(f"{path.name}: its pickle has {entries[pickles[0]].file_size} bytes; refused.")
            described = _Interpreter(archive.read(pickles[0]), path.name).tensors()
    except zipfile.BadZipFile as error:
        raise FormatError(
            f"{path.name} is no PyTorch ZIP file ({error}). Files of before 2020 must be converted: load them with "
            "torch.load(..., weights_only=True) and save them as safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, KeyError, OverflowError) as error:
        raise FormatError(f"{path.name} is damaged ({error}). Fetch the model again.") from error
    root = pickles[0].removesuffix("data.pkl")
    found = (_tensor(name, item, file, entries, root) for name, item in described.items())
    return {tensor.file_name: tensor for tensor in found if tensor is not None}


class _Interpreter(pickle.Unpickler):
    """A pickle machine whose only functions are the stand-ins below."""

    def __init__(self, data: bytes, file_name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._file_name = file_name

    def tensors(self) -> Mapping[str, _Description]:
        """Run the pickle; return the tensors of its state dict."""
        try:
            content = self.load()
        except FormatError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way; none of it is code of the file
            raise FormatError(f"{self._file_name}: its pickle cannot be read ({error}). Fetch the model again.") from error
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping):
            raise FormatError(f"{self._file_name} holds {type(content).__name__}, a state dict is needed.")
        return {str(name): item for name, item in content.items() if isinstance(item, _Description)}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global to its stand-in; refuse all others."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and (name in _STORAGES or name in _OTHER_STORAGES):
            return _StorageType(name)
        raise FormatError(
            f"{self._file_name} asks to run {module}.{name}, which a file of weights has no business with. "
            "It was not run. Do not use this file; fetch the model from its source as safetensors."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Note a storage; its bytes are looked up later."""
        kind, storage_type, key, _location, num_elements = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise FormatError(f"{self._file_name}: unknown storage {str(pid)[:80]!r}.")
        return _Storage(storage_type.name, str(key), int(num_elements))


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Description:
    if not isinstance(storage, _Storage):
        raise FormatError("a tensor without a storage.")
    return _Description(storage, int(offset), tuple(int(n) for n in shape), tuple(int(n) for n in stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _tensor(
    name: str, item: _Description, file: MappedFile, entries: Mapping[str, zipfile.ZipInfo], root: str
) -> RawTensor | None:
    where = f"{file.path.name}: tensor {name!r}"
    if item.storage.type_name in _OTHER_STORAGES:
        return None
    dtype, itemsize = _STORAGES[item.storage.type_name]
    info = entries.get(f"{root}data/{item.storage.key}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise FormatError(f"{where} has no stored data in the archive. Fetch the model again.")
    if any(size < 0 for size in item.shape) or item.offset < 0 or item.stride != _contiguous(item.shape):
        raise FormatError(f"{where} of shape {item.shape} and stride {item.stride} is not laid out row by row.")
    num_bytes = math.prod(item.shape) * itemsize
    begin = item.offset * itemsize
    if begin + num_bytes > info.file_size:
        raise FormatError(f"{where} needs {begin + num_bytes} bytes, its data has {info.file_size}. Fetch the model again.")
    return RawTensor(name, name, dtype, item.shape, file, _data_start(file, info) + begin, num_bytes)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _data_start(file: MappedFile, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its local header, whose name and extra field may differ from the directory's."""
    local = file.view(info.header_offset, 30).tobytes()
    if local[:4] != b"PK\x03\x04":
        raise FormatError(f"{file.path.name}: the archive's directory is damaged. Fetch the model again.")
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
