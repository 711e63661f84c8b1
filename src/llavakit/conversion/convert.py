"""`llavakit convert`: any checkpoint to a GGUF pair or a safetensors folder.

In: a model's name. Out: files under their final names, or nothing new and a part file to go on from. Memory is a few
slices of rows, whatever the model's size.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.conversion.carried_files import TEMPLATE_FILES, read_carried_files
from llavakit.conversion.chat_templates import FOLDER_TEMPLATES
from llavakit.conversion.checks import (
    FLOAT_TYPES,
    PROJECTOR_TYPES,
    check_importance,
    check_is_no_other_model,
    check_request,
)
from llavakit.conversion.gguf_layout import plan_pair
from llavakit.conversion.gguf_metadata import TextExtras
from llavakit.conversion.hf_folder import hf_files, unused_tensors
from llavakit.conversion.rows import Target, encode_tensor
from llavakit.core.config import CLIP_MEAN, CLIP_STD, LlavaConfig
from llavakit.core.errors import ConfigError, DiskFullError, StoreError
from llavakit.core.shapes import expected_tensors
from llavakit.kernels.machine import count_cpus
from llavakit.processing.presets import default_preset_name, load_presets, read_json
from llavakit.processing.spm import pieces_to_tokenizer_json, read_sentencepiece, tokenizer_json_to_pieces
from llavakit.weights.gguf_checkpoint import GgufVocabulary
from llavakit.weights.mixtures import find_mixture
from llavakit.weights.names import Dialect, to_hf_legacy
from llavakit.weights.opening import OpenedModel, open_resolved
from llavakit.weights.safetensors_writer import plan_safetensors
from llavakit.weights.store import ResolvedModel, resolve
from llavakit.weights.streamed_file import PlannedTensor, StreamedFile

__all__ = ["PROJECTOR_TYPES", "Conversion", "convert"]

# Sentencepiece's numbers of kinds of pieces, and a score below every merge's.
_CONTROL, _UNUSED, _LEAST_SCORE = 3, 5, -1e9
_VOCABULARY_STEP = 64
# Bytes done, bytes in all, tensor at work.
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes
    ----------
    files : tuple of Path
        The language model first.
    num_bytes : int
    types : mapping from type to bytes
    was_quantized : bool
        Whether the source had already lost precision.
    """

    files: tuple[Path, ...]
    num_bytes: int
    types: Mapping[str, int]
    was_quantized: bool


@dataclass(frozen=True)
class _Source:
    found: ResolvedModel
    opened: OpenedModel
    config: LlavaConfig
    preset: str

    @property
    def key(self) -> str:
        """Tells this source from another one, and from itself after a change."""
        files = [
            (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.opened.weight_files
        ]
        return json.dumps(files)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    type_name: str,
    mmproj: str | Path | None = None,
    mmproj_type: str = "f16",
    is_overwrite_allowed: bool = False,
    num_threads: int | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    on_progress: OnProgress | None = None,
) -> Conversion:
    """Convert a model.

    Parameters
    ----------
    source : str or Path
        As for `llavakit.load`.
    out : str or Path
        A ``.gguf`` file, whose projector is written beside it, or a folder for safetensors.
    type_name : str
        A mixture such as ``q4_k_m``; ``f16``, ``bf16`` or ``f32`` for a folder.
    mmproj : str or Path, optional
        The projector of a GGUF source.
    mmproj_type : str, default "f16"
        Of the tower's and the projector's matrices in a GGUF pair.
    is_overwrite_allowed : bool, default False
    num_threads : int, optional
    importance : mapping from parameter name to float32 array, optional
        What an error in each column weighs, from `llavakit calibrate`.
    on_progress : callable, optional
        Called with bytes done, bytes in all, and the tensor at work.

    Returns
    -------
    Conversion

    Raises
    ------
    ConfigError
        If the request makes no sense, or the format cannot hold the model.
    StoreError
        If a file is in the way, or source and output are the same.
    DiskFullError
        If the disk cannot take the output; what is written is continued by the next attempt.
    NonFiniteError
        If a weight is NaN or infinite.
    ShapeError
        If the importance is that of another model.
    """
    target = Path(out).expanduser()
    check_request(target, type_name, mmproj_type, num_threads, has_importance=bool(importance))
    found = resolve(source, mmproj=mmproj)
    opened = open_resolved(found)
    preset = opened.preset or default_preset_name(opened.processor_folder)
    origin = _Source(found, opened, opened.checkpoint.config, preset)
    check_importance(importance or {}, origin.config)
    threads = count_cpus() if num_threads is None else num_threads
    job = _Job(origin, threads, importance or {}, on_progress, is_overwrite_allowed)
    if target.suffix.lower() == ".gguf":
        return job.to_pair(target, type_name, mmproj_type)
    return job.to_folder(target, FLOAT_TYPES[type_name])


