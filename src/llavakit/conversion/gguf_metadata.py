"""The keys of both files of a GGUF pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from llavakit.conversion.chat_templates import GGUF_TEMPLATES
from llavakit.core.config import CLIP_MEAN, CLIP_STD, LlavaConfig
from llavakit.core.errors import ConfigError
from llavakit.processing.spm import pieces_to_tokenizer_json
from llavakit.weights.gguf_checkpoint import PROJECTOR_KEY, GgufVocabulary
from llavakit.weights.gguf_file import GgufValue
from llavakit.weights.mixtures import Mixture

__all__ = ["TextExtras", "projector_metadata", "text_metadata"]

_QUANTIZATION_VERSION = 2
_CLIP_TEXT_WIDTH = 768  # of CLIP's text side, which LLaVA has not; readers ask for the key
_FULL_TOWER = 24


@dataclass(frozen=True)
class TextExtras:
    """What a language model's file says beside shapes.

    Attributes
    ----------
    name : str
    preset : str
    vocabulary : GgufVocabulary
    projector_name : str
        Of the file beside it.
    """

    name: str
    preset: str
    vocabulary: GgufVocabulary
    projector_name: str


def text_metadata(config: LlavaConfig, mixture: Mixture, extras: TextExtras) -> dict[str, GgufValue]:
    """Return the keys of the language model.

    Raises
    ------
    ConfigError
        If the format cannot say what the configuration says.
    """
    text = config.text_config
    _check_sayable(config)
    keys: dict[str, GgufValue] = {
        "general.architecture": "llama", "general.type": "model", "general.name": extras.name,
        "general.file_type": mixture.file_type, "general.quantization_version": _QUANTIZATION_VERSION,
        "llama.vocab_size": text.vocab_size, "llama.context_length": text.max_position_embeddings,
        "llama.embedding_length": text.hidden_size, "llama.block_count": text.num_hidden_layers,
        "llama.feed_forward_length": text.intermediate_size, "llama.attention.head_count": text.num_attention_heads,
        "llama.attention.head_count_kv": text.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "llama.rope.dimension_count": text.head_dim, "llama.rope.freq_base": float(text.rope_theta),
        "llavakit.preset": extras.preset,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(extras.vocabulary.pieces),
        "tokenizer.ggml.scores": np.asarray(extras.vocabulary.scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.asarray(extras.vocabulary.types, dtype=np.int32),
        "tokenizer.ggml.bos_token_id": config.bos_token_id, "tokenizer.ggml.eos_token_id": config.eos_token_id,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": GGUF_TEMPLATES[extras.preset],
        PROJECTOR_KEY: extras.projector_name,
    }  # fmt: skip
    if config.pad_token_id is not None and config.pad_token_id < text.vocab_size:
        keys["tokenizer.ggml.padding_token_id"] = config.pad_token_id
    if extras.vocabulary.tokenizer_json is not None and not _is_said(extras.vocabulary):
        keys["tokenizer.huggingface.json"] = json.dumps(extras.vocabulary.tokenizer_json, ensure_ascii=False)
    return keys


def projector_metadata(config: LlavaConfig, *, dtype: str, name: str) -> dict[str, GgufValue]:
    """Return the keys of the tower and projector."""
    vision = config.vision_config
    return {
        "general.architecture": "clip", "general.type": "mmproj", "general.name": name,
        "general.description": "vision tower and projector of LLaVA-1.5",
        "general.file_type": {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}[dtype],
        "general.quantization_version": _QUANTIZATION_VERSION,
        "clip.has_text_encoder": False, "clip.has_vision_encoder": True, "clip.has_llava_projector": True,
        "clip.projector_type": "mlp", "clip.use_gelu": vision.hidden_act == "gelu",
        "clip.vision.image_size": vision.image_size, "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": _CLIP_TEXT_WIDTH,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.block_count": config.num_vision_blocks,
        "clip.vision.image_mean": np.array(CLIP_MEAN, dtype=np.float32),
        "clip.vision.image_std": np.array(CLIP_STD, dtype=np.float32),
    }  # fmt: skip


def _is_said(vocabulary: GgufVocabulary) -> bool:
    """Whether the pieces alone give the same merges."""
    rebuilt = pieces_to_tokenizer_json(vocabulary.pieces, vocabulary.scores, vocabulary.types)
    merges: Any = (vocabulary.tokenizer_json or {}).get("model", {}).get("merges", [])
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in merges]
    return bool(rebuilt["model"]["merges"] == pairs)


def _check_sayable(config: LlavaConfig) -> None:
    """Refuse what the format has no words for, rather than write a file that means something else."""
    text, vision = config.text_config, config.vision_config
    faults = [
        (text.head_dim * text.num_attention_heads != text.hidden_size, "heads that are not the width divided"),
        (text.hidden_act != "silu", f"the activation {text.hidden_act}"),
        (config.projector_hidden_act != "gelu", f"a projector with {config.projector_hidden_act}"),
        (vision.hidden_act not in ("gelu", "quick_gelu"), f"a tower with {vision.hidden_act}"),
        (config.num_vision_blocks == _FULL_TOWER, "features of the tower's last of 24 blocks"),
        (config.vision_feature_select_strategy != "default", "features with the class token"),
        (vision.num_channels != 3, f"pictures of {vision.num_channels} channels"),
    ]
    if said := [what for is_fault, what in faults if is_fault]:
        raise ConfigError(f"GGUF has no words for {said[0]}; convert to a safetensors folder instead.")
