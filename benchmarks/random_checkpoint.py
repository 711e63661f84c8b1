"""Write a checkpoint of any shape with random weights, in the llava-hf format, with little memory.

    python -m benchmarks.random_checkpoint --shape 7b --dtype bfloat16 --dir FOLDER

Weights are normal with standard deviation 0.02, norms 1 + 0.1 normal, biases 0.02 normal. That makes activations of
ordinary size at real widths: queries and gates have a standard deviation of 0.02 x sqrt(4096) = 1.3.

Two things are not plain. Each row of the head is scaled by exp(normal / 2): rounding to bfloat16 is relative, so a
larger head would not separate the best two logits, but unequal rows do. And the head's rows of control tokens and of
the padding of the vocabulary are zero, so that no answer ends early and none contains a picture token.

Numbers come from one SFC64 stream per tensor, seeded by the tensor's name: the same seed gives the same files, whatever
the order.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["SHAPES", "Shape", "write_checkpoint"]

_VOCAB_SIZE = 32064
_IMAGE_TOKEN_ID, _PAD_TOKEN_ID = 32000, 32001
_SHARD_BYTES = 5 * 1000**3
_BLOCK_NUMBERS = 1 << 22
_ALIGNMENT = 64
_CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-"
_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the vision tower is CLIP ViT-L/14 at 336 pixels unless said otherwise."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    vision_hidden_size: int = 1024
    vision_intermediate_size: int = 4096
    vision_num_heads: int = 16
    vision_num_layers: int = 24
    image_size: int = 336
    patch_size: int = 14


SHAPES = {
    "7b": Shape(4096, 11008, 32, 32),
    "13b": Shape(5120, 13824, 40, 40),
    "7b-2-layers": Shape(4096, 11008, 32, 2),
    "13b-2-layers": Shape(5120, 13824, 40, 2),
    "small": Shape(64, 112, 4, 2, 32, 48, 2, 3, 56, 14),
}


def write_checkpoint(folder: Path, shape: Shape, *, dtype: str, seed: int = 0, progress: bool = False) -> int:
    """Write config, tokenizer, processor files and weights.

    Parameters
    ----------
    folder : Path
        Made if absent.
    shape : Shape
    dtype : str
        ``float32``, ``float16`` or ``bfloat16``.
    seed : int

    Returns
    -------
    int
        Bytes of the weight files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _text_files(shape, dtype).items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    item_bytes = _DTYPES[dtype][1]
    shards = list(_cut_into_shards(_list_tensors(shape), item_bytes))
    weight_map, total = {}, 0
    for idx, tensors in enumerate(shards, start=1):
        name = f"model-{idx:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        if progress:
            print(f"writing {name}", flush=True)
        total += _write_shard(folder / name, tensors, dtype=dtype, seed=seed)
        weight_map.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _list_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names of the llava-hf files as published, the unused last block of the tower included."""
    tensors: dict[str, tuple[int, ...]] = {}
    width, inner = shape.vision_hidden_size, shape.vision_intermediate_size
    prefix = "vision_tower.vision_model"
    num_patches = (shape.image_size // shape.patch_size) ** 2
    tensors[f"{prefix}.embeddings.class_embedding"] = (width,)
    tensors[f"{prefix}.embeddings.patch_embedding.weight"] = (width, 3, shape.patch_size, shape.patch_size)
    tensors[f"{prefix}.embeddings.position_embedding.weight"] = (num_patches + 1, width)
    for norm in ("pre_layrnorm", "post_layernorm"):
        tensors |= {f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)}
    for idx in range(shape.vision_num_layers):
        block = f"{prefix}.encoder.layers.{idx}"
        parts = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        parts |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, size in parts.items():
            tensors |= {f"{block}.{name}.weight": size, f"{block}.{name}.bias": size[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            tensors |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    hidden, wide = shape.hidden_size, shape.intermediate_size
    for idx, columns in ((1, width), (2, hidden)):
        name = f"multi_modal_projector.linear_{idx}"
        tensors |= {f"{name}.weight": (hidden, columns), f"{name}.bias": (hidden,)}
    tensors["language_model.model.embed_tokens.weight"] = (_VOCAB_SIZE, hidden)
    for idx in range(shape.num_layers):
        block = f"language_model.model.layers.{idx}"
        tensors |= {f"{block}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        tensors |= {f"{block}.mlp.{name}_proj.weight": (wide, hidden) for name in ("gate", "up")}
        tensors[f"{block}.mlp.down_proj.weight"] = (hidden, wide)
        tensors |= {f"{block}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    tensors["language_model.model.norm.weight"] = (hidden,)
    tensors["language_model.lm_head.weight"] = (_VOCAB_SIZE, hidden)
    return tensors


def _cut_into_shards(tensors: dict[str, tuple[int, ...]], item_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in tensors.items():
        num_bytes = math.prod(shape) * item_bytes
        if shard and size + num_bytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += num_bytes
    yield shard


def _write_shard(file: Path, tensors: dict[str, tuple[int, ...]], *, dtype: str, seed: int) -> int:
    code, item_bytes = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * item_bytes
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    # Data begin at a cache line: torch's product of one row in bfloat16 takes its sums in an order that depends on
    # where weights lie, so that a library that copies them and one that maps the file would round differently.
    encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
    with file.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in tensors.items():
            _write_tensor(out, name, shape, dtype=dtype, seed=seed)
    return end


def _write_tensor(out: IO[bytes], name: str, shape: tuple[int, ...], *, dtype: str, seed: int) -> None:
    generator = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    width = shape[-1] if len(shape) > 1 else math.prod(shape)
    num_rows = math.prod(shape) // width
    rows_per_block = max(1, _BLOCK_NUMBERS // width)
    is_norm = "norm" in name and name.endswith("weight")
    row_scale = np.ones(num_rows, np.float32)
    if name.endswith("lm_head.weight"):
        row_scale = np.exp(generator.standard_normal(num_rows, dtype=np.float32) / 2)
        row_scale[[0, 1, 2]] = 0
        row_scale[_IMAGE_TOKEN_ID:] = 0
    for start in range(0, num_rows, rows_per_block):
        scale = row_scale[start : start + rows_per_block, None]
        block = generator.standard_normal((len(scale), width), dtype=np.float32)
        block = 1 + 0.1 * block if is_norm else block * (0.02 * scale)
        out.write(_encode(block, dtype))


def _encode(block: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":
        bits = block.astype(np.float32).view(np.uint32)
        # To the nearest, ties to even; no value here is near overflow.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return block.astype(dtype).tobytes()


def _text_files(shape: Shape, dtype: str) -> dict[str, Any]:
    side = {"height": shape.image_size, "width": shape.image_size}
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return {
        "config.json": _config(shape, dtype),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "pad_token": "<pad>", "clean_up_tokenization_spaces": False, "legacy": False,
            "tokenizer_class": "LlamaTokenizer", "image_token": "<image>", "padding_side": "left",
            "model_max_length": 4096,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True,
            "size": {"shortest_edge": shape.image_size}, "resample": 3,
            "do_center_crop": True, "crop_size": side, "do_rescale": True,
            "rescale_factor": 0.00392156862745098, "do_normalize": True, "image_mean": mean, "image_std": std,
            "do_convert_rgb": True,
        },
        "processor_config.json": {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": shape.patch_size,
            "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": _PAD_TOKEN_ID},
    }  # fmt: skip


def _config(shape: Shape, dtype: str) -> dict[str, Any]:
    text = {
        "model_type": "llama", "vocab_size": _VOCAB_SIZE, "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_heads, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": _PAD_TOKEN_ID,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": shape.vision_hidden_size,
        "intermediate_size": shape.vision_intermediate_size, "num_hidden_layers": shape.vision_num_layers,
        "num_attention_heads": shape.vision_num_heads, "num_channels": 3, "image_size": shape.image_size,
        "patch_size": shape.patch_size, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 768,
    }  # fmt: skip
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": text,
        "vision_config": vision, "image_token_index": _IMAGE_TOKEN_ID, "projector_hidden_act": "gelu",
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "tie_word_embeddings": False,
        "image_seq_length": (shape.image_size // shape.patch_size) ** 2, "pad_token_id": _PAD_TOKEN_ID,
        "torch_dtype": dtype,
    }  # fmt: skip


def _tokenizer() -> dict[str, Any]:
    """Characters, bytes, and made-up pieces up to the size of the vocabulary: every id has a text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_CHARACTERS]
    pieces += [f"▁piece{idx}" for idx in range(len(pieces), _IMAGE_TOKEN_ID)]
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": _IMAGE_TOKEN_ID, "<pad>": _PAD_TOKEN_ID}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": idx, "content": text, **flags} for text, idx in specials.items()],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {piece: idx for idx, piece in enumerate(pieces)}, "merges": [],
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bfloat16")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = write_checkpoint(options.dir, SHAPES[options.shape], dtype=options.dtype, seed=options.seed, progress=True)
    print(f"{total} bytes of weights")


if __name__ == "__main__":
    main()
