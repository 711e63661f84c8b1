"""Whether a model's weights are still those that something was computed with."""

from __future__ import annotations

from torch import Tensor, nn

from llavakit.model.layers import Linear

__all__ = ["WeightsState", "read_weights_state"]

# Per tensor: where it lies, and how often torch has written to it.
WeightsState = tuple[tuple[int, int | None], ...]


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


def _num_writes(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
