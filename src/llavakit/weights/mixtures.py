"""Which type each tensor gets in a GGUF file of a named mixture, such as Q4_K_M.

The rules are llama.cpp's for the llama architecture without grouped queries, so that a file's name says what it says
elsewhere. Tensors are named as in our model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError
from llavakit.weights.ggml_types import type_by_name

__all__ = ["MIXTURES", "Mixture", "choose_type", "choose_vision_type", "find_mixture", "fitting_type"]

_LAYER = re.compile(r"^language_model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.weight$")
_MATRIX_DIMS = 2
# Where rows are no whole blocks of 256, the next type with blocks of 32.
_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


@dataclass(frozen=True)
class Mixture:
    """One choice of types.

    Attributes
    ----------
    name : str
        As on the command line.
    file_type : int
        ``general.file_type`` of GGUF.
    base : str
        The type of most matrices.
    output : str
        Of the head.
    """

    name: str
    file_type: int
    base: str
    output: str


_ALL = (
    Mixture("f32", 0, "float32", "float32"), Mixture("f16", 1, "float16", "float16"),
    Mixture("bf16", 32, "bfloat16", "bfloat16"),
    Mixture("q2_k", 10, "q2_k", "q6_k"), Mixture("q3_k_s", 11, "q3_k", "q6_k"), Mixture("q3_k_m", 12, "q3_k", "q6_k"),
    Mixture("q3_k_l", 13, "q3_k", "q6_k"), Mixture("q4_0", 2, "q4_0", "q6_k"), Mixture("q4_1", 3, "q4_1", "q6_k"),
    Mixture("q4_k_s", 14, "q4_k", "q6_k"), Mixture("q4_k_m", 15, "q4_k", "q6_k"), Mixture("q5_0", 8, "q5_0", "q6_k"),
    Mixture("q5_1", 9, "q5_1", "q6_k"), Mixture("q5_k_s", 16, "q5_k", "q6_k"), Mixture("q5_k_m", 17, "q5_k", "q6_k"),
    Mixture("q6_k", 18, "q6_k", "q6_k"), Mixture("q8_0", 7, "q8_0", "q8_0"),
)  # fmt: skip
MIXTURES = {mixture.name: mixture for mixture in _ALL}


def find_mixture(name: str) -> Mixture:
    """Look up a mixture by its name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    if (found := MIXTURES.get(name.lower())) is None:
        raise ConfigError(f"type {name[:50]!r} is not known; the types are {', '.join(MIXTURES)}.")
    return found


def choose_type(name: str, shape: tuple[int, ...], mixture: Mixture, config: LlavaConfig) -> str:
    """Choose the type of one tensor of the language model.

    Parameters
    ----------
    name : str
        Ours.
    shape : tuple of int
    mixture : Mixture
    config : LlavaConfig
    """
    if len(shape) < _MATRIX_DIMS:
        return "float32"
    if name == "lm_head.weight" or (name.endswith("embed_tokens.weight") and config.text_config.tie_word_embeddings):
        return fitting_type(mixture.output, shape[-1])
    match = _LAYER.fullmatch(name)
    chosen = mixture.base
    if match is not None:
        chosen = _layer_type(mixture, int(match.group(1)), match.group(2), config.text_config.num_hidden_layers)
    return fitting_type(chosen, shape[-1])


def choose_vision_type(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """Choose the type of a tensor of the tower or projector: norms, biases and the class token in full."""
    if len(shape) < _MATRIX_DIMS:
        return "float32"
    if dtype == "q8_0" and ("embedding" in name or shape[-1] % 32):
        return "float16"
    return dtype


def _layer_type(mixture: Mixture, idx: int, part: str, num_layers: int) -> str:
    has_more_bits = idx < num_layers // 8 or idx >= 7 * num_layers // 8 or (idx - num_layers // 8) % 3 == 2
    is_early = idx < num_layers // 8
    rules: dict[str, dict[str, str]] = {
        "q2_k": {"v_proj": "q3_k", "o_proj": "q3_k", "down_proj": "q3_k"},
        "q3_k_m": {
            "v_proj": "q5_k" if idx < 2 else "q4_k",
            "o_proj": "q4_k",
            "down_proj": "q5_k" if idx < num_layers // 16 else "q4_k",
        },
        "q3_k_l": {"v_proj": "q5_k", "o_proj": "q5_k", "down_proj": "q5_k"},
        "q4_k_s": {"v_proj": "q5_k" if idx < 4 else "q4_k", "down_proj": "q5_k" if is_early else "q4_k"},
        "q4_k_m": {"v_proj": "q6_k", "down_proj": "q6_k"} if has_more_bits else {},
        "q5_k_m": {"v_proj": "q6_k", "down_proj": "q6_k"} if has_more_bits else {},
    }
    return rules.get(mixture.name, {}).get(part, mixture.base)


def fitting_type(dtype: str, row_length: int) -> str:
    """Give the type, or the one it falls back to where rows are no whole blocks; in the end float16."""
    while row_length % type_by_name(dtype).block_length:
        dtype = _FALLBACK.get(dtype, "float16")
    return dtype
