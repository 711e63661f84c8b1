"""PyTorch ``.bin`` checkpoints, mapped without running anything that is in them.

Such a file is a ZIP archive: a pickle that describes tensors (``state_dict_pickle.py`` reads it), and their bytes,
stored as they are. They are mapped, not copied.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llavakit.core.errors import FormatError
from llavakit.weights.mapped_file import MappedFile, RawTensor
from llavakit.weights.state_dict_pickle import TensorDescription, read_state_dict

__all__ = ["open_torch_file"]

# A 7B shard's pickle has about 50 kB.
_MAX_PICKLE_BYTES = 8 * 1024**2
_MAX_ENTRIES = 100_000
_STORAGES = {
    "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2), "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1),
}  # fmt: skip


def open_torch_file(path: Path) -> dict[str, RawTensor]:
    """Map a ``.bin`` file and list its tensors by their names in the file.

    Raises
    ------
    FormatError
        If the file is no ZIP archive, is damaged, or its pickle asks for anything but tensors.
    """
    file = MappedFile(path)
    entries = _entries(path, file)
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(f"{path.name} is a ZIP archive with {len(pickles)} data.pkl; a PyTorch file has one.")
    if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise FormatError(
            f"{path.name}: its pickle has {entries[pickles[0]].file_size} bytes, at most {_MAX_PICKLE_BYTES} are read."
        )
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and _member(path, file, order).tobytes() != b"little":
        raise FormatError(f"{path.name} was written on a big-endian machine, which is not supported; convert it there.")
    described = read_state_dict(_member(path, file, entries[pickles[0]]).tobytes(), path.name)
    found = (_tensor(name, item, file, entries, root) for name, item in described.items())
    return {tensor.file_name: tensor for tensor in found}


def _entries(path: Path, file: MappedFile) -> dict[str, zipfile.ZipInfo]:
    """Read the archive's directory."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, struct.error, IndexError) as error:
        if file.view(0, min(4, file.num_bytes)).tobytes() == b"PK\x03\x04":
            raise FormatError(f"{path.name} is truncated or damaged ({error}). Fetch the model again.") from error
        raise FormatError(
            f"{path.name} is no PyTorch ZIP file ({error}). Files of before 2020 must be converted: load them with "
            "torch.load(..., weights_only=True) and save them as safetensors."
        ) from error
    if len(infos) > _MAX_ENTRIES:
        raise FormatError(f"{path.name} has {len(infos)} parts; at most {_MAX_ENTRIES} are read.")
    entries = {info.filename: info for info in infos}
    if len(entries) != len(infos):
        raise FormatError(f"{path.name}: two parts of the archive have the same name. Fetch the model again.")
    return entries


def _member(path: Path, file: MappedFile, info: zipfile.ZipInfo) -> np.ndarray:
    """View the bytes of an entry, which must be stored as they are: nothing can unfold to more than the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise FormatError(
            f"{path.name}: the part {info.filename[:200]!r} is compressed or encrypted; PyTorch does neither."
        )
    return file.view(_data_start(file, info), info.file_size)


def _tensor(
    name: str, item: TensorDescription, file: MappedFile, entries: Mapping[str, zipfile.ZipInfo], root: str
) -> RawTensor:
    where = f"{file.path.name}: tensor {name!r}"
    storage = item.storage
    if storage.type_name not in _STORAGES:
        raise FormatError(f"{where} lies in a {storage.type_name[:80]!r}, which is not supported.")
    dtype, itemsize = _STORAGES[storage.type_name]
    info = entries.get(f"{root}data/{storage.key}")
    if info is None:
        raise FormatError(f"{where} has no data in the archive. Fetch the model again.")
    data = _member(file.path, file, info)
    if item.offset < 0 or any(size < 0 for size in item.shape) or not _is_row_by_row(item.shape, item.stride):
        raise FormatError(f"{where} of shape {item.shape} and stride {item.stride} is not laid out row by row.")
    num_bytes, begin = math.prod(item.shape) * itemsize, item.offset * itemsize
    if begin + num_bytes > data.nbytes or storage.num_elements * itemsize != data.nbytes:
        raise FormatError(
            f"{where} needs {begin + num_bytes} bytes and its storage {storage.num_elements * itemsize}, the archive "
            f"has {data.nbytes}. Fetch the model again."
        )
    return RawTensor(name, name, dtype, item.shape, file, _data_start(file, info) + begin, num_bytes)


def _is_row_by_row(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements follow one another; the stride of an axis of one element means nothing."""
    if len(shape) != len(stride):
        return False
    step = 1
    for size, by in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and by != step:
            return False
        step *= size
    return True


def _data_start(file: MappedFile, info: zipfile.ZipInfo) -> int:
    """Find where an entry's bytes begin: after its local header, whose length the directory does not tell."""
    local = file.view(info.header_offset, 30).tobytes()
    if local[:4] != b"PK\x03\x04":
        raise FormatError(f"{file.path.name}: the archive's directory is damaged. Fetch the model again.")
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
