"""The arguments of ``from_pretrained``: which are honoured, which are refused, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llavakit.api.loading import choose_device
from llavakit.core.errors import ConfigError
from llavakit.dropin.quantization import BitsAndBytesConfig
from llavakit.weights.store import ResolvedModel, resolve

__all__ = ["HUB_ARGUMENTS", "ModelArguments", "check_hub_arguments", "read_model_arguments", "resolve_folder"]

# Known to transformers, and without a meaning here. The reason completes "... is not supported: ".
_REFUSED = {
    "config": "a checkpoint is loaded with its own config.json",
    "cache_dir": "models are kept in the Hugging Face cache; set HF_HUB_CACHE to move it",
    "revision": "the store holds one revision, the default branch; download another one and pass its folder",
    "token": "the Hub's own login is used; run `hf auth login`, or set HF_TOKEN",
    "use_auth_token": "the Hub's own login is used; run `hf auth login`, or set HF_TOKEN",
    "force_download": "remove the stored model with `llavakit rm` first",
    "proxies": "set HTTPS_PROXY",
    "subfolder": "pass the folder itself",
    "variant": "pass a folder that holds one set of weights",
    "max_memory": "a model is on one device",
    "offload_folder": "weights are mapped from their files already",
    "offload_state_dict": "weights are mapped from their files already",
    "offload_buffers": "weights are mapped from their files already",
    "tp_plan": "a model is on one device",
    "device_mesh": "a model is on one device",
    "state_dict": "weights come from the checkpoint",
    "from_tf": "only safetensors and PyTorch files are read",
    "from_flax": "only safetensors and PyTorch files are read",
    "gguf_file": "GGUF files are not read by this class",
    "use_safetensors": "they are taken where a checkpoint has both kinds; remove them from the folder",
    "ignore_mismatched_sizes": "a tensor of the wrong shape is always an error",
    "output_loading_info": "every tensor is accounted for, or loading fails",
    "experts_implementation": "LLaVA has no experts",
    "use_kernels": "attention runs on torch's own kernels",
}
# Values that say what happens anyway.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "cache_dir": (None,),
    "revision": (None, "main"),
    "token": (None,),
    "use_auth_token": (None,),
    "force_download": (None, False),
    "subfolder": (None, ""),
    "use_safetensors": (None, True),
    "ignore_mismatched_sizes": (False,),
    "output_loading_info": (False,),
    "from_tf": (False,),
    "from_flax": (False,),
}
HUB_ARGUMENTS = frozenset(
    {"cache_dir", "revision", "token", "use_auth_token", "force_download", "proxies", "subfolder"}
)


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """What is left of ``from_pretrained``'s keyword arguments after checking."""

    dtype: str | torch.dtype | None
    device: torch.device
    quantization: BitsAndBytesConfig | None
    allow_download: bool


def read_model_arguments(arguments: Mapping[str, Any]) -> ModelArguments:
    """Check the keyword arguments of ``LlavaForConditionalGeneration.from_pretrained``.

    Raises
    ------
    ConfigError
        For an argument that is unknown or not supported, by name.
    CapacityError
        If this machine does not have the device.
    """
    rest = dict(arguments)
    dtypes = {name: dtype for name in ("dtype", "torch_dtype") if (dtype := rest.pop(name, None)) is not None}
    if len({str(dtype) for dtype in dtypes.values()}) > 1:
        raise ConfigError(
            f"dtype={dtypes['dtype']!r} and torch_dtype={dtypes['torch_dtype']!r} differ; they mean the same, give one."
        )
    device = _read_device_map(rest.pop("device_map", None))
    quantization = _read_quantization(
        rest.pop("quantization_config", None), four=rest.pop("load_in_4bit", None), eight=rest.pop("load_in_8bit", None)
    )
    _read_attention(
        rest.pop("attn_implementation", None), use_flash=rest.pop("use_flash_attention_2", None), device=device
    )
    rest.pop("low_cpu_mem_usage", None)  # always so: weights are mapped, or converted one by one
    local_only = bool(rest.pop("local_files_only", False))
    check_hub_arguments(rest)
    if (
        quantization is not None
        and device.type == "cpu"
        and torch.cuda.is_available()
        and "device_map" not in arguments
    ):
        device = choose_device(None)  # bitsandbytes quantizes on a GPU, and transformers goes there by itself
    return ModelArguments(
        dtype=next(iter(dtypes.values()), None), device=device, quantization=quantization, allow_download=not local_only
    )


