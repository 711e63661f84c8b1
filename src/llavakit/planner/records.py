"""What the formulas see: plain records of numbers, the same in Python and, as JSON, in the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

__all__ = [
    "KV_BLOCK_BYTES", "DeviceNumbers", "EngineFit", "ModelSizes", "QuantProduct", "QuantSizes", "Setting", "SpeedFit",
    "with_field",
]  # fmt: skip

# Bytes of 32 numbers of the key-value cache.
KV_BLOCK_BYTES = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Sizes and costs that follow from a model's configuration.

    Attributes
    ----------
    num_parameters : int
        That the model uses.
    num_reference_parameters : int
        With the tower's last block and norm, which the published files hold and nothing uses.
    num_linear_parameters : int
        Of all linear layers but the head, in tower, projector and decoder (what 4-bit loaders shrink).
    kv_width : int
        Numbers of keys (and of values) of one position in one layer.
    linear_flops, attention_flops, head_flops : int
        Operations of one token's products in all layers; of one pair of tokens in all layers; of one token's logits.
    """

    name: str
    num_parameters: int
    num_reference_parameters: int
    num_linear_parameters: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    kv_width: int
    max_context_tokens: int
    num_image_tokens: int
    vision_tokens: int
    vision_width: int
    vision_inner: int
    vision_buffer_bytes: int
    vision_flops: int
    projector_flops: int
    linear_flops: int
    attention_flops: int
    head_flops: int


