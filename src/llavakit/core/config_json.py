"""The dialects of ``config.json``: llava-hf files, full dumps of transformers 4 and 5, and the original repository's.

Nothing mathematical is guessed. The published llava-hf files leave out what their library's class defaults supply;
those
values stand in two tables below, by name, and the loader checks the resulting shapes against every tensor. The norm
epsilon and the context length, where class defaults are wrong for LLaVA, must be in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig
from llavakit.core.errors import ConfigError

__all__ = ["is_original_config", "parse_llava_config"]

# What llava-1.5-7b-hf leaves to transformers' LlamaConfig; the 13B file writes the first five itself.
_TEXT_OMISSIONS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "hidden_act": "silu", "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What the llava-hf files leave to CLIPVisionConfig.
_VISION_OMISSIONS: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3}
_TOP_OMISSIONS: dict[str, Any] = {"multimodal_projector_bias": True}

_BOOKKEEPING = (
    "_name_or_path", "architectures", "auto_map", "transformers_version", "transformers.js_config", "torchscript",
    "_commit_hash", "_attn_implementation_autoset", "_attn_implementation", "_attn_implementation_internal",
    "_from_model_config", "initializer_range", "initializer_factor", "use_cache", "gradient_checkpointing",
    "pretraining_tp", "is_llama_config", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder",
    "cross_attention_hidden_size", "add_cross_attention", "tie_encoder_decoder", "finetuning_task", "id2label",
    "label2id",
    "num_labels", "task_specific_params", "problem_type", "tokenizer_class", "prefix", "pruned_heads", "use_bfloat16",
    "tf_legacy_loss", "tf_padding_side", "return_dict", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "decoder_start_token_id", "sep_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty",
    "encoder_no_repeat_ngram_size", "ignore_keys_at_rope_validation", "base_model_tp_plan", "base_model_pp_plan",
    # Old generation settings inside model configs: generation has its own file and its own arguments.
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences",
)  # fmt: skip
_IGNORED = dict.fromkeys(_BOOKKEEPING, "bookkeeping or training only; no effect on the result")
_IGNORED.update(
    ignore_index="training labels", image_seq_length="follows from image and patch size",
    attention_dropout="training only", dropout="training only", torch_dtype="read elsewhere", dtype="read elsewhere",
    pad_token_id="read elsewhere", projection_dim="CLIP's text side", vocab_size="read elsewhere",
    max_position_embeddings="read elsewhere", unk_token_id="no effect on the result",
)  # fmt: skip
_ORIGINAL_IGNORED = {
    **_IGNORED,
    **dict.fromkeys(
        ("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "unfreeze_mm_vision_tower", "mm_resampler_type", "use_mm_proj",
         "image_grid_pinpoints", "mm_use_im_patch_token", "mm_use_im_start_end", "tokenizer_model_max_length",
         "tokenizer_padding_side", "mm_projector_lr", "pretrain_mm_mlp_adapter", "mm_hidden_size", "mm_vision_tower",
         "image_aspect_ratio", "image_crop_resolution", "image_split_resolution", "mm_patch_merge_type",
         "mm_tunable_parts", "mm_vision_tower_lr", "freeze_mm_vision_resampler", "tune_mm_vision_resampler"),
        "training, or checked below",
    ),
}  # fmt: skip


def is_original_config(raw: Mapping[str, Any]) -> bool:
    """Whether this is the original repository's config (language model and ``mm_`` keys on one level)."""
    return "mm_vision_tower" in raw or "mm_projector_type" in raw