class _Job:
    """One conversion."""

    def __init__(
        self,
        source: _Source,
        num_threads: int,
        importance: Mapping[str, np.ndarray],
        on_progress: OnProgress | None,
        is_overwrite_allowed: bool,
    ) -> None:
        self._source = source
        self._num_threads = num_threads
        self._importance = importance
        self._on_progress = on_progress
        self._is_overwrite_allowed = is_overwrite_allowed
        self._vocab_size = source.config.text_config.vocab_size

    def to_pair(self, path: Path, type_name: str, mmproj_type: str) -> Conversion:
        config, mixture = self._source.config, find_mixture(type_name)
        dtype = PROJECTOR_TYPES[mmproj_type]
        name = path.stem
        projector_path = path.with_name(f"mmproj-{name}-{mmproj_type}.gguf")
        extras = TextExtras(name, self._source.preset, self._vocabulary(), projector_path.name)
        self._check_pictures()
        text, vision = plan_pair(config, mixture, extras, vision_dtype=dtype)
        files = [
            StreamedFile(where, plan, origin=self._origin()) for where, plan in ((path, text), (projector_path, vision))
        ]
        return self._write(path.parent, files, {})

    def to_folder(self, folder: Path, dtype: str) -> Conversion:
        config = self._padded_config()
        self._vocab_size = config.text_config.vocab_size
        tensors = [(to_hf_legacy(name), name, dtype, shape) for name, shape in expected_tensors(config).items()]
        unused = unused_tensors(config)
        tensors += [(name, name, dtype, shape) for name, (shape, _) in unused.items()]
        plan = plan_safetensors(tensors)
        check_is_no_other_model(folder)
        file = StreamedFile(folder / "model.safetensors", plan, origin=self._origin())
        return self._write(folder, [file], self._folder_texts(config, dtype))

    def _folder_texts(self, config: LlavaConfig, dtype: str) -> dict[str, str]:
        """Return the files beside the weights: the source's own where it is a folder of this format."""
        texts = {
            name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            for name, content in hf_files(config, dtype=dtype, preset=self._source.preset).items()
        }
        texts["tokenizer.json"] = json.dumps(self._tokenizer_json(), indent=1, ensure_ascii=False)
        carried = {}
        if self._source.opened.checkpoint.dialect in (Dialect.HF_LEGACY, Dialect.HF_CURRENT):
            carried = read_carried_files(self._source.found.folder)
        if "processor_config.json" in carried and "preprocessor_config.json" not in carried:
            # transformers 5 writes one file for both.
            del texts["preprocessor_config.json"]
        if not any(name in carried for name in TEMPLATE_FILES):
            texts["chat_template.jinja"] = FOLDER_TEMPLATES[self._source.preset]
        return {**texts, **carried}

    def _write(self, folder: Path, files: list[StreamedFile], texts: Mapping[str, str]) -> Conversion:
        paths = [file.path for file in files] + [folder / name for name in texts]
        self._check_places(paths)
        _make_folder(folder)
        with ExitStack() as stack:
            for file in files:
                stack.enter_context(file)
            num_missing_bytes = sum(file.num_missing_bytes for file in files)
            files[0].check_space(num_missing_bytes + sum(len(content.encode()) for content in texts.values()))
            self._write_tensors(files)
            # The small ones last and all renamings together: what was there before stays until everything is written.
            parts = _write_parts({folder / name: content for name, content in texts.items()})
            for path, part in parts.items():
                part.replace(path)
            for file in reversed(files):
                file.publish()
        total = sum(file.plan.num_bytes for file in files)
        types: dict[str, int] = {}
        for tensor in (tensor for file in files for tensor in file.plan.tensors):
            types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.num_bytes
        was_quantized = any(tensor.is_quantized for tensor in self._source.opened.checkpoint.tensors.values())
        return Conversion(tuple(file.path for file in files), total, types, was_quantized)

    def _write_tensors(self, files: list[StreamedFile]) -> None:
        total, done = sum(file.plan.num_bytes for file in files), 0
        current = ""

        def on_bytes(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if self._on_progress is not None:
                self._on_progress(min(done, total), total, current)

        def produce(planned: PlannedTensor) -> Iterator[np.ndarray]:
            nonlocal current
            current = planned.name
            return self._encode(planned)

        for file in files:
            file.write(produce, on_bytes)

    def _encode(self, planned: PlannedTensor) -> Iterator[np.ndarray]:
        tensor = self._source.opened.checkpoint.tensors.get(planned.source)
        if tensor is None:  # what LLaVA never runs
            _, is_ones = unused_tensors(self._source.config)[planned.source]
            value = {"float32": 0x3F800000, "float16": 0x3C00, "bfloat16": 0x3F80}[planned.dtype] if is_ones else 0
            whole = np.full(planned.shape, value, dtype=np.uint32 if planned.dtype == "float32" else np.uint16)
            return iter((whole.view(np.uint8).reshape(-1),))
        is_rotated = _is_query_or_key(planned.source)
        return encode_tensor(
            tensor,
            Target(
                dtype=planned.dtype,
                num_rows=planned.shape[0],
                head_dim=self._source.config.text_config.head_dim,
                has_interleaved_heads=is_rotated and planned.name.startswith("blk."),
                importance=self._importance.get(planned.source),
                num_threads=self._num_threads,
            ),
        )

    def _origin(self) -> str:
        digest = hashlib.sha256(self._source.key.encode())
        for name in sorted(self._importance):
            digest.update(name.encode() + self._importance[name].tobytes())
        return digest.hexdigest()

    def _check_places(self, paths: list[Path]) -> None:
        sources = {path.resolve() for path in self._source.opened.weight_files}
        if self._source.opened.processor_folder is not None:
            sources |= {file.resolve() for file in self._source.opened.processor_folder.iterdir()}
        for path in paths:
            if path.resolve() in sources:
                raise StoreError(f"{str(path)!r} is part of the model that is converted; name another output.")
            if path.is_dir():
                raise StoreError(
                    f"{str(path)!r} is a folder, and a file of that name is to be written. Name another output."
                )
            if path.exists() and not self._is_overwrite_allowed:
                raise StoreError(f"{str(path)!r} is there already. Name another output, or say --overwrite.")

    def _check_pictures(self) -> None:
        """Refuse a model whose pictures are prepared with other colours than CLIP's: GGUF programs would not do it."""
        image = load_presets(self._source.opened.processor_folder, self._source.config)["hf"].image
        if not np.allclose((image.mean, image.std), (CLIP_MEAN, CLIP_STD), atol=1e-6):
            raise ConfigError(
                f"the model's pictures are prepared with a mean of {list(image.mean)} and a deviation of "
                f"{list(image.std)}; programs that read GGUF pairs of LLaVA-1.5 take CLIP's {list(CLIP_MEAN)} and "
                f"{list(CLIP_STD)}. Convert to a safetensors folder instead."
            )

    def _vocabulary(self) -> GgufVocabulary:
        folder, found = self._source.found.folder, self._source.opened.vocabulary
        if found is None and (folder / "tokenizer.json").is_file():
            content = read_json(folder / "tokenizer.json")
            return GgufVocabulary(*tokenizer_json_to_pieces(content, self._vocab_size), tokenizer_json=content)
        pieces, scores, types = (
            read_sentencepiece(folder / "tokenizer.model")
            if found is None
            else (list(found.pieces), list(found.scores), list(found.types))
        )
        for idx in range(len(pieces), self._vocab_size):
            is_image = idx == self._source.config.image_token_id
            pieces.append("<image>" if is_image else f"[PAD{idx}]")
            scores.append(_LEAST_SCORE)
            types.append(_CONTROL if is_image else _UNUSED)
        return GgufVocabulary(pieces, scores, types, tokenizer_json=None if found is None else found.tokenizer_json)

    def _tokenizer_json(self) -> dict[str, Any]:
        vocabulary = self._vocabulary()
        content = vocabulary.tokenizer_json or pieces_to_tokenizer_json(
            vocabulary.pieces, vocabulary.scores, vocabulary.types
        )
        added = list(content.get("added_tokens") or [])
        if not any(entry["content"] == "<image>" for entry in added):
            image_id = self._source.config.image_token_id
            added.append({"id": image_id, "content": "<image>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True})  # fmt: skip
        return {**content, "added_tokens": added}

    def _padded_config(self) -> LlavaConfig:
        """Give the image token a row: llava-hf folders have one, originals have not."""
        config = self._source.config
        if config.image_token_id < config.text_config.vocab_size:
            return config
        size = -(-(config.image_token_id + 1) // _VOCABULARY_STEP) * _VOCABULARY_STEP
        return replace(config, text_config=replace(config.text_config, vocab_size=size))


def _write_parts(texts: Mapping[Path, str]) -> dict[Path, Path]:
    """Write each text beside its final name; return where."""
    parts = {path: path.with_name(path.name + ".part") for path in texts}
    try:
        for path, content in texts.items():
            parts[path].write_text(content, encoding="utf-8")
    except OSError as error:
        for part in parts.values():
            part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise DiskFullError(
                f"the disk is full: {str(path)!r} could not be written. Free some room and run the same command again."
            ) from error
        raise StoreError(f"{str(path)!r} cannot be written ({error}). Name another output.") from error
    return parts


def _is_query_or_key(name: str) -> bool:
    return name.startswith("language_model.") and name.endswith(("q_proj.weight", "k_proj.weight"))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {str(folder)!r} cannot be made ({error}). Name another output.") from error
    if not os.access(folder, os.W_OK):
        raise StoreError(f"the folder {str(folder)!r} cannot be written to. Name another output.")
