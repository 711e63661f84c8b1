"""What a model is and where: the part of transformers' model class that computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from llavakit.core.errors import ConfigError
from llavakit.dropin.attributes import check_assignment, missing_attribute
from llavakit.dropin.config_view import ConfigView, view_config
from llavakit.dropin.placement import parse_dtype, parse_to
from llavakit.model.llava import Llava

__all__ = ["ModuleSurface"]

_LOADED = "choose it in from_pretrained, or with .to()"
_FIXED = {
    "config": "a model is what its config.json says",
    "dtype": _LOADED,
    "device": _LOADED,
    "training": "this class is for inference",
    "lm_head": "write into its weight under torch.no_grad()",
}


class ModuleSurface:
    """A torch module with its name, dtype, device, parameters and parts.

    Attributes
    ----------
    config : ConfigView
    model : Llava
        The torch module.
    name_or_path : str
    is_quantized : bool
    """

    main_input_name = "input_ids"

    def __init__(self, model: Llava, *, name: str) -> None:
        self.model = model
        self.name_or_path = name
        self.is_quantized = False

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not there.
        raise missing_attribute("LlavaForConditionalGeneration", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if check_assignment(self, name, value, _FIXED):
            object.__setattr__(self, name, value)

    @property
    def config(self) -> ConfigView:
        """The model's numbers; they cannot be changed."""
        return view_config(self.model.config, name_or_path=self.name_or_path)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are not quantized."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def training(self) -> bool:
        """Always False."""
        return False

    @property
    def lm_head(self) -> nn.Module:
        """The output layer."""
        return self.model.lm_head

    def reset(self) -> None:
        """Forget what was computed with the weights."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the weights to a device, or convert them to a dtype, in place.

        Raises
        ------
        CapacityError
            If this machine does not have the device.
        ConfigError
            If the dtype is not float32, float16 or bfloat16, or the model is quantized.
        """
        device, dtype = parse_to(args, kwargs)
        if dtype is not None:
            dtype = parse_dtype(dtype, stored=self.model.config.dtype)
        if self.is_quantized and (dtype is not None or (device is not None and device != self.device)):
            raise ConfigError("a quantized model keeps its device and dtype. Choose them in from_pretrained.")
        self.model.to(device=device, dtype=dtype)
        self.reset()  # caches have the old device and dtype
        return self

    def half(self) -> Self:
        """Convert to float16."""
        return self.to(torch.float16)

    def float(self) -> Self:
        """Convert to float32."""
        return self.to(torch.float32)

    def bfloat16(self) -> Self:
        """Convert to bfloat16."""
        return self.to(torch.bfloat16)

    def cuda(self, device: int | str | torch.device | None = None) -> Self:
        """Move to a GPU."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def eval(self) -> Self:
        """Return the model: it is always in evaluation mode."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Refuse to train; ``train(False)`` is `eval`.

        Raises
        ------
        ConfigError
        """
        if mode:
            raise ConfigError(
                "this class is for inference and keeps no gradients; training is not part of this release."
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuse gradients; ``requires_grad_(False)`` says what is so.

        Raises
        ------
        ConfigError
        """
        return self.train(requires_grad)

    def can_generate(self) -> bool:
        """Return True."""
        return True

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights, each once."""
        return self.model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Weights with their names."""
        return self.model.named_parameters()

    def buffers(self) -> Iterator[Tensor]:
        """Tensors that are no weights."""
        return self.model.buffers()

    def modules(self) -> Iterator[nn.Module]:
        """Return the torch modules, parts included."""
        return self.model.modules()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the torch modules with their names."""
        return self.model.named_modules()  # type: ignore[no-any-return]

    def children(self) -> Iterator[nn.Module]:
        """Vision tower, projector, decoder and output layer."""
        return self.model.children()

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the same with their names."""
        return self.model.named_children()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings (V, D)."""
        return self.model.language_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.model.lm_head

    def state_dict(self) -> dict[str, Any]:
        """Weights by name."""
        return self.model.state_dict()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are; with ``exclude_embeddings`` without those of embedding tables."""
        tables = (module for module in self.modules() if isinstance(module, nn.Embedding) and exclude_embeddings)
        excluded = {id(module.weight) for module in tables}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if id(parameter) not in excluded and (parameter.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self) -> int:
        """Bytes of the weights."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LlavaForConditionalGeneration({self.name_or_path!r}, dtype={dtype}, device={str(self.device)!r})"
