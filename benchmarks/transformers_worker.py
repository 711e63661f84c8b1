"""transformers' side of `benchmarks.cpu_peers`: reads one JSON request a line, answers with one JSON line.

The weights are random and bfloat16, of the GGUF file's shape; they are made in memory. So that 7B fits beside another
process, every fourth decoder layer is one of eight in turn: 3 GB are read from memory as 13 GB would be.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from llavakit.diagnostics.reference import import_transformers, make_transformers_config
from llavakit.weights.opening import open_resolved
from llavakit.weights.store import resolve

_DISTINCT_LAYERS = 8


class Worker:
    """A model of the shape of a GGUF pair."""

    @torch.inference_mode()
    def load(self, *, model: str, projector: str, threads: int, context: int, sequences: int) -> dict[str, float]:
        """Make the model; the time says nothing, since nothing is read."""
        del projector, context, sequences
        torch.set_num_threads(threads)
        began = time.perf_counter()
        transformers = import_transformers()
        self.config = open_resolved(resolve(model)).checkpoint.config
        config = make_transformers_config(transformers, self.config, image_token_id=self.config.image_token_id)
        config._attn_implementation = "sdpa"
        num_layers = config.text_config.num_hidden_layers
        config.text_config.num_hidden_layers = min(num_layers, _DISTINCT_LAYERS)
        config.dtype = torch.bfloat16
        with torch.device("meta"):
            self.model = transformers.LlavaForConditionalGeneration(config).to(torch.bfloat16)
        self.model.to_empty(device="cpu")
        for name, parameter in self.model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.02)
        _compute_buffers(self.model)
        layers = self.model.model.language_model.layers
        layers.extend([layers[idx % _DISTINCT_LAYERS] for idx in range(len(layers), num_layers)])
        self.model.model.language_model.config.num_hidden_layers = num_layers  # so many of them are run
        self.model.eval()
        return {"seconds": time.perf_counter() - began}

    @torch.inference_mode()
    def picture(self, *, pixels: str, size: int) -> dict[str, Any]:
        """Encode a picture; return the time of tower and projector alone."""
        del pixels
        values = torch.randn((1, 3, size, size), dtype=torch.bfloat16)
        began = time.perf_counter()
        rows = self.model.get_image_features(
            pixel_values=values, vision_feature_layer=self.config.vision_feature_layer,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
        ).pooler_output  # fmt: skip
        return {"seconds": time.perf_counter() - began, "rows": len(rows[0])}

    @torch.inference_mode()
    def prompt(self, *, ids: list[int]) -> dict[str, float]:
        """Compute a prompt to the logits of its last token, without a cache."""
        tokens = torch.tensor([ids])
        began = time.perf_counter()
        self.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
        return {"seconds": time.perf_counter() - began}


def _compute_buffers(model: torch.nn.Module) -> None:
    """Compute what no parameter holds: positions of patches, rotary frequencies."""
    for name, module in list(model.named_modules()):
        if isinstance(getattr(module, "position_ids", None), torch.Tensor):
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, type(module)(module.config))


def main() -> None:
    """Answer until standard input ends."""
    worker = Worker()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("op"))(**request)), flush=True)


if __name__ == "__main__":
    main()