def check_hub_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what is unknown or not supported, by name.

    Raises
    ------
    ConfigError
    """
    for name, value in arguments.items():
        if name == "trust_remote_code":
            if value:
                raise ConfigError(
                    "trust_remote_code=True is not supported: no code of a repository is ever run. Leave it out."
                )
        elif name in _HARMLESS and value in _HARMLESS[name]:
            continue
        elif name in _REFUSED:
            if value is not None:
                raise ConfigError(f"{name}={value!r} is not supported: {_REFUSED[name]}.")
        else:
            raise ConfigError(
                f"from_pretrained does not know the argument {name!r}; check its spelling or leave it out."
            )


def _read_device_map(device_map: Any) -> torch.device:
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, Mapping):
        places = set(map(str, device_map.values()))
        if len(places) != 1:
            raise ConfigError(
                f"device_map spreads the model over {', '.join(sorted(places)) or 'no device'}; a model is on "
                "one device here. Use device_map='auto', 'cuda:0' or 'cpu'."
            )
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return choose_device(None)
    return choose_device(device_map)


def _read_quantization(config: Any, *, four: bool | None, eight: bool | None) -> BitsAndBytesConfig | None:
    if config is None:
        found = BitsAndBytesConfig(load_in_4bit=bool(four), load_in_8bit=bool(eight))
    elif four or eight:
        raise ConfigError("quantization_config was given together with load_in_4bit or load_in_8bit; say it once.")
    elif isinstance(config, BitsAndBytesConfig):
        found = config
    elif isinstance(config, Mapping):
        known = BitsAndBytesConfig.__dataclass_fields__
        if unknown := [name for name in config if name not in known and name != "quant_method"]:
            raise ConfigError(f"quantization_config does not know {', '.join(unknown)}; it knows {', '.join(known)}.")
        found = BitsAndBytesConfig(**{name: value for name, value in config.items() if name != "quant_method"})
    else:
        raise ConfigError(
            f"quantization_config is a {type(config).__name__}; llavakit's BitsAndBytesConfig and dicts are understood."
        )
    return None if found.num_bits is None else found


def _read_attention(implementation: Any, *, use_flash: bool | None, device: torch.device) -> None:
    wanted = implementation if implementation is not None else "flash_attention_2" if use_flash else "sdpa"
    if wanted == "sdpa":
        return
    if wanted in ("flash_attention_2", "flash_attention_3"):
        if device.type != "cuda" and not torch.cuda.is_available():
            _say_once(
                f"{wanted} needs a CUDA GPU, and torch finds none here: torch's SDPA is used "
                "instead, with the same result."
            )
    elif wanted == "eager":
        _say_once("attention runs through torch's SDPA, which computes the same as the 'eager' implementation.")
    else:
        raise ConfigError(
            f"attn_implementation={wanted!r} is not supported; use 'sdpa' (also for 'flash_attention_2' and 'eager')."
        )


def _say_once(message: str) -> None:
    # Python's default filter shows a warning of one text from one place once.
    warnings.warn(message, UserWarning, stacklevel=2)


def resolve_folder(name: str | Path, *, allow_download: bool, with_weights: bool = True) -> ResolvedModel:
    """Find a model whose files are those of transformers.

    Raises
    ------
    ConfigError
        If it is a GGUF file.
    StoreError
        If it cannot be found.
    """
    found = resolve(name, allow_download=allow_download, with_weights=with_weights)
    if found.gguf_file is not None:
        raise ConfigError(
            f"{found.gguf_file.name} is a GGUF file, which this interface does not read. Use llavakit.load, or "
            f"make a folder of it: llavakit convert {found.gguf_file.name} FOLDER --type bf16."
        )
    return found
