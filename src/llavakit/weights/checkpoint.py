"""A checkpoint folder, opened: configuration, dialect, and every tensor accounted for before any is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llavakit.core.config import LlavaConfig
from llavakit.core.config_json import is_original_config, parse_llava_config
from llavakit.core.errors import FormatError, MissingTensorError, ShapeError, UnexpectedTensorError
from llavakit.core.shapes import expected_tensors
from llavakit.core.wording import counted
from llavakit.weights.mapped_file import RawTensor
from llavakit.weights.names import Dialect, canonical_name, find_dialect, skip_reason
from llavakit.weights.safetensors_file import open_safetensors
from llavakit.weights.torch_file import open_torch_file

__all__ = ["Checkpoint", "account", "check_inside", "open_checkpoint", "read_config", "read_json"]

_MAX_LISTED = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
_MATRIX_DIMS = 2
_MAX_JSON_BYTES = 64 * 1024**2
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_STAGES = {"vision_tower": 0, "multi_modal_projector": 1}  # and then the language model
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes
    ----------
    config : LlavaConfig
    dialect : Dialect
    tensors : mapping from our name to RawTensor
        Exactly the model's parameters.
    skipped : tuple of (name, reason)
        Tensors in the files that the model does not use.
    """

    config: LlavaConfig
    dialect: Dialect
    tensors: Mapping[str, RawTensor]
    skipped: tuple[tuple[str, str], ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all used tensors as stored."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def files_as_needed(self) -> tuple[Path, ...]:
        """The files of all used tensors, those first that hold what a picture meets first."""
        stages: dict[Path, int] = {}
        for name, tensor in self.tensors.items():
            stage = _STAGES.get(name.partition(".")[0], len(_STAGES))
            stages[tensor.file.path] = min(stage, stages.get(tensor.file.path, stage))
        return tuple(sorted(stages, key=lambda path: (stages[path], path)))

    @property
    def is_gguf(self) -> bool:
        """Whether it is a pair of GGUF files, whose matrices are used as they are stored."""
        return self.dialect is Dialect.GGUF

    @property
    def storage_dtypes(self) -> dict[str, int]:
        """Number of used tensors per stored dtype."""
        return dict(Counter(tensor.dtype for tensor in self.tensors.values()))


def open_checkpoint(folder: Path, *, vision_folder: Path | None = None) -> Checkpoint:
    """Open a folder of any dialect.

    Parameters
    ----------
    folder : Path
    vision_folder : Path, optional
        The CLIP tower of an original checkpoint.

    Raises
    ------
    ConfigError
        If ``config.json`` cannot be used.
    FormatError
        If a file is damaged or hostile.
    MissingTensorError, UnexpectedTensorError, ShapeError
        If the tensors are not exactly the model's; all of them are named.
    """
    config = read_config(folder, vision_folder=vision_folder)
    files = _open_files(folder)
    dialect = find_dialect(set(files))
    if dialect is None:
        raise UnexpectedTensorError(
            f"the tensors of {folder.name!r} are of no known LLaVA-1.5 dialect; the first are "
            f"{_listed(sorted(files)[:5])}. Names like 'language_model.model.layers.0...' are expected."
        )
    named = [(canonical_name(name, dialect), tensor) for name, tensor in files.items()]
    if dialect is Dialect.ORIGINAL and vision_folder is not None:
        tower = _open_files(vision_folder)
        has_tower = any(name.startswith("vision_tower.") for name, _ in named)
        named += [] if has_tower else [(canonical_name(name, dialect), tensor) for name, tensor in tower.items()]
    return account(config, dialect, named, folder)


def read_config(folder: Path, *, vision_folder: Path | None = None) -> LlavaConfig:
    """Read a folder's configuration only."""
    raw = read_json(folder / "config.json")
    vision_raw = None
    if is_original_config(raw) and vision_folder is not None:
        vision_raw = read_json(vision_folder / "config.json")
    return parse_llava_config(raw, vision_raw=vision_raw)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size from a checkpoint folder."""
    check_inside(file)
    try:
        if file.exists() and not file.is_file():
            raise FormatError(f"{file.name} is no ordinary file; a JSON file is needed.")
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise FormatError(f"{file.name} has {file.stat().st_size} bytes; at most {_MAX_JSON_BYTES} are read.")
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise FormatError(
            f"{file.parent.name!r} has no {file.name}; a LLaVA checkpoint folder is needed "
            "(config.json, weights, tokenizer)."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file.name} cannot be read as JSON ({error}). Fetch the model again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{file.name} holds {type(content).__name__}, an object is needed. Fetch the model again.")
    return content


def check_inside(file: Path) -> None:
    """Refuse a link that leads out of the checkpoint's folder.

    A snapshot in the Hugging Face cache consists of links to that cache, so there its root is the limit.

    Raises
    ------
    FormatError
        If the file, links followed, lies elsewhere.
    """
    folder = file.parent.resolve()
    is_snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    limit = folder.parents[2] if is_snapshot else folder
    try:
        real = file.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself
        raise FormatError(f"{file.name!r} cannot be followed ({error}).") from error
    if not real.is_relative_to(limit):
        raise FormatError(
            f"{file.name!r} is a link that leads out of {folder.name!r}; refused. Put the file itself there, or name "
            "folder that it lies in."
        )


def _open_files(folder: Path) -> dict[str, RawTensor]:
    """All tensors of a folder by their names in the files; safetensors before ``.bin``."""
    for single, index in zip(_SINGLE_FILES, _INDEX_FILES, strict=True):
        if (folder / index).is_file():
            return _open_shards(folder, index)
        if (folder / single).is_file():
            return _open_one(folder / single)
    present = sorted(path.name for path in folder.iterdir())[:_MAX_LISTED] if folder.is_dir() else []
    raise FormatError(
        f"{folder.name!r} has no weights: none of {', '.join(_SINGLE_FILES + _INDEX_FILES)} is there "
        f"(found: {', '.join(present) or 'nothing'})."
    )


def _open_one(path: Path) -> dict[str, RawTensor]:
    check_inside(path)
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch_file(path)


def _open_shards(folder: Path, index: str) -> dict[str, RawTensor]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index} has no weight_map; fetch the model again.")
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", "..") or not _PLAIN_NAME.fullmatch(shard):
            raise FormatError(
                f"{index} names the file {shard[:200]!r}, which is no plain name of a file in this folder; refused."
            )
        if Path(shard).suffix not in (".safetensors", ".bin"):
            raise FormatError(f"{index} names {shard!r}, which is no weights file; refused.")
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise FormatError(
            f"{folder.name!r} lacks {len(missing)} of {len(shards)} shards: {_listed(missing)}. The download is not "
            "complete; fetch the model again."
        )
    tensors: dict[str, RawTensor] = {}
    for shard in shards:
        for name, tensor in _open_one(folder / shard).items():
            if name in tensors:
                raise FormatError(f"tensor {name!r} stands in {tensors[name].file.path.name} and in {shard}.")
            tensors[name] = tensor
    return tensors


def account(
    config: LlavaConfig,
    dialect: Dialect,
    named: Iterable[tuple[str, RawTensor]],
    path: Path,
    *,
    is_quantization_allowed: bool = False,
) -> Checkpoint:
    """Compare the tensors that are there with those that the model needs.

    Parameters
    ----------
    config : LlavaConfig
    dialect : Dialect
    named : iterable of (our name, RawTensor)
    path : Path
        For messages.
    is_quantization_allowed : bool, default False
        Whether matrices may be stored in blocks.

    Raises
    ------
    MissingTensorError, UnexpectedTensorError, ShapeError
        If they are not exactly the model's; all of them are named.
    FormatError
        If one is stored in a type that is not supported.
    """
    expected = expected_tensors(config)
    used: dict[str, RawTensor] = {}
    skipped: list[tuple[str, str]] = []
    unexpected: list[str] = []
    for name, tensor in named:
        reason = skip_reason(name, config)
        if reason is not None:
            skipped.append((tensor.file_name, reason))
        elif name not in expected:
            unexpected.append(f"{tensor.file_name} {tensor.shape}")
        elif name in used:
            unexpected.append(f"{tensor.file_name} {tensor.shape} (a second {name})")
        else:
            used[name] = replace(tensor, name=name)
    if missing := [f"{name} {shape}" for name, shape in expected.items() if name not in used]:
        raise MissingTensorError(
            f"{path.name!r} lacks {len(missing)} of {len(expected)} tensors: {_listed(missing)}. "
            "The checkpoint is incomplete, or config.json is of another model."
        )
    if unexpected:
        raise UnexpectedTensorError(
            f"{path.name!r} has {counted(len(unexpected), 'tensor')} that LLaVA-1.5 has not: {_listed(unexpected)}. "
            "The checkpoint is of another model, or quantized."
        )
    wrong = [
        f"{tensor.file_name}: file has {tensor.shape}, config needs {expected[name]}"
        for name, tensor in used.items()
        if tensor.shape != expected[name]
    ]
    if wrong:
        raise ShapeError(
            f"{path.name!r} has {counted(len(wrong), 'tensor')} of another shape than config.json asks for: "
            f"{_listed(wrong)}. config.json is probably of another size of the model."
        )
    if stored := [
        f"{tensor.file_name}: {tensor.dtype}"
        for name, tensor in used.items()
        if tensor.dtype not in _WEIGHT_DTYPES
        and not (is_quantization_allowed and tensor.is_quantized and len(expected[name]) == _MATRIX_DIMS)
    ]:
        raise FormatError(
            f"{path.name!r} has {counted(len(stored), 'tensor')} of a type that is not supported: {_listed(stored)}. "
            f"Weights are {', '.join(_WEIGHT_DTYPES)}; quantized checkpoints are not read here."
        )
    return Checkpoint(config=config, dialect=dialect, tensors=used, skipped=tuple(skipped))


def _listed(items: list[str]) -> str:
    shown = "; ".join(items[:_MAX_LISTED])
    return shown if len(items) <= _MAX_LISTED else f"{shown}; and {len(items) - _MAX_LISTED} more"