def parse_llava_config(raw: Mapping[str, Any], *, vision_raw: Mapping[str, Any] | None = None) -> LlavaConfig:
    """Read a config of any dialect.

    Parameters
    ----------
    raw : mapping
        Content of ``config.json``.
    vision_raw : mapping, optional
        Content of the CLIP tower's ``config.json``: needed by original checkpoints, which have none of their own.

    Raises
    ------
    ConfigError
        If a value is missing, unknown, out of range, or the model is of another family.
    """
    if is_original_config(raw):
        return _parse_original(raw, vision_raw)
    if raw.get("model_type") != "llava":
        raise ConfigError(
            f"config.json is of a model of type {raw.get('model_type')!r}; this program runs LLaVA-1.5 ('llava'). "
            "LLaVA-1.6 ('llava_next') and others are different models."
        )
    text_raw, vision_part = raw.get("text_config"), raw.get("vision_config")
    if not isinstance(text_raw, Mapping) or not isinstance(vision_part, Mapping):
        raise ConfigError(
            "config.json lacks text_config or vision_config, or they are no objects. Fetch the model again."
        )
    top = _Reader(raw, "config.json", _TOP_OMISSIONS, _IGNORED)
    top.must_be_off("quantization_config", "a quantized checkpoint")
    text = _text_config(text_raw, tie=_is_tied(raw))
    image_key = "image_token_index" if "image_token_index" in raw else "image_token_id"
    config = LlavaConfig(
        text_config=text,
        vision_config=_vision_config(vision_part),
        image_token_id=top.integer(image_key),
        vision_feature_layer=top.integer("vision_feature_layer"),
        vision_feature_select_strategy=top.text("vision_feature_select_strategy"),  # type: ignore[arg-type]
        projector_hidden_act=top.text("projector_hidden_act"),
        multimodal_projector_bias=top.flag("multimodal_projector_bias"),
        bos_token_id=_token_id(text_raw, "bos_token_id"),
        eos_token_id=_token_id(text_raw, "eos_token_id"),
        pad_token_id=_pad_token_id(raw, text_raw),
        dtype=_dtype(raw, text_raw),
    )
    known = {"model_type", "text_config", "vision_config", "image_token_index", "image_token_id", "tie_word_embeddings",
             "bos_token_id", "eos_token_id"}  # fmt: skip
    top.check_unknown(known)
    return config


class _Reader:
    """Typed access to one level of a config, remembering what was read."""

    def __init__(
        self, raw: Mapping[str, Any], where: str, omissions: Mapping[str, Any], ignored: Mapping[str, str]
    ) -> None:
        self._raw = raw
        self._where = where
        self._omissions = omissions
        self._ignored = ignored
        self._read: set[str] = set()

    def value(self, key: str) -> Any:
        self._read.add(key)
        if self._raw.get(key) is not None:
            return self._raw[key]
        if key in self._omissions:
            return self._omissions[key]
        raise ConfigError(
            f"{self._where} has no {key}; it cannot be guessed. Use the config.json made for these weights."
        )

    def integer(self, key: str) -> int:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self._where}: {key} must be a whole number, got {value!r}.")
        return value

    def number(self, key: str) -> float:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{self._where}: {key} must be a finite number, got {value!r}.")
        return float(value)

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise ConfigError(f"{self._where}: {key} must be a string, got {value!r}.")
        return value

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where}: {key} must be true or false, got {value!r}.")
        return value

    def must_be_off(self, key: str, meaning: str) -> None:
        """Refuse a feature that LLaVA-1.5 does not have."""
        self._read.add(key)
        if self._raw.get(key) not in (None, False, 0, [], {}):
            raise ConfigError(f"{self._where}: {key} is {self._raw[key]!r}; {meaning} is not part of LLaVA-1.5.")

    def check_unknown(self, known: set[str]) -> None:
        unknown = set(self._raw) - self._read - known - set(self._ignored)
        if unknown:
            raise ConfigError(
                f"{self._where} has unknown keys {', '.join(sorted(map(str, unknown)))}; they may change the result, "
                "so the model is refused. Remove them if they are notes of your own."
            )


def _text_config(raw: Mapping[str, Any], *, tie: bool) -> TextConfig:
    where = "config.json, text_config"
    if raw.get("model_type", "llama") != "llama":
        raise ConfigError(f"{where} is of type {raw['model_type']!r}; LLaVA-1.5 has a LLaMA decoder ('llama').")
    reader = _Reader(raw, where, _TEXT_OMISSIONS, _IGNORED)
    for key, meaning in (
        ("rope_scaling", "a rescaled rotary position"), ("attention_bias", "an attention bias"),
        ("mlp_bias", "an MLP bias"),
        ("sliding_window", "a sliding window"), ("quantization_config", "a quantized checkpoint"),
    ):  # fmt: skip
        reader.must_be_off(key, meaning)
    heads, hidden = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    head_dim = raw.get("head_dim")
    if head_dim is None and (heads < 1 or hidden % heads):
        raise ConfigError(f"{where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}.")
    config = TextConfig(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads if raw.get("num_key_value_heads") is None else reader.integer("num_key_value_heads"),
        head_dim=hidden // heads if head_dim is None else reader.integer("head_dim"),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope_theta=_rope_theta(raw, reader, where),
        hidden_act=reader.text("hidden_act"),
        tie_word_embeddings=tie,
    )
    known = {"model_type", "rope_parameters", "num_key_value_heads", "head_dim", "tie_word_embeddings", "bos_token_id",
             "eos_token_id"}  # fmt: skip
    reader.check_unknown(known)
    return config


