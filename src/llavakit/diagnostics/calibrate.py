"""``llavakit calibrate``: what an error in each column of a matrix weighs, measured on prompts with pictures.

In: a model and prompts. Out: for every linear layer the mean square of its inputs, column by column: the expected error
of the layer's output is that, times the squared error of the weights, summed. Most of what a LLaVA decoder multiplies
are picture features; importance measured on text alone, as other programs measure it, misses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llavakit.api.loaded_model import LoadedModel
from llavakit.api.loading import choose_dense_dtype, choose_device, load
from llavakit.core.errors import ConfigError, NonFiniteError
from llavakit.diagnostics.quality import QualityPrompt, answer_ids_of, default_prompts, forward_answer
from llavakit.model.layers import Linear
from llavakit.model.llava import Llava
from llavakit.model.storage import is_stored
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

__all__ = ["Calibration", "calibrate_model"]

ProgressFn = Callable[[str, int, int], None]

# A column that was always zero keeps this share of the mean: errors in it must not become infinite.
_LEAST_SHARE = 1e-4


@dataclass(frozen=True, slots=True)
class Calibration:
    """Importance of columns.

    Parameters
    ----------
    importance : dict of str to float32 array (k,)
        By the name of the weight. Positive; the mean of each is 1.
    num_prompts, num_tokens : int
        What it was measured on; tokens of the decoder, those of pictures among them.
    """

    importance: dict[str, np.ndarray]
    num_prompts: int
    num_tokens: int


def calibrate_model(
    model: str | Path | LoadedModel,
    *,
    prompts: Sequence[QualityPrompt] | None = None,
    max_new_tokens: int = 64,
    on_progress: ProgressFn | None = None,
) -> Calibration:
    """Measure the importance of every column.

    Parameters
    ----------
    model : str, Path or LoadedModel
        As for `llavakit.load`; not a GGUF file.
    prompts : sequence of QualityPrompt, optional
        By default 40 generated questions, half of them about a generated picture. Prompts of the kind that the model is
        to answer are better.
    max_new_tokens : int, default 64
        Of the model's own answer, where a prompt brings none: an answer's tokens count too.
    on_progress : callable, optional
        Called with what is done, prompts done and prompts in all.

    Raises
    ------
    ConfigError
        If the model is a GGUF file.
    NonFiniteError
        If an activation is NaN or infinite.
    """
    loaded = model if isinstance(model, LoadedModel) else _load_dense(model)
    if is_stored(loaded.model):
        raise ConfigError(f"the matrices of {loaded.name} are kept as they are stored; load it with a dtype.")
    prompts = default_prompts() if prompts is None else prompts
    if not prompts:
        raise ConfigError("there are no prompts; at least one is needed.")
    meter = _Meter()
    for done, prompt in enumerate(prompts):
        if on_progress is not None:
            on_progress("calibrating", done, len(prompts))
        answer_ids = answer_ids_of(loaded, prompt, max_new_tokens)
        ready = loaded.prepare(prompt.text, images=list(prompt.images) or None)
        with meter.watch(loaded.model):
            forward_answer(loaded, ready, answer_ids)
        meter.num_tokens += len(ready.token_ids) + len(answer_ids)
    if on_progress is not None:
        on_progress("calibrating", len(prompts), len(prompts))
    return Calibration(meter.importance(), len(prompts), meter.num_tokens)


def _load_dense(model: str | Path) -> LoadedModel:
    """Load a model with torch's own matrices, whose inputs can be seen one by one."""
    checkpoint = open_resolved(resolve(model)).checkpoint
    if checkpoint.is_gguf:
        raise ConfigError(
            f"{model} is a GGUF file; importance is measured on the model it was made from. Name that, or "
            "convert the file to a folder first."
        )
    device = choose_device(None)
    return load(model, dtype=choose_dense_dtype(checkpoint, device), device=device)


class _Meter:
    """Sums of squares of every linear layer's inputs."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def watch(self, model: Llava) -> Iterator[None]:
        """Add up while this is open."""
        hooks = [
            module.register_forward_pre_hook(lambda _module, inputs, name=name: self._add(name, inputs[0]))
            for name, module in model.named_modules()
            if isinstance(module, Linear)
        ]
        try:
            with model.language_model.module_by_module():
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).double()
        total = rows.square().sum(dim=0).cpu()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def importance(self) -> dict[str, np.ndarray]:
        """Return mean squares with a mean of 1, by weight."""
        found = {}
        for name, total in self._sums.items():
            if not bool(torch.isfinite(total).all()):
                raise NonFiniteError(
                    f"an input of {name!r} is NaN or infinite; nothing can be measured on it. Run the model in float32."
                )
            mean = float(total.mean())
            if mean == 0:
                continue
            share = (total / mean).clamp_min(_LEAST_SHARE).float().numpy()
            found[f"{name}.weight"] = np.ascontiguousarray(share)
        return found
