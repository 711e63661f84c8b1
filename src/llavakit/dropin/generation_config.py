"""Settings of ``generate`` under transformers' names: defaults, files, and which of them this engine can do.

Every name is either carried out, or known and refused unless it has its neutral value. None is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, SamplingError
from llavakit.dropin.attributes import missing_attribute
from llavakit.dropin.loading_arguments import resolve_folder
from llavakit.processing.presets import read_json
from llavakit.weights.checkpoint import read_config

__all__ = ["GENERATION_SETTINGS", "GenerationConfig", "load_generation_config", "merge_generation_config"]

# Names that transformers knows and this engine does not do, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (0.4,),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "assistant_lookbehind": (10,),
    "bad_words_ids": ((), []),
    "begin_suppress_tokens": ((), []),
    "cache_config": (),
    "cache_implementation": ("dynamic",),
    "compile_config": (),
    "constraints": (),
    "continuous_batching_config": (),
    "decoder_start_token_id": (),
    "disable_compile": (True, False),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "is_assistant": (False,),
    "low_memory": (False,),
    "max_cache_len": (),
    "max_matching_ngram_size": (2,),
    "max_time": (),
    "no_repeat_ngram_size": (0,),
    "num_assistant_tokens": (20, 5),
    "num_assistant_tokens_schedule": ("constant", "heuristic"),
    "num_beam_groups": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "penalty_alpha": (0.0,),
    "prefill_chunk_size": (),
    "prompt_lookup_num_tokens": (),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "speculation_type": (),
    "suppress_tokens": ((), []),
    "target_lookbehind": (10,),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1.0,),
    "use_mtp": (False,),
    "watermarking_config": (),
}
# transformers' value for what nobody has set.
_DEFAULT_TOP_K = 50
# Bookkeeping of files that transformers writes; says nothing about generation.
_BOOKKEEPING = frozenset({"_from_model_config", "_commit_hash", "_original_object_hash", "transformers_version"})


@dataclass(init=False)
class GenerationConfig:
    """What ``generate`` does when it is not told otherwise. None means transformers' default.

    Other names of transformers are taken with values that ask for nothing, and read as None.

    Parameters
    ----------
    max_new_tokens, max_length : int, optional
        Limit of new tokens; of prompt and new tokens together. The first one wins; without either 20 new tokens.
    min_new_tokens, min_length : int, optional
        No end token before so many new tokens; prompt and new tokens together.
    do_sample : bool, optional
        False (greedy or beams) by default. temperature, top_k (50), top_p and min_p apply to sampling only.
    repetition_penalty : float, optional
    num_beams, length_penalty, early_stopping : optional
        Beam search.
    num_return_sequences : int, optional
        Answers per prompt: samples, or the best beams.
    stop_strings : str or list of str, optional
        The answer ends with the token that completes one of them.
    eos_token_id : int or list of int, optional
    pad_token_id : int, optional
        Fills the rows of a batch that end early.
    use_cache : bool, optional
        Must not be False.
    return_dict_in_generate, output_scores, output_logits : bool, optional

    Raises
    ------
    SamplingError
        For a setting that is unknown, or asks for what this engine does not do; also when it is set later.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    num_return_sequences: int | None = None
    stop_strings: str | list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None

    def __init__(self, **settings: Any) -> None:
        self.update(**settings)

    def __setattr__(self, name: str, value: Any) -> None:
        _, refused = _split({name: value})
        if refused:
            raise SamplingError(_refusal(refused))
        if name in GENERATION_SETTINGS:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> None:
        # Only called for what is no setting of this class.
        if name not in _NEUTRAL:
            raise missing_attribute("GenerationConfig", name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name: str | Path, *, local_files_only: bool = False) -> GenerationConfig:
        """Read the settings of a model: a folder, a Hugging Face id, or ``llava:tiny`` and the like.

        Raises
        ------
        ConfigError
            If the file asks for what this engine does not do.
        StoreError
            If the model cannot be found.
        """
        found = resolve_folder(pretrained_model_name, allow_download=not local_files_only, with_weights=False)
        return load_generation_config(found.folder, read_config(found.folder, vision_folder=found.vision_folder))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> GenerationConfig:
        """Take settings from a mapping."""
        return cls(**config_dict)

    def update(self, **settings: Any) -> dict[str, Any]:
        """Change several settings at once, or none where one is refused; return those that were not used: none."""
        _, refused = _split(settings)
        if refused:
            raise SamplingError(_refusal(refused))
        for name, value in settings.items():
            setattr(self, name, value)
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that have a value."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


GENERATION_SETTINGS = frozenset(field.name for field in fields(GenerationConfig))


def merge_generation_config(base: GenerationConfig, given: Any, settings: Mapping[str, Any]) -> GenerationConfig:
    """Put settings on top of a model's defaults.

    Parameters
    ----------
    base : GenerationConfig
        The model's.
    given : GenerationConfig, mapping, or object with ``to_dict()``, optional
        The ``generation_config`` argument; transformers' own class will do.
    settings : mapping
        Keyword arguments. None switches a setting off that has a default: ``top_k=None`` samples from all tokens,
        ``eos_token_id=None`` never ends early.

    Raises
    ------
    SamplingError
        If a name is unknown, or asks for what this engine does not do.
    """
    merged = base
    mine = {} if given is None else dict(given) if isinstance(given, Mapping) else given.to_dict()
    layers = [mine, dict(settings)]
    for layer in layers:
        supported, refused = _split(layer)
        if refused:
            raise SamplingError(_refusal(refused))
        merged = replace(merged, **supported)
    off = {name: None for name, value in settings.items() if value is None and name in GENERATION_SETTINGS}
    top_k = _DEFAULT_TOP_K if merged.top_k is None else merged.top_k
    return replace(merged, **{"top_k": top_k, **off})  # type: ignore[arg-type]


def load_generation_config(folder: Path, config: LlavaConfig) -> GenerationConfig:
    """Read ``generation_config.json``; without one, take the special tokens of the model's configuration.

    Raises
    ------
    ConfigError
        If the file is no JSON object or asks for what this engine does not do.
    """
    defaults = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    path = folder / "generation_config.json"
    if not path.is_file():
        return defaults
    supported, refused = _split(read_json(path))
    if refused:
        raise ConfigError(f"{path.name} of {folder.name!r}: {_refusal(refused)}")
    return replace(defaults, **supported)


def _split(layer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that can be carried out, and those that cannot."""
    given = {name: value for name, value in layer.items() if value is not None and name not in _BOOKKEEPING}
    supported = {name: value for name, value in given.items() if name in GENERATION_SETTINGS}
    rest = {name: value for name, value in given.items() if name not in GENERATION_SETTINGS}
    return supported, {name: value for name, value in rest.items() if not _is_neutral(name, value)}


def _is_neutral(name: str, value: Any) -> bool:
    # Not `in`: 0 == False, and a list never equals a tuple.
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(name, ()))


def _refusal(refused: Mapping[str, Any]) -> str:
    known = [f"{name}={value!r}" for name, value in refused.items() if name in _NEUTRAL]
    unknown = [name for name in refused if name not in _NEUTRAL]
    parts = []
    if known:
        parts.append(f"generate does not do {', '.join(known)}; this engine has no such step. Leave it out.")
    if unknown:
        parts.append(
            f"generate does not know the argument {', '.join(map(repr, unknown))}; check its spelling or leave it out."
        )
    return " ".join(parts)