class QuantProduct(TypedDict):
    """Matrices of one type that a token is multiplied by: those of all layers, or the head."""

    type: str
    weights: int
    bytes: int
    is_half: bool
    is_head: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantSizes:
    """Bytes of a model in one mixture of types, tensor by tensor, without file headers.

    Attributes
    ----------
    table_bytes : int
        The token table, which is looked up and never multiplied.
    layer_bytes : tuple of int
        Of every decoder layer.
    head_bytes : int
        Final norm and output matrix.
    vision_bytes : int
        Tower and projector as stored beside it.
    bits_per_weight : float
        Of the language model.
    is_half : bool
        16 bits or more: products use the device's 16-bit rate, quantized ones the 8-bit rate.
    is_k : bool
        Mostly blocks of 256 weights with scales of scales.
    products : tuple of QuantProduct
        Of the language model, by type.
    """

    name: str
    table_bytes: int
    layer_bytes: tuple[int, ...]
    head_bytes: int
    vision_bytes: int
    language_bytes: int
    bits_per_weight: float
    is_half: bool
    is_k: bool
    products: tuple[QuantProduct, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceNumbers:
    """A device as the formulas see it.

    Attributes
    ----------
    kind : {"gpu", "unified", "cpu"}
    is_shared : bool
        Its memory is the processor's.
    reserved_bytes : int
        What the desktop and the driver hold back.
    usable_share : float
        Of unified memory; 0 for the system's default.
    num_multiprocessors : int
        NVIDIA's; 0 elsewhere.
    half_rate, int8_rate : float
        Operations per second with 16-bit and 8-bit numbers; ``int8_rate`` 0 where the back end does not use it.
    shader_rate : float
        Plain operations per second, where they limit how fast weights are unpacked; 0 elsewhere.
    host_rate : float
        Bytes per second between the device and the host; 0 where they share memory.
    watts, idle_watts : float
    """

    name: str
    kind: str
    is_shared: bool
    memory_bytes: int
    reserved_bytes: int
    usable_share: float
    num_multiprocessors: int
    bandwidth: float
    half_rate: float
    int8_rate: float
    shader_rate: float
    host_rate: float
    watts: float
    idle_watts: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedFit:
    """Efficiencies and times per layer of a family of devices with builds of one era; spreads are of log ratios.

    Attributes
    ----------
    num_devices : int
        Devices it was fitted to.
    half_decode_efficiency, decode_efficiency : float
        Share of the bandwidth that reads of 16-bit and of quantized weights reach.
    half_operations, quant_operations, k_operations : float
        Plain operations to unpack and multiply one weight: 16 bits, blocks with one scale, blocks of blocks; 0 where
        they are never the limit.
    decode_layer_s, prompt_layer_s : float
        Time that a layer takes whatever its size, per token and per batch of a prompt.
    half_prompt_efficiency, quant_prompt_efficiency : float
        Share of the arithmetic rate that prompts reach.
    prompt_joules : float
        Energy of an 8-bit operation, where the rated power is a limit.
    """

    family: str
    era: str
    num_devices: int
    half_decode_efficiency: float
    decode_efficiency: float
    half_operations: float
    quant_operations: float
    k_operations: float
    decode_layer_s: float
    decode_spread: float
    half_prompt_efficiency: float
    quant_prompt_efficiency: float
    prompt_joules: float
    prompt_layer_s: float
    prompt_spread: float
    program: Literal["llama.cpp"] = "llama.cpp"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFit:
    """Own engine on a processor: shares of the processor's limits.

    Attributes
    ----------
    family, era : str
    num_devices : int
        Machines it was fitted to.
    read_efficiency : float
        Share of the bandwidth that weights and cache are read with.
    row_operations, pass_operations : dict from type to float
        Plain operations (float32 ones of the processor's rate) to unpack and multiply one weight for one row, and to
        unpack it once for a whole prompt.
    pass_rates : dict from type to float
        What products of many rows reach of `quant_prompt_efficiency`, where types differ: without products of bytes
        that add up in 32 bits, weights of 8 bits take two.
    half_cache_operations, small_cache_operations : float
        Plain operations of one number of the cache, in 16 bits and in 8.
    quant_prompt_efficiency, half_prompt_efficiency, vision_efficiency : float
        Share of the 8-bit rate, and of the 16-bit rate, that products of many rows reach.
    attention_efficiency : float
        Share of the plain rate that attention of a prompt reaches.
    decode_layer_s, prompt_layer_s : float
        Time of a layer beside its products, of a token, and of a prompt whatever its length.
    decode_spread, prompt_spread : float
        As logarithms.
    """

    family: str
    era: str
    num_devices: int
    read_efficiency: float
    row_operations: dict[str, float]
    pass_operations: dict[str, float]
    pass_rates: dict[str, float]
    half_cache_operations: float
    small_cache_operations: float
    quant_prompt_efficiency: float
    half_prompt_efficiency: float
    vision_efficiency: float
    attention_efficiency: float
    decode_layer_s: float
    prompt_layer_s: float
    decode_spread: float
    prompt_spread: float
    program: Literal["llavakit"] = "llavakit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How the model is to be run.

    Attributes
    ----------
    engine : {"llama.cpp", "ollama", "llavakit", "transformers", "transformers-4bit", "vllm"}
    num_context_tokens : int
        Positions of one sequence.
    num_parallel : int
        Sequences side by side.
    num_images, num_visual_tokens, num_text_tokens, num_new_tokens : int
        Of one prompt: pictures, tokens kept of each, tokens of text, and tokens of the answer.
    kv_block_bytes : int
        Bytes of 32 numbers of the cache.
    num_device_layers : int
        Layers on devices; all is the number of layers plus one for the head.
    image_megapixels : float
        Of a picture as it comes, for decoding and resizing.
    """

    engine: str = "llama.cpp"
    num_context_tokens: int = 4096
    num_parallel: int = 1
    num_images: int = 1
    num_visual_tokens: int = 576
    num_text_tokens: int = 60
    num_new_tokens: int = 128
    kv_block_bytes: int = 64
    has_flash_attention: bool = False
    micro_batch: int = 512
    num_device_layers: int = 1000
    is_vision_on_device: bool = True
    image_megapixels: float = 2.0


def with_field(setting: Setting, name: str, value: Any) -> Setting:
    """Copy a setting with one field changed."""
    return replace(setting, **{name: value})
