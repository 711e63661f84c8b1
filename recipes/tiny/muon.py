"""Muon: momentum whose matrices are brought near to orthogonal ones before they become steps.

As `torch.optim.Muon`, which iterates in bfloat16 whatever the processor can do: emulated, that takes most of a step's
time. Here the caller says in what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalize"]

_MOMENTUM = 0.95
_NUM_ITERATIONS = 5
# Of the iteration by Keller Jordan, of steepest slope at zero: singular values end between 0.7 and 1.2.
_FIRST, _THIRD, _FIFTH = 3.4445, -4.7750, 2.0315
_EPS = 1e-7


def orthogonalize(matrix: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Bring the singular values of a matrix near to 1 by five Newton-Schulz iterations in a dtype."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    current = matrix.to(dtype, copy=True)
    current = current.T if is_tall else current
    current.div_(current.norm().clamp(min=_EPS))
    for _ in range(_NUM_ITERATIONS):
        gram = current @ current.T
        weights = torch.addmm(gram, gram, gram, beta=_THIRD, alpha=_FIFTH)
        current = torch.addmm(current, weights, current, beta=_FIRST)
    return current.T if is_tall else current


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and steps as long as AdamW's; its state is that of `torch.optim.Muon`.

    Parameters
    ----------
    params : iterable of Tensor
        Matrices.
    lr, weight_decay : float
    dtype : torch.dtype
        Of the iterations.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in cast("list[Tensor]", group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonalize(gradient.lerp(momentum, _MOMENTUM), dtype=self._dtype)
        length = 0.2 * math.sqrt(max(parameter.shape))  # of AdamW's steps, by root mean square
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * length)
