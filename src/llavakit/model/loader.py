"""Fill a model with the tensors of an opened checkpoint.

The checkpoint has already accounted for every name and shape. Where the stored dtype is the wanted one and
the device is the CPU, parameters *are* the mapped file: loading costs no time and no memory of its own.
Otherwise tensors are converted one by one and the file's pages are given back as soon as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import MissingTensorError, NonFiniteError
from llavakit.core.wording import counted
from llavakit.kernels.library import has_library
from llavakit.model.layers import Embedding, Linear
from llavakit.model.llava import Llava
from llavakit.model.stored_matrix import StoredMatrix
from llavakit.model.threads import keep_freed_memory, prefer_large_pages

__all__ = ["StoredTensor", "build_meta_model", "load_model"]

# Tensors up to this size are checked for NaN and infinity at load: norms and biases. Checking all weights would read
# the whole file, which is what mapping it avoids, and the tower's alone take a second; a NaN elsewhere is met at the
# first token, and then looked for.
_MAX_CHECKED_BYTES = 1 << 20
_HALVES = ("float16", "bfloat16")


class StoredTensor(Protocol):
    """One tensor of a checkpoint (``weights.checkpoint.RawTensor``)."""

    @property
    def dtype(self) -> str:
        """``float32``, ``float16``, ``bfloat16``, or a quantized type of GGUF."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def data(self) -> np.ndarray:
        """The bytes, as a writable uint8 view of the file."""

    @property
    def is_quantized(self) -> bool:
        """Whether the bytes are blocks with scales."""

    @property
    def has_interleaved_heads(self) -> bool:
        """Whether rows are in GGUF's order of rotary pairs."""

    def release(self) -> None:
        """Give the pages back to the operating system; they can be read again."""


def build_meta_model(config: LlavaConfig) -> Llava:
    """Build the module tree without memory for its weights."""
    with torch.device("meta"):
        return Llava(config).eval()


def load_model(
    config: LlavaConfig,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_storage_kept: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Llava:
    """Build a model and fill it.

    Parameters
    ----------
    config : LlavaConfig
    tensors : mapping from parameter name to StoredTensor
        Exactly the model's parameters, with their shapes.
    dtype : torch.dtype
        Of the weights in memory.
    device : torch.device
    is_storage_kept : bool, default False
        Matrices of linear layers and token embeddings stay as stored, quantized or in half precision, and ``dtype`` is
        that of everything else: products convert as they go. Only on a CPU; elsewhere quantized matrices are expanded.
    on_progress : callable, optional
        Called with tensors done and tensors in all.

    Returns
    -------
    Llava
        In evaluation mode, without gradients.

    Raises
    ------
    NonFiniteError
        If a small tensor holds NaN or infinity.
    MissingTensorError
        If ``tensors`` lacks a parameter.
    """
    prefer_large_pages()
    keep_freed_memory()
    model = build_meta_model(config)
    names = [name for name, _ in model.named_parameters()]
    if missing := [name for name in names if name not in tensors]:
        raise MissingTensorError(f"{counted(len(missing), 'tensor')} missing; the first is {missing[0]!r}.")
    is_kept = is_storage_kept and device.type == "cpu"
    for done, name in enumerate(names, start=1):
        _fill(model, name, tensors[name], dtype=dtype, device=device, is_kept=is_kept)
        if on_progress is not None:
            on_progress(done, len(names))
    if is_kept and has_library():
        model.use_native()
    if config.text_config.tie_word_embeddings:
        model.lm_head.weight = model.language_model.embed_tokens.weight
        model.lm_head.matrix = model.language_model.embed_tokens.matrix
    return model


def _fill(
    model: Llava, name: str, stored: StoredTensor, *, dtype: torch.dtype, device: torch.device, is_kept: bool
) -> None:
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    matrix_of = (
        module if leaf == "weight" and isinstance(module, Linear | Embedding) and "position" not in name else None
    )
    if stored.has_interleaved_heads and isinstance(module, Linear):
        module.interleaved_head_dim = model.config.text_config.head_dim
    is_half = stored.dtype in _HALVES
    if is_kept and matrix_of is not None and (stored.is_quantized or (is_half and has_library())):
        matrix_of.matrix = StoredMatrix(stored.data, stored.dtype, stored.shape)
        module.register_parameter("weight", None)
        return
    if is_kept and matrix_of is not None and is_half:
        dtype = getattr(torch, stored.dtype)
    tensor = _convert(name, stored, dtype=dtype, device=device)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _convert(name: str, stored: StoredTensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    if stored.is_quantized:
        expanded = StoredMatrix(stored.data, stored.dtype, stored.shape).expand().to(device=device, dtype=dtype)
        stored.release()
        return expanded
    tensor = torch.from_numpy(stored.data).view(getattr(torch, stored.dtype)).view(stored.shape)
    if tensor.nbytes <= _MAX_CHECKED_BYTES and not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"tensor {name!r} of the checkpoint holds NaN or infinity; finite numbers are needed. "
            "The file is damaged or its training diverged: fetch it again."
        )
    if tensor.dtype == dtype and device.type == "cpu":
        return tensor
    converted = tensor.to(device=device, dtype=dtype)
    stored.release()
    return converted
