"""Models as the planner knows them: sizes that follow from a configuration, bytes of every quantization.

In: ``llava:7b``, ``llava:13b``, ``llava:tiny``, a Hub id, a folder, a ``config.json`` or a GGUF file. No weights are
read, and of a Hub id that is not here all is fetched but the weights. Out: a `PlannedModel`. The two published models
need no file and no network.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig
from llavakit.core.config_json import parse_llava_config
from llavakit.core.errors import ConfigError, ModelNotFoundError
from llavakit.core.shapes import count_parameters, expected_tensors, prefill_flops, projector_flops, vision_flops
from llavakit.planner.records import ModelSizes, QuantProduct, QuantSizes
from llavakit.weights.ggml_types import stored_bytes
from llavakit.weights.mixtures import MIXTURES, choose_type, choose_vision_type, find_mixture

__all__ = ["HUB_IDS", "PUBLISHED", "PlannedModel", "find_model", "published_config"]

# Hidden size, inner size, heads (and key-value heads), layers.
_PUBLISHED_SHAPES = {"llava:7b": (4096, 11008, 32, 32), "llava:13b": (5120, 13824, 40, 40)}
PUBLISHED = tuple(_PUBLISHED_SHAPES)
HUB_IDS = {name: f"llava-hf/llava-1.5-{name.removeprefix('llava:')}-hf" for name in PUBLISHED}
# llama.cpp's graph of CLIP ViT-L/14 at 336 pixels, as logged.
_VISION_BUFFER_BYTES = int(32.89 * 1024 * 1024)
_HALF_BITS = 16
_HALF_TYPES = ("float16", "bfloat16", "float32")  # their products run in 16 bits
_MATRIX_DIMS = 2


@dataclass(frozen=True)
class PlannedModel:
    """A model to plan for.

    Attributes
    ----------
    name : str
        As asked for.
    config : LlavaConfig
    facts : mapping
        What cannot be computed: licence, papers, benchmark scores, each with its source; empty for other models.
    """

    name: str
    config: LlavaConfig
    facts: dict[str, Any]

    @cached_property
    def sizes(self) -> ModelSizes:
        """Numbers for the formulas."""
        config, text, vision = self.config, self.config.text_config, self.config.vision_config
        shapes = expected_tensors(config)
        reference = (
            count_parameters(replace(config, vision_feature_layer=-1)) + 2 * vision.hidden_size
        )  # the last block, and the norm after it
        matrices = [s for n, s in shapes.items() if len(s) == 2 and "embed" not in n and n != "lm_head.weight"]
        head_flops = 2 * text.hidden_size * text.vocab_size
        # Costs of a prompt are a polynomial of its length: read off core.shapes rather than written down again.
        one, two = (prefill_flops(config, n) - head_flops for n in (1, 2))
        attention = two - 2 * one
        return ModelSizes(
            name=self.name,
            num_parameters=count_parameters(config),
            num_reference_parameters=reference,
            num_linear_parameters=sum(math.prod(shape) for shape in matrices),
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            kv_width=text.num_key_value_heads * text.head_dim,
            max_context_tokens=text.max_position_embeddings,
            num_image_tokens=config.num_image_tokens,
            vision_tokens=vision.num_patches + 1,
            vision_width=vision.hidden_size,
            vision_inner=vision.intermediate_size,
            vision_buffer_bytes=_VISION_BUFFER_BYTES,
            vision_flops=vision_flops(config),
            projector_flops=projector_flops(config),
            linear_flops=one - attention,
            attention_flops=attention,
            head_flops=head_flops,
        )

    def quantize(self, name: str, *, vision_type: str = "float16") -> QuantSizes:
        """Count the bytes of one mixture, tensor by tensor.

        Raises
        ------
        ConfigError
            If there is no mixture of this name.
        """
        return _quant_sizes(self.config, name.lower(), vision_type)

    def quantizations(self) -> list[QuantSizes]:
        """All mixtures, the smallest first."""
        return sorted((self.quantize(name) for name in MIXTURES), key=lambda quant: quant.language_bytes)


@lru_cache(maxsize=128)
def _quant_sizes(config: LlavaConfig, name: str, vision_type: str) -> QuantSizes:
    mixture = find_mixture(name)
    layers = [0] * config.text_config.num_hidden_layers
    table = head = vision = num_weights = 0
    is_tied = config.text_config.tie_word_embeddings
    products: dict[tuple[str, bool], QuantProduct] = {}
    for tensor, shape in expected_tensors(config).items():
        count = math.prod(shape)
        if not tensor.startswith(("language_model.", "lm_head.")):
            vision += stored_bytes(choose_vision_type(tensor, shape, vision_type), count)
            continue
        stored = choose_type(tensor, shape, mixture, config)
        size = stored_bytes(stored, count)
        num_weights += count
        is_head = tensor == "lm_head.weight" or ("embed_tokens" in tensor and is_tied)
        if len(shape) == _MATRIX_DIMS and (is_head or "embed_tokens" not in tensor):
            is_half = stored in _HALF_TYPES
            product = products.setdefault(
                (stored, is_head), QuantProduct(type=stored, weights=0, bytes=0, is_half=is_half, is_head=is_head)
            )
            product["weights"] += count
            product["bytes"] += size
        if tensor.startswith("language_model.layers."):
            layers[int(tensor.split(".")[2])] += size
        elif "embed_tokens" in tensor:
            table += size
        else:
            head += size
    if is_tied:
        head += table  # one matrix in the file, read by the head as well
        table = 0
    language = table + head + sum(layers)
    bits = language * 8 / num_weights
    return QuantSizes(
        name=name, table_bytes=table, layer_bytes=tuple(layers), head_bytes=head, vision_bytes=vision,
        language_bytes=language, bits_per_weight=bits, is_half=bits >= _HALF_BITS,
        is_k=mixture.base.endswith("_k"), products=tuple(products.values()),
    )  # fmt: skip


def published_config(name: str) -> LlavaConfig:
    """Return the configuration of ``llava:7b`` or ``llava:13b`` (llava-hf's files)."""
    hidden, inner, heads, layers = _PUBLISHED_SHAPES[name]
    return LlavaConfig(
        text_config=TextConfig(
            vocab_size=32064, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads,
            max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
            tie_word_embeddings=False,
        ),
        vision_config=VisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_channels=3,
            image_size=336, patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        ),
        image_token_id=32000, vision_feature_layer=-2, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", multimodal_projector_bias=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=32001, dtype="float16",
    )  # fmt: skip


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    text = (resources.files("llavakit.planner") / "data" / "models.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def find_model(name: str) -> PlannedModel:
    """Find a model by what a user calls it.

    Raises
    ------
    ModelNotFoundError
        If it is neither published, nor here, nor on the Hub.
    DownloadError
        If its configuration cannot be fetched.
    ConfigError
        If its configuration is no LLaVA-1.5.
    """
    known = {hub_id: alias for alias, hub_id in HUB_IDS.items()}
    alias = known.get(name, name.lower())
    if alias in _PUBLISHED_SHAPES:
        return PlannedModel(alias, published_config(alias), _facts().get(alias, {}))
    path = Path(name).expanduser()
    if path.is_dir() and not list(path.glob("*.safetensors")) and (path / "config.json").is_file():
        path = path / "config.json"
    if path.suffix == ".json":
        return PlannedModel(name, _read_config(path), {})
    from llavakit.weights.checkpoint import read_config
    from llavakit.weights.opening import open_resolved
    from llavakit.weights.store import resolve

    try:
        found = resolve(name, with_weights=False)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{error} To plan without the weights, name llava:7b, llava:13b or a config.json."
        ) from None
    if found.gguf_file is None:
        return PlannedModel(name, read_config(found.folder, vision_folder=found.vision_folder), {})
    return PlannedModel(name, open_resolved(found).checkpoint.config, {})


def _read_config(path: Path) -> LlavaConfig:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{str(path)!r} holds a {type(raw).__name__}; a configuration is an object.")
    return parse_llava_config(raw)