def _rope_theta(raw: Mapping[str, Any], reader: _Reader, where: str) -> float:
    """``rope_theta``, or transformers 5's ``rope_parameters`` around it."""
    parameters = raw.get("rope_parameters")
    if parameters is None:
        return reader.number("rope_theta")
    if not isinstance(parameters, Mapping) or parameters.get("rope_type", "default") != "default":
        raise ConfigError(f"{where}: rope_parameters are {parameters!r}; LLaVA-1.5 has the default rotary position.")
    inner = _Reader(parameters, f"{where}.rope_parameters", {}, {})
    theta = inner.number("rope_theta")
    inner.check_unknown({"rope_type"})
    return theta


def _vision_config(raw: Mapping[str, Any]) -> VisionConfig:
    where = "config.json, vision_config"
    if raw.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ConfigError(
            f"{where} is of type {raw['model_type']!r}; LLaVA-1.5 has a CLIP tower ('clip_vision_model')."
        )
    reader = _Reader(raw, where, _VISION_OMISSIONS, _IGNORED)
    config = VisionConfig(
        hidden_size=reader.integer("hidden_size"),
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        num_attention_heads=reader.integer("num_attention_heads"),
        num_channels=reader.integer("num_channels"),
        image_size=reader.integer("image_size"),
        patch_size=reader.integer("patch_size"),
        hidden_act=reader.text("hidden_act"),
        layer_norm_eps=reader.number("layer_norm_eps"),
    )
    reader.check_unknown({"model_type", "tie_word_embeddings", "bos_token_id", "eos_token_id"})
    return config


def _token_id(raw: Mapping[str, Any], key: str) -> int:
    return _Reader(raw, "config.json, text_config", _TEXT_OMISSIONS, _IGNORED).integer(key)


def _is_tied(raw: Mapping[str, Any]) -> bool:
    return _Reader(raw, "config.json", {"tie_word_embeddings": False}, {}).flag("tie_word_embeddings")


def _pad_token_id(*levels: Mapping[str, Any]) -> int | None:
    """Take the first padding id that a level names; a model without one is fine."""
    for raw in levels:
        if raw.get("pad_token_id") is not None:
            return _Reader(raw, "config.json", {}, {}).integer("pad_token_id")
    return None


def _dtype(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> str:
    """Return the stored dtype; files without one are float32, as their library reads them."""
    for source in (raw, text_raw):
        for key in ("dtype", "torch_dtype"):
            if source.get(key) is not None:
                return str(source[key]).removeprefix("torch.")
    return "float32"


def _parse_original(raw: Mapping[str, Any], vision_raw: Mapping[str, Any] | None) -> LlavaConfig:
    """Read the original repository's ``LlavaLlamaForCausalLM`` with its separate CLIP tower."""
    if raw.get("model_type") not in ("llava", "llava_llama"):
        raise ConfigError(
            f"config.json is of type {raw.get('model_type')!r}; an original LLaVA is 'llava' or 'llava_llama'."
        )
    if vision_raw is None:
        raise ConfigError(
            f"original LLaVA checkpoints need the CLIP tower {raw.get('mm_vision_tower')!r} beside them; its "
            "config.json was not found. Fetch it, or pass its folder."
        )
    fixed = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}
    for key, needed in fixed.items():
        if raw.get(key, needed) != needed:
            raise ConfigError(f"config.json: {key} is {raw[key]!r}; LLaVA-1.5 has {needed!r}.")
    if raw.get("mm_patch_merge_type", "flat") != "flat" or raw.get("image_aspect_ratio", "pad") not in (
        "pad",
        "square",
    ):
        raise ConfigError(
            "config.json is of a LLaVA with several tiles per picture (LLaVA-1.6); this program runs LLaVA-1.5."
        )
    top = _Reader(raw, "config.json", {}, _ORIGINAL_IGNORED)
    layer = top.integer("mm_vision_select_layer")
    text_keys = {key: value for key, value in raw.items() if not key.startswith("mm_") and key not in _ORIGINAL_IGNORED}
    text_keys.update({key: raw[key] for key in ("vocab_size", "max_position_embeddings") if key in raw})
    text_keys.update(model_type="llama")
    text = _text_config(text_keys, tie=_is_tied(raw))
    vision = vision_raw.get("vision_config", vision_raw)
    if not isinstance(vision, Mapping):
        raise ConfigError("the CLIP tower's config.json has a vision_config that is no object. Fetch the tower again.")
    return LlavaConfig(
        text_config=text,
        vision_config=_vision_config({k: v for k, v in vision.items() if k != "model_type"}),
        image_token_id=text.vocab_size,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        bos_token_id=_token_id(text_keys, "bos_token_id"),
        eos_token_id=_token_id(text_keys, "eos_token_id"),
        pad_token_id=_pad_token_id(raw),
        dtype=_dtype(raw, {}),
    )
