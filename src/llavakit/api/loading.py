"""From a model's name to a model ready to answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from llavakit.api.loaded_model import LoadedModel
from llavakit.core.errors import CapacityError, ConfigError
from llavakit.kernels.library import has_library
from llavakit.model.loader import load_model
from llavakit.processing.presets import default_preset_name, load_presets
from llavakit.processing.sources import SourcePolicy
from llavakit.processing.tokenizer import Tokenizer
from llavakit.weights.checkpoint import Checkpoint
from llavakit.weights.opening import open_resolved
from llavakit.weights.read_ahead import start_reading_ahead
from llavakit.weights.store import resolve

__all__ = ["choose_dense_dtype", "choose_device", "choose_dtype", "load"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_KV_DTYPES = ("auto", "q8_0")
# Models up to this size in float32 are widened on a CPU: exact, and much the fastest there for float16 files.
_MAX_WIDENED_BYTES = 2 * 1024**3


def load(
    model: str | Path = "llava:tiny",
    *,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    preset: str | None = None,
    mmproj: str | Path | None = None,
    kv_dtype: str = "auto",
    policy: SourcePolicy | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """Load a model and everything it needs to answer.

    Parameters
    ----------
    model : str or Path, default "llava:tiny"
        ``llava:tiny`` (embedded), ``llava:7b``, ``llava:13b``, a Hugging Face id, a folder, or a ``.gguf`` file.
    dtype : str or torch.dtype, optional
        ``float32``, ``float16`` or ``bfloat16``, of weights and of everything computed. By default a CPU computes in
        float32: matrices of GGUF files, and of models over 2 GiB with weights of 16 bits, stay as they are stored,
        mapped and not copied, and are multiplied by the native library; smaller models are widened. A GPU computes in
        the dtype that is stored, and GGUF's matrices are expanded there.
    device : str, int or torch.device, optional
        By default the first GPU if there is one, else the CPU.
    preset : {"original", "hf"}, optional
        How pictures and prompts are prepared; by default what the model's folder says, else ``original``.
    mmproj : str or Path, optional
        The projector of a GGUF language model; by default the one beside it.
    kv_dtype : {"auto", "q8_0"}
        How keys and values of past tokens are kept: as the model computes them (float16 beside matrices as stored), or
        in 8 bits with a scale for every 32 numbers.
    policy : SourcePolicy, optional
        Which picture sources are allowed, and their limits.
    on_progress : callable, optional
        Called with tensors done and tensors in all.

    Returns
    -------
    LoadedModel

    Raises
    ------
    StoreError
        If the model cannot be found or fetched.
    WeightsError, ConfigError
        If its files cannot be used.
    CapacityError
        If the device is not there.
    """
    started = time.perf_counter()
    if kv_dtype not in _KV_DTYPES:
        raise ConfigError(f"kv_dtype {kv_dtype!r} is not known; choose one of {', '.join(_KV_DTYPES)}.")
    target_device = choose_device(device)
    found = resolve(model, mmproj=mmproj)
    opened = open_resolved(found)
    checkpoint, vocabulary = opened.checkpoint, opened.vocabulary
    # Every surface loads here: once torch has come from the disk, which would wait behind the weights otherwise.
    start_reading_ahead(checkpoint.files_as_needed)
    config = checkpoint.config
    presets = load_presets(opened.processor_folder, config)
    name = preset or opened.preset or default_preset_name(opened.processor_folder)
    if name not in presets:
        raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(sorted(presets))}.")
    if vocabulary is None:
        tokenizer = Tokenizer.from_folder(found.folder, config=config)
    elif vocabulary.tokenizer_json is not None:
        tokenizer = Tokenizer.from_content(vocabulary.tokenizer_json, config=config)
    else:
        tokenizer = Tokenizer.from_pieces(vocabulary.pieces, vocabulary.scores, vocabulary.types, config=config)
    llava = load_model(
        config,
        checkpoint.tensors,
        dtype=choose_dtype(dtype, checkpoint, target_device),
        device=target_device,
        is_storage_kept=checkpoint.is_gguf or _keeps_halves(dtype, checkpoint, target_device),
        on_progress=on_progress,
    )
    if target_device.type == "cpu" and has_library():
        llava.use_native()
    if kv_dtype == "q8_0":
        llava.use_kv_blocks()
    return LoadedModel(
        model=llava,
        tokenizer=tokenizer,
        presets=presets,
        preset_name=name,
        policy=policy if policy is not None else SourcePolicy(),
        name=found.name,
        folder=found.folder,
        load_s=time.perf_counter() - started,
    )


def choose_device(device: str | int | torch.device | None) -> torch.device:
    """Turn what a user names as device into one that is there.

    Raises
    ------
    ConfigError
        If the name is no device.
    CapacityError
        If this machine does not have it.
    """
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device {device!r} is not known; use 'cpu', 'cuda' or 'cuda:N'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise CapacityError(f"device {device!r} needs a CUDA GPU, and torch finds none here. Use device='cpu'.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise CapacityError(
            f"device {device!r} was asked for, but this machine has {torch.cuda.device_count()} GPUs, counted from 0."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise CapacityError(f"device {device!r} needs Apple's GPU, and torch finds none here. Use device='cpu'.")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {device!r} is not supported; use 'cpu' or 'cuda'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Turn what a user names as dtype into a torch dtype; see `load` for the default.

    Raises
    ------
    ConfigError
        If the dtype is not one of the three supported ones.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if _is_open(dtype):
        is_kept = checkpoint.is_gguf and device.type == "cpu"
        if is_kept or _keeps_halves(dtype, checkpoint, device):
            return torch.float32
        return choose_dense_dtype(checkpoint, device)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; use one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def choose_dense_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Return the dtype in which a model is loaded whose matrices are torch's: as stored, on a CPU wider if small."""
    stored = _DTYPES[checkpoint.config.dtype]
    num_parameters = sum(tensor.num_bytes for tensor in checkpoint.tensors.values()) // stored.itemsize
    is_small = num_parameters * torch.float32.itemsize <= _MAX_WIDENED_BYTES
    return torch.float32 if device.type == "cpu" and is_small else stored


def _is_open(dtype: str | torch.dtype | None) -> bool:
    return dtype is None or dtype == "auto"


def _keeps_halves(dtype: str | torch.dtype | None, checkpoint: Checkpoint, device: torch.device) -> bool:
    """Whether a model that nobody wants in a dtype keeps matrices of 16 bits as a GGUF file's are kept.

    The native library multiplies them in 16-bit integers, several times as fast as torch does on most processors,
    between activations in float32 (docs/numerics.md).
    """
    if checkpoint.is_gguf or not _is_open(dtype) or device.type != "cpu" or not has_library():
        return False
    return choose_dense_dtype(checkpoint, device) != torch.float32
