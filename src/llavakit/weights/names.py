"""The one table of tensor names: every dialect's name to ours, and what is left out on purpose."""

from __future__ import annotations

import re
from enum import StrEnum

from llavakit.core.config import LlavaConfig

__all__ = [
    "Dialect", "canonical_name", "find_dialect", "gguf_projector_name", "gguf_text_name", "skip_reason", "to_gguf",
    "to_hf_legacy",
]  # fmt: skip


class Dialect(StrEnum):
    """How a checkpoint names its tensors."""

    HF_LEGACY = "hf-legacy"  # what llava-hf repositories have on disk
    HF_CURRENT = "hf-current"  # module names of transformers from 4.52 on
    ORIGINAL = "original"  # the LLaVA repository, with its separate CLIP tower
    GGUF = "gguf"  # a pair of files of llama.cpp's world


# Rewrites of a name's beginning, first match wins; after them the name is ours.
_PREFIXES: dict[Dialect, tuple[tuple[str, str], ...]] = {
    Dialect.HF_LEGACY: (
        (r"^language_model\.model\.", "language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
    ),
    Dialect.HF_CURRENT: (
        (r"^model\.language_model\.", "language_model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
        (r"^model\.vision_tower\.(vision_model\.)?", "vision_tower."),
    ),
    Dialect.ORIGINAL: (
        (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
        (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
        (r"^model\.vision_tower\.vision_tower\.vision_model\.", "vision_tower."),
        (r"^vision_model\.", "vision_tower."),
        # A CLIPVisionModel saved by transformers from 5.6 on has no level above these.
        (r"^(embeddings|pre_layrnorm|encoder|post_layernorm)\.", r"vision_tower.\1."),
        (r"^model\.", "language_model."),
    ),
}
# CLIP's own misspelling exists only in files.
_SPELLING = (r"^vision_tower\.pre_layrnorm\.", "vision_tower.pre_layernorm.")

_SKIPPED: tuple[tuple[str, str], ...] = (
    (r"\.rotary_emb\.inv_freq$", "stale buffer: rotary frequencies follow from the configuration"),
    (r"\.embeddings\.position_ids$", "stale buffer: a counting index"),
    (r"^vision_tower\.post_layernorm\.", "comes after the feature layer; LLaVA never runs it"),
    (
        r"^(text_model|text_projection|visual_projection)\.",
        "CLIP's text side and projections; LLaVA uses the tower only",
    ),
    (r"^logit_scale$", "CLIP's contrastive training"),
    (
        r"^(rope_freqs\.weight|blk\.\d+\.attn_rot_embd)",
        "stale buffer: rotary frequencies follow from the configuration",
    ),
)
# GGUF: the name of a whole tensor, or of what stands behind a block's number.
_GGUF_TEXT = {"token_embd": "language_model.embed_tokens", "output_norm": "language_model.norm", "output": "lm_head"}
_GGUF_TEXT_BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GGUF_VISION = {
    "v.class_embd": "embeddings.class_embedding", "v.patch_embd.weight": "embeddings.patch_embedding.weight",
    "v.position_embd.weight": "embeddings.position_embedding.weight", "v.pre_ln.weight": "pre_layernorm.weight",
    "v.pre_ln.bias": "pre_layernorm.bias", "v.post_ln.weight": "post_layernorm.weight",
    "v.post_ln.bias": "post_layernorm.bias",
}  # fmt: skip
_GGUF_VISION_BLOCK = {
    "ln1": "layer_norm1", "ln2": "layer_norm2", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_out": "self_attn.out_proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip
_SWAPPED = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
_GGUF_BLOCK = re.compile(r"(v\.)?blk\.(\d{1,4})\.(\w+)\.(weight|bias)")
_GGUF_PROJECTOR = re.compile(r"mm\.([02])\.(weight|bias)")

_VISION_BLOCK = re.compile(r"^vision_tower\.encoder\.layers\.(\d+)\.")


def find_dialect(names: set[str]) -> Dialect | None:
    """Tell the dialect from the names in a checkpoint, or None."""
    if any(name.startswith("language_model.") for name in names):
        return Dialect.HF_LEGACY
    if any(name.startswith("model.language_model.") for name in names):
        return Dialect.HF_CURRENT
    if any(name.startswith("model.mm_projector.") for name in names):
        return Dialect.ORIGINAL
    return None


def canonical_name(name: str, dialect: Dialect) -> str:
    """Translate a file's tensor name to ours."""
    for pattern, replacement in _PREFIXES[dialect]:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            name = renamed
            break
    return re.sub(*_SPELLING, name)


def gguf_text_name(name: str) -> str:
    """Translate a tensor name of a GGUF language model to ours; unknown names stay as they are."""
    stem, _, leaf = name.rpartition(".")
    if stem in _GGUF_TEXT:
        return f"{_GGUF_TEXT[stem]}.{leaf}"
    match = _GGUF_BLOCK.fullmatch(name)
    if match is None or match.group(1) or match.group(3) not in _GGUF_TEXT_BLOCK:
        return name
    return f"language_model.layers.{match.group(2)}.{_GGUF_TEXT_BLOCK[match.group(3)]}.{match.group(4)}"


def gguf_projector_name(name: str, *, is_swapped: bool) -> str:
    """Translate a tensor name of a GGUF projector file to ours; unknown names stay as they are.

    Parameters
    ----------
    name : str
    is_swapped : bool
        Whether the file calls the first feed-forward matrix ``ffn_down``, as the old converter did.
    """
    if name in _GGUF_VISION:
        return f"vision_tower.{_GGUF_VISION[name]}"
    if match := _GGUF_PROJECTOR.fullmatch(name):
        return f"multi_modal_projector.linear_{1 if match.group(1) == '0' else 2}.{match.group(2)}"
    match = _GGUF_BLOCK.fullmatch(name)
    if match is None or not match.group(1) or match.group(3) not in _GGUF_VISION_BLOCK:
        return name
    part = match.group(3)
    if is_swapped:
        part = _SWAPPED.get(part, part)
    return f"vision_tower.encoder.layers.{match.group(2)}.{_GGUF_VISION_BLOCK[part]}.{match.group(4)}"


def skip_reason(name: str, config: LlavaConfig) -> str | None:
    """Why a tensor, by our name, is left out; None if it is not."""
    for pattern, reason in _SKIPPED:
        if re.search(pattern, name):
            return reason
    match = _VISION_BLOCK.match(name)
    if match and config.num_vision_blocks <= int(match.group(1)) < config.vision_config.num_hidden_layers:
        return f"vision block above the feature layer {config.vision_feature_layer}; LLaVA never runs it"
    if name == "lm_head.weight" and config.text_config.tie_word_embeddings:
        return "tied to the token embeddings"
    return None


def to_hf_legacy(name: str) -> str:
    """Translate our name to the one in llava-hf files."""
    name = name.replace("vision_tower.pre_layernorm.", "vision_tower.pre_layrnorm.")
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return f"language_model.{name}" if name.startswith("lm_head.") else name


def to_gguf(name: str) -> str:
    """Translate our name to the one in GGUF files.

    The tower's first feed-forward matrix is called ``ffn_down``, as the converter of 2023 did: programs of that time
    know no other name, and later ones tell by its shape.
    """
    stem, _, leaf = name.rpartition(".")
    if part := {ours: theirs for theirs, ours in _GGUF_TEXT.items()}.get(stem):
        return f"{part}.{leaf}"
    if match := re.fullmatch(r"language_model\.layers\.(\d+)\.(.+)", stem):
        parts = {ours: theirs for theirs, ours in _GGUF_TEXT_BLOCK.items()}
        return f"blk.{match.group(1)}.{parts[match.group(2)]}.{leaf}"
    if match := re.fullmatch(r"multi_modal_projector\.linear_([12])", stem):
        return f"mm.{0 if match.group(1) == '1' else 2}.{leaf}"
    if match := re.fullmatch(r"vision_tower\.encoder\.layers\.(\d+)\.(.+)", stem):
        parts = {ours: theirs for theirs, ours in _GGUF_VISION_BLOCK.items()}
        part = _SWAPPED.get(parts[match.group(2)], parts[match.group(2)])
        return f"v.blk.{match.group(1)}.{part}.{leaf}"
    return {f"vision_tower.{ours}": theirs for theirs, ours in _GGUF_VISION.items()}[name]
