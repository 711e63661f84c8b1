"""Whether a model's weights are still those that something was computed with, and which of them are no numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llavakit.model.layers import Embedding, Linear

__all__ = ["WeightsState", "find_non_finite", "read_weights_state"]

# Per tensor: where it lies, and how often torch has written to it.
WeightsState = tuple[tuple[int, int | None], ...]

# Weights looked at together: 64 MiB where they are widened.
_SEARCHED_WEIGHTS = 1 << 24


def read_weights_state(model: nn.Module) -> WeightsState:
    """Describe the weights so that two descriptions differ once torch has written to one, or one was replaced.

    Notes
    -----
    No weight is read: the cost grows with the number of tensors and not with their size.
    Writing through ``.data``, or by something else than torch, leaves no trace; nor do tensors made in inference mode.
    """
    state: list[tuple[int, int | None]] = []
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            state += [(tensor.data_ptr(), _num_writes(tensor)) for tensor in tensors.values() if tensor is not None]
        if isinstance(module, Linear) and module.matrix is not None:
            state.append((module.matrix.address, None))
    return tuple(state)


def find_non_finite(model: nn.Module) -> str | None:
    """Name a weight that holds NaN or infinity; None where there is none.

    Notes
    -----
    Every weight is read, a few MiB at a time: for when an answer has failed, as checking them all before would cost
    what mapping a file saves.
    """
    for name, tensor in model.named_parameters():
        flat = tensor.detach().reshape(-1)
        starts = range(0, flat.numel(), _SEARCHED_WEIGHTS)
        if not all(bool(torch.isfinite(flat[start : start + _SEARCHED_WEIGHTS]).all()) for start in starts):
            return name
    for name, module in model.named_modules():
        if isinstance(module, Linear | Embedding) and module.matrix is not None and not module.matrix.is_finite():
            return f"{name}.weight"
    return None


def _num_writes(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
