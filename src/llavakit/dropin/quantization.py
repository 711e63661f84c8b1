"""4-bit and 8-bit weights: through bitsandbytes on a GPU, through the native library on a CPU.

Only the decoder's matrices are quantized. The vision tower, the projector and the output head stay as they
are: they are a twentieth of the weights, and rounding them costs the most answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from llavakit.core.errors import CapacityError, ConfigError
from llavakit.kernels.library import load_library
from llavakit.model.layers import Linear
from llavakit.model.llava import Llava
from llavakit.model.stored_matrix import StoredMatrix
from llavakit.weights.ggml_types import is_quantized
from llavakit.weights.mixtures import fitting_type

__all__ = ["BitsAndBytesConfig", "check_quantization_possible", "quantize_decoder"]

_CPU_TYPES = {4: "q4_k", 8: "q8_0"}
_GPU_ONLY = (
    "llm_int8_threshold", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage",
)  # fmt: skip
_COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_STORAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@dataclass
class BitsAndBytesConfig:
    """How to quantize, under the argument names of transformers.

    On a CPU 4 bits are Q4_K and 8 bits Q8_0, types of GGUF; what chooses between formats of bitsandbytes has no effect
    there, and a warning says so.

    Parameters
    ----------
    load_in_8bit, load_in_4bit : bool
        One of the two, not both.
    llm_int8_threshold : float, default 6.0
        Activations above it are multiplied in 16 bits (8-bit only).
    llm_int8_skip_modules : list of str, optional
        Further modules to leave alone, by the end of their name (``q_proj``) or in full.
    bnb_4bit_compute_dtype : torch.dtype or str, optional
        Of the products; float32 by default.
    bnb_4bit_quant_type : {"fp4", "nf4"}
    bnb_4bit_use_double_quant : bool
        Quantize the scales as well.
    bnb_4bit_quant_storage : torch.dtype or str, optional
        Container of the packed weights; uint8 by default.

    Raises
    ------
    ConfigError
        If a value is out of range, or asks for offloading or 16-bit master weights.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: list[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: torch.dtype | str | None = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: torch.dtype | str | None = None

    def __post_init__(self) -> None:
        for name in ("load_in_8bit", "load_in_4bit", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
                     "bnb_4bit_use_double_quant"):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError("load_in_8bit and load_in_4bit are both True; choose one.")
        if isinstance(self.llm_int8_threshold, bool) or not isinstance(self.llm_int8_threshold, int | float):
            raise ConfigError(f"llm_int8_threshold must be a number, got {self.llm_int8_threshold!r}.")
        skip = self.llm_int8_skip_modules
        if skip is not None and (isinstance(skip, str) or not all(isinstance(name, str) for name in skip)):
            raise ConfigError(f"llm_int8_skip_modules must be a list of module names, got {skip!r}.")
        if self.llm_int8_enable_fp32_cpu_offload or self.llm_int8_has_fp16_weight:
            raise ConfigError(
                "llm_int8_enable_fp32_cpu_offload and llm_int8_has_fp16_weight are not supported: weights are neither "
                "offloaded nor trained here. Leave both False."
            )
        if self.bnb_4bit_quant_type not in ("fp4", "nf4"):
            raise ConfigError(f"bnb_4bit_quant_type is {self.bnb_4bit_quant_type!r}; it must be 'fp4' or 'nf4'.")
        self.bnb_4bit_compute_dtype = _as_dtype(
            "bnb_4bit_compute_dtype", self.bnb_4bit_compute_dtype, torch.float32, _COMPUTE_DTYPES
        )
        self.bnb_4bit_quant_storage = _as_dtype(
            "bnb_4bit_quant_storage", self.bnb_4bit_quant_storage, torch.uint8, _STORAGE_DTYPES
        )

    @property
    def num_bits(self) -> int | None:
        """4, 8, or None when nothing is asked for."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


def check_quantization_possible(config: BitsAndBytesConfig, device: torch.device) -> None:
    """Say why this machine cannot quantize, before any weight is read.

    Raises
    ------
    CapacityError
        If the model should go to a GPU and bitsandbytes is not installed, or to another device that is no CPU.
    MissingDependencyError
        If it should go to a CPU and the native library is missing.
    """
    if device.type == "cpu":
        load_library()
        changed = [name for name in _GPU_ONLY if getattr(config, name) != getattr(BitsAndBytesConfig(), name)]
        if changed:
            warnings.warn(
                f"on a CPU {', '.join(changed)} has no effect: the decoder is quantized to "
                f"{_CPU_TYPES[config.num_bits or 4].upper()} and multiplied by llavakit's own kernels.",
                UserWarning,
                stacklevel=2,
            )
        return
    what = f"{config.num_bits}-bit loading works on a CPU, and on a CUDA GPU with the bitsandbytes package"
    if device.type != "cuda":
        raise CapacityError(f"{what}, but the model should go to {str(device)!r}. Pass device_map='cuda' or 'cpu'.")
    if find_spec("bitsandbytes") is None:
        raise CapacityError(f"{what}, which is not installed here. Install it, or pass device_map='cpu'.")


def quantize_decoder(
    model: Llava, config: BitsAndBytesConfig, device: torch.device, *, on_quantized: Callable[[str], None] | None = None
) -> None:
    """Quantize the decoder's matrices one at a time, and move the model to a device.

    Parameters
    ----------
    model : Llava
        On the CPU. Changed in place.
    config : BitsAndBytesConfig
    device : torch.device
        The CPU or a CUDA device.
    on_quantized : callable, optional
        Called with the name of each weight once it is not needed any more.

    Raises
    ------
    NonFiniteError
        If a matrix holds NaN or infinity (on a CPU).
    """
    skipped = tuple(config.llm_int8_skip_modules or ())
    for name, module in list(model.language_model.named_modules()):
        full_name = f"language_model.{name}"
        if not isinstance(module, Linear) or any(_is_named(full_name, pattern) for pattern in skipped):
            continue
        if device.type == "cpu":
            _quantize_in_place(module, config)
        else:
            parent, _, leaf = name.rpartition(".")
            bnb: Any = import_module("bitsandbytes")
            quantized = _quantize_linear(bnb, module, config).to(device)
            setattr(model.language_model.get_submodule(parent), leaf, quantized)
        if on_quantized is not None:
            on_quantized(f"{full_name}.weight")
    model.to(device)
    if device.type == "cpu":
        model.language_model.use_native()


def _quantize_in_place(linear: Linear, config: BitsAndBytesConfig) -> None:
    dtype = fitting_type(_CPU_TYPES[config.num_bits or 4], linear.in_features)
    if is_quantized(dtype):  # else the rows are no whole blocks of any type
        linear.matrix = StoredMatrix.quantize(linear.weight.detach(), dtype)
        linear.register_parameter("weight", None)


def _quantize_linear(bnb: Any, linear: Linear, config: BitsAndBytesConfig) -> nn.Module:
    sizes = (linear.in_features, linear.out_features)
    weight = linear.weight.detach()
    if config.load_in_4bit:
        options = {
            "compress_statistics": config.bnb_4bit_use_double_quant,
            "quant_type": config.bnb_4bit_quant_type,
            "quant_storage": config.bnb_4bit_quant_storage,
        }
        quantized = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=config.bnb_4bit_compute_dtype, **options)
        quantized.weight = bnb.nn.Params4bit(weight, requires_grad=False, **options)
    else:
        quantized = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=config.llm_int8_threshold)
        quantized.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return quantized  # type: ignore[no-any-return]


def _is_named(full_name: str, pattern: str) -> bool:
    return full_name == pattern or full_name.endswith(f".{pattern}") or full_name.startswith(f"{pattern}.")


def _as_dtype(
    name: str, value: torch.dtype | str | None, default: torch.dtype, allowed: tuple[torch.dtype, ...]
) -> torch.dtype:
    if value is None:
        return default
    by_name = {str(dtype).removeprefix("torch."): dtype for dtype in allowed}
    dtype = by_name.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(by_name)}.")
    return dtype
