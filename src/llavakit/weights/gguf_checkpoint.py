"""A LLaVA-1.5 pair of GGUF files, opened: language model and projector (``mmproj``) as one checkpoint.

Files in the wild differ: both names of the feed-forward matrices, towers with and without the block that LLaVA never
runs, projectors without a type, vocabularies of 32000 and 32064. The configuration is therefore read from the tensors
that are there, and the metadata must agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.core.config import CLIP_MEAN, CLIP_STD, LlavaConfig, TextConfig, VisionConfig
from llavakit.core.errors import ConfigError, FormatError, ModelNotFoundError, ShapeError
from llavakit.weights.checkpoint import Checkpoint, account
from llavakit.weights.gguf_file import GgufFile, open_gguf
from llavakit.weights.mapped_file import RawTensor
from llavakit.weights.names import Dialect, gguf_projector_name, gguf_text_name

__all__ = ["PROJECTOR_KEY", "GgufVocabulary", "find_projector", "open_gguf_checkpoint"]

PROJECTOR_KEY = "llavakit.projector"
"""Where a language model that llavakit wrote names its projector's file."""

_VISION_BLOCK = re.compile(r"^v\.blk\.(\d+)\.")
_QUERY_OR_KEY = re.compile(r"^blk\.\d+\.attn_[qk]\.weight$")
_LLAVA_16 = ("clip.vision.image_grid_pinpoints", "clip.vision.mm_patch_merge_type")
_FULL_TOWER, _UNUSED_BLOCKS = 24, 1


@dataclass(frozen=True)
class GgufVocabulary:
    """What a file says about text: its sentencepiece vocabulary, and a preset.

    Attributes
    ----------
    pieces : list of str
    scores : list of float
    types : list of int
        Sentencepiece's numbering.
    tokenizer_json : dict, optional
        What the pieces say less exactly, where the file has it.
    preset : str, optional
        How pictures and prompts are prepared, where the file says it.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    tokenizer_json: dict[str, Any] | None = None
    preset: str | None = None


def open_gguf_checkpoint(path: Path, *, projector: Path | None = None) -> tuple[Checkpoint, GgufVocabulary]:
    """Open a language model and its projector.

    Parameters
    ----------
    path : Path
        The language model.
    projector : Path, optional
        Its ``mmproj`` file; by default the one beside it.

    Raises
    ------
    FormatError
        If a file is damaged, or of a type or architecture that is not LLaVA-1.5's.
    ConfigError
        If the metadata is incomplete or contradicts the tensors.
    ModelNotFoundError
        If the projector is not found.
    MissingTensorError, UnexpectedTensorError, ShapeError
        If the tensors are not exactly the model's.
    """
    text = open_gguf(path)
    _check_text_architecture(text)
    if projector is None:
        stated = _value(text, PROJECTOR_KEY, str) if PROJECTOR_KEY in text.metadata else None
        projector = find_projector(path, _text_width(text), stated=stated)
    vision = open_gguf(projector)
    _check_projector_architecture(vision)
    config = _config(text, vision)
    _check_pair(text, vision, config)
    named = [(gguf_text_name(name), _mark(name, tensor)) for name, tensor in text.tensors.items()]
    is_swapped = _is_swapped(vision, config)
    named += [
        (gguf_projector_name(name, is_swapped=is_swapped), _conv_shape(name, tensor))
        for name, tensor in vision.tensors.items()
    ]
    return account(config, Dialect.GGUF, named, path, is_quantization_allowed=True), _vocabulary(text)


def find_projector(path: Path, hidden_size: int, *, stated: str | None = None) -> Path:
    """Find the one ``mmproj`` file beside a language model whose output is as wide as the model.

    One that bears the model's whole name goes before one that only contains it, and that before all others; damaged
    ones of another name are passed over.

    Parameters
    ----------
    path : Path
    hidden_size : int
    stated : str, optional
        The name that the model's file gives. It decides where names alone do not: files may have been renamed since.

    Raises
    ------
    ModelNotFoundError
        If there is none, or more than one.
    FormatError
        If the one that bears the model's name is damaged.
    """
    beside = sorted(file for file in path.parent.glob("*.gguf") if "mmproj" in file.name.lower() and file != path)
    stem = path.stem.lower()
    whole_name = re.compile(rf"mmproj-{re.escape(stem)}(-(f16|f32|bf16|q8_0))?")
    own = [file for file in beside if whole_name.fullmatch(file.stem.lower())]
    fitting = [file for file in own if _projector_width(file) == hidden_size]
    for group in ([file for file in beside if stem in file.name.lower()], beside):
        fitting = fitting or [file for file in group if file not in own and _has_width(file, hidden_size)]
    if len(fitting) > 1 and stated is not None:
        fitting = [file for file in fitting if file.name == stated] or fitting
    if len(fitting) > 1:  # one per storage type is usual: F16 is the one everybody has
        fitting = [file for file in fitting if re.search(r"[-._]f16[-._]", file.name.lower())] or fitting
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(file.name for file in (fitting or beside)) or "none"
    raise ModelNotFoundError(
        f"{path.name} needs a projector file of width {hidden_size} (its name usually contains 'mmproj'); beside it "
        f"there are {'several that fit' if fitting else 'none that fit'} ({found}). Name one with --mmproj FILE, in "
        "Python with mmproj=."
    )


def _projector_width(file: Path) -> int | None:
    tensor = open_gguf(file).tensors.get("mm.2.weight")
    return None if tensor is None else tensor.shape[0]


def _has_width(file: Path, hidden_size: int) -> bool:
    try:
        return _projector_width(file) == hidden_size
    except FormatError:
        return False


def _value(file: GgufFile, key: str, kind: type, default: Any = None) -> Any:
    value = file.metadata.get(key, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "is missing" if value is None else f"is {str(value)[:50]!r}"
        raise ConfigError(f"{file.path.name}: the key {key!r} {found}; a value of type {kind.__name__} is needed.")
    return value


def _check_text_architecture(file: GgufFile) -> None:
    architecture = file.metadata.get("general.architecture")
    if architecture == "clip":
        raise FormatError(
            f"{file.path.name} is a projector (mmproj), not a language model. Name the other file of the pair; this "
            "one is found beside it."
        )
    if architecture != "llama":
        raise FormatError(
            f"{file.path.name} has the architecture {str(architecture)[:50]!r}; LLaVA-1.5's is 'llama'. This is "
            "another model."
        )
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or file.metadata.get("llama.expert_count", 0):
        raise FormatError(
            f"{file.path.name} uses scaled rotary positions or experts; LLaVA-1.5 has neither. This is another model."
        )


def _check_projector_architecture(file: GgufFile) -> None:
    architecture = file.metadata.get("general.architecture")
    if architecture != "clip":
        raise FormatError(
            f"{file.path.name} has the architecture {str(architecture)[:50]!r}; a projector's is 'clip'. Name the "
            "mmproj file of the pair."
        )
    if newer := [key for key in _LLAVA_16 if key in file.metadata]:
        raise FormatError(f"{file.path.name} has the key {newer[0]!r} of LLaVA-1.6, which is another model.")
    kind = file.metadata.get("clip.projector_type", file.metadata.get("clip.vision.projector_type"))
    if kind is None and file.metadata.get("clip.has_llava_projector") is not False:
        kind = "mlp"  # files of 2023 do not say
    if kind != "mlp":
        raise FormatError(f"{file.path.name} has a projector of type {str(kind)[:50]!r}; LLaVA-1.5's is 'mlp'.")


def _text_width(file: GgufFile) -> int:
    return int(_value(file, "llama.embedding_length", int))


def _config(text: GgufFile, vision: GgufFile) -> LlavaConfig:
    vocab_size = _shape(text, "token_embd.weight", 2)[0]
    pieces = text.metadata.get("tokenizer.ggml.tokens")
    image_token_id = pieces.index("<image>") if isinstance(pieces, list) and "<image>" in pieces else vocab_size
    pad_id = text.metadata.get("tokenizer.ggml.padding_token_id")
    return LlavaConfig(
        text_config=_text_config(text, vocab_size),
        vision_config=_vision_config(vision),
        image_token_id=image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        multimodal_projector_bias="mm.0.bias" in vision.tensors,
        bos_token_id=_value(text, "tokenizer.ggml.bos_token_id", int, 1),
        eos_token_id=_value(text, "tokenizer.ggml.eos_token_id", int, 2),
        pad_token_id=pad_id if isinstance(pad_id, int) and 0 <= pad_id < vocab_size else None,
        dtype="float16",
    )


def _text_config(file: GgufFile, vocab_size: int) -> TextConfig:
    width, num_heads = _text_width(file), _value(file, "llama.attention.head_count", int)
    if num_heads < 1 or width % num_heads:
        raise ConfigError(f"{file.path.name}: {num_heads} attention heads do not divide the width {width}.")
    head_dim = width // num_heads
    if (rotated := _value(file, "llama.rope.dimension_count", int, head_dim)) != head_dim:
        raise ConfigError(f"{file.path.name}: {rotated} of {head_dim} dimensions are rotated; LLaMA rotates all.")
    return TextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=_value(file, "llama.feed_forward_length", int),
        num_hidden_layers=_value(file, "llama.block_count", int),
        num_attention_heads=num_heads,
        num_key_value_heads=_value(file, "llama.attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        max_position_embeddings=_value(file, "llama.context_length", int),
        rms_norm_eps=_round_float32(_value(file, "llama.attention.layer_norm_rms_epsilon", float)),
        rope_theta=_value(file, "llama.rope.freq_base", float, 10000.0),
        hidden_act="silu",
        tie_word_embeddings="output.weight" not in file.tensors,
    )


def _vision_config(file: GgufFile) -> VisionConfig:
    blocks = {int(match.group(1)) for name in file.tensors if (match := _VISION_BLOCK.match(name))}
    stated = _value(file, "clip.vision.block_count", int)
    if blocks != set(range(stated)) or not blocks:
        raise ConfigError(
            f"{file.path.name} says it has {stated} vision blocks, but its tensors are of {len(blocks)}. The file is "
            "damaged, or was made by a faulty program."
        )
    layers = file.metadata.get("clip.vision.feature_layer")
    if isinstance(layers, np.ndarray) and layers.size == 1 and 0 < int(layers[0]) <= stated:
        num_run = int(layers[0])
    elif layers is not None:
        raise ConfigError(f"{file.path.name}: clip.vision.feature_layer is {str(layers)[:50]}; one layer is needed.")
    else:  # files usually leave out the last block, which LLaVA never runs
        num_run = stated - _UNUSED_BLOCKS if stated == _FULL_TOWER else stated
    for key, wanted in (("clip.vision.image_mean", CLIP_MEAN), ("clip.vision.image_std", CLIP_STD)):
        found = file.metadata.get(key)
        if isinstance(found, np.ndarray) and not np.allclose(found, wanted, atol=1e-3):
            raise ConfigError(f"{file.path.name}: {key} is {found.tolist()[:3]}; CLIP's is {list(wanted)}.")
    if file.metadata.get("clip.use_silu") is True:
        raise ConfigError(f"{file.path.name} has a tower with SiLU; CLIP's is quick GELU.")
    return VisionConfig(
        hidden_size=_value(file, "clip.vision.embedding_length", int),
        intermediate_size=_value(file, "clip.vision.feed_forward_length", int),
        num_hidden_layers=max(num_run + _UNUSED_BLOCKS, stated),
        num_attention_heads=_value(file, "clip.vision.attention.head_count", int),
        num_channels=3,
        image_size=_value(file, "clip.vision.image_size", int),
        patch_size=_value(file, "clip.vision.patch_size", int),
        hidden_act="gelu" if file.metadata.get("clip.use_gelu") is True else "quick_gelu",
        layer_norm_eps=_round_float32(_value(file, "clip.vision.attention.layer_norm_epsilon", float)),
    )


def _round_float32(value: float) -> float:
    """Return the shortest decimal that a float32 of the file can have been: 1e-5 and not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _shape(file: GgufFile, name: str, num_dims: int) -> tuple[int, ...]:
    tensor = file.tensors.get(name)
    if tensor is None or len(tensor.shape) != num_dims:
        raise ConfigError(f"{file.path.name} has no tensor {name!r} of {num_dims} dimensions; it is no whole model.")
    return tensor.shape


def _check_pair(text: GgufFile, vision: GgufFile, config: LlavaConfig) -> None:
    width = _shape(vision, "mm.2.weight", 2)[0]
    if width != config.text_config.hidden_size:
        sizes = {4096: "the 7B", 5120: "the 13B"}
        one, other = (sizes.get(size, f"a width of {size}") for size in (config.text_config.hidden_size, width))
        raise ShapeError(
            f"{text.path.name} is of {one}, but {vision.path.name} is of {other}; the two files belong to different "
            "models. Name the projector of this one."
        )


def _is_swapped(file: GgufFile, config: LlavaConfig) -> bool:
    """Whether the first feed-forward matrix is called ``ffn_down``, as the old converter did."""
    return _shape(file, "v.blk.0.ffn_down.weight", 2)[1] == config.vision_config.hidden_size


def _mark(name: str, tensor: RawTensor) -> RawTensor:
    return replace(tensor, has_interleaved_heads=True) if _QUERY_OR_KEY.match(name) else tensor


def _conv_shape(name: str, tensor: RawTensor) -> RawTensor:
    """Take the class token and positions as they are; only trailing ones of a shape are dropped."""
    if name == "v.class_embd" and len(tensor.shape) > 1:
        return replace(tensor, shape=(int(np.prod(tensor.shape)),))
    return tensor


def _vocabulary(file: GgufFile) -> GgufVocabulary:
    if file.metadata.get("tokenizer.ggml.model") != "llama":
        raise ConfigError(
            f"{file.path.name}: the tokenizer is {str(file.metadata.get('tokenizer.ggml.model'))[:50]!r}; LLaVA-1.5's "
            "is 'llama' (sentencepiece)."
        )
    pieces = file.metadata.get("tokenizer.ggml.tokens")
    columns: Mapping[str, Any] = {
        name: file.metadata.get(f"tokenizer.ggml.{name}") for name in ("scores", "token_type")
    }
    if not isinstance(pieces, list) or any(
        not isinstance(column, np.ndarray) or len(column) != len(pieces) for column in columns.values()
    ):
        raise ConfigError(f"{file.path.name}: tokens, scores and token types are missing or differ in number.")
    return GgufVocabulary(
        pieces,
        columns["scores"].astype(float).tolist(),
        columns["token_type"].astype(int).tolist(),
        _tokenizer_json(file),
        _value(file, "llavakit.preset", str) if "llavakit.preset" in file.metadata else None,
    )


def _tokenizer_json(file: GgufFile) -> dict[str, Any] | None:
    text = file.metadata.get("tokenizer.huggingface.json")
    if text is None:
        return None
    try:
        content = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file.path.name}: tokenizer.huggingface.json is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file.path.name}: tokenizer.huggingface.json is no JSON object.")
    return content
