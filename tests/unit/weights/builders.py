"""Checkpoints without torch: numpy state dicts, and writers of safetensors, PyTorch ZIP files and whole folders."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.core.config_json import parse_llava_config
from llavakit.core.shapes import expected_tensors
from llavakit.weights.names import to_hf_legacy

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 8, "vocab_size": 32000,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160, "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}  # fmt: skip
HF_CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "ignore_index": -100,
    "image_token_index": 90, "pad_token_id": 91, "projector_hidden_act": "gelu", "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default", "vocab_size": 97, "tie_word_embeddings": False,
    "torch_dtype": "float16", "text_config": TEXT, "vision_config": VISION,
}  # fmt: skip
ORIGINAL_CONFIG: dict[str, Any] = {
    **{key: value for key, value in TEXT.items() if key != "model_type"}, "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava", "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "image_aspect_ratio": "pad", "mm_hidden_size": 16, "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "use_mm_proj": True, "unfreeze_mm_vision_tower": False,
    "tokenizer_model_max_length": 160, "tokenizer_padding_side": "right", "use_cache": True, "max_length": 4096,
    "freeze_mm_mlp_adapter": False, "tune_mm_mlp_adapter": False, "tie_word_embeddings": False,
    "image_grid_pinpoints": None, "mm_resampler_type": None,
}  # fmt: skip
CONFIG = parse_llava_config(HF_CONFIG)
_CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int64): "I64",
    np.dtype(np.uint16): "BF16",
}
_STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}
State = dict[str, np.ndarray]


def make_state(*, seed: int = 0, dtype: Any = np.float32) -> State:
    """Every tensor of the tiny model under our names; uint16 stands for bfloat16 bits."""
    generator = np.random.default_rng(seed)
    state = {}
    for name, shape in expected_tensors(CONFIG).items():
        values = generator.standard_normal(shape, dtype=np.float32)
        state[name] = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else values.astype(dtype)
    return state


def unused_vision(dtype: Any = np.float32) -> State:
    """The third vision block and the last norm, which files have and LLaVA never runs."""
    state = {}
    for name, shape in expected_tensors(CONFIG).items():
        if name.startswith("vision_tower.encoder.layers.1."):
            state[name.replace("layers.1.", "layers.2.")] = np.ones(shape, dtype)
    return {**state, "vision_tower.post_layernorm.weight": np.ones(16, dtype),
            "vision_tower.post_layernorm.bias": np.ones(16, dtype)}  # fmt: skip


def to_legacy(state: State) -> State:
    return {to_hf_legacy(name): value for name, value in state.items()}


def to_current(state: State, *, has_level: bool) -> State:
    """Names of transformers' modules, with or without the ``vision_model`` level."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("pre_layernorm", "pre_layrnorm")
        if has_level:
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        renamed[name if name.startswith("lm_head.") else f"model.{name}"] = value
    return renamed


def to_original(state: State) -> State:
    """The original repository's names, without the tower."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("vision_tower."):
            continue
        name = name.replace("multi_modal_projector.linear_1.", "model.mm_projector.0.")
        name = name.replace("multi_modal_projector.linear_2.", "model.mm_projector.2.")
        renamed[name.replace("language_model.", "model.", 1)] = value
    return renamed


def to_clip(state: State, *, prefix: str = "vision_model.") -> State:
    """The tower alone, as CLIP's own checkpoints name it."""
    return {
        name.replace("vision_tower.", prefix, 1).replace("pre_layernorm", "pre_layrnorm"): value
        for name, value in state.items()
        if name.startswith("vision_tower.")
    }


def safetensors_bytes(state: State, *, header: dict[str, Any] | None = None) -> bytes:
    """A safetensors file; ``header`` replaces the honest one."""
    entries, begin = {}, 0
    for name, value in state.items():
        end = begin + value.nbytes
        entries[name] = {"dtype": _CODES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    return raw_safetensors(entries if header is None else header, b"".join(v.tobytes() for v in state.values()))


def raw_safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


class _Global:
    """A global in a pickle, by name, without the module being there."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Call:
    def __init__(self, function: _Global, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class _Storage:
    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # the Python one, whose methods can be extended
    def persistent_id(self, item: Any) -> Any:
        return item.pid if isinstance(item, _Storage) else None

    def save(self, item: Any, save_persistent_id: bool = True) -> None:
        if isinstance(item, _Global):
            self.write(b"c" + f"{item.module}\n{item.name}\n".encode())
        elif isinstance(item, _Call):
            self.save(item.function)
            self.save(item.arguments)
            self.write(b"R")
        else:
            super().save(item, save_persistent_id)


def dump(content: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def described(storage: Any, offset: Any, shape: Any, stride: Any) -> Any:
    return _Call(_Global("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, stride, False, OrderedDict())


def storage(type_name: str, key: Any, num_elements: Any) -> Any:
    return _Storage("storage", _Global("torch", type_name), key, "cpu", num_elements)


def tensor_pickle(state: State) -> bytes:
    content = OrderedDict()
    for idx, (name, value) in enumerate(state.items()):
        stride = tuple(step // value.itemsize for step in value.strides)
        part = storage(_STORAGES[_CODES[value.dtype]], str(idx), value.size)
        content[name] = described(part, 0, value.shape, stride)
    return dump(content)


def write_torch(
    path: Path, state: State, *, data_pkl: bytes | None = None, compression: int = zipfile.ZIP_STORED
) -> None:
    """Write a PyTorch ZIP file; ``data_pkl`` replaces the honest pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(state) if data_pkl is None else data_pkl)
        archive.writestr("archive/byteorder", "little")
        for idx, value in enumerate(state.values()):
            archive.writestr(f"archive/data/{idx}", value.tobytes())
        archive.writestr("archive/version", "3\n")


def write_folder(
    folder: Path,
    state: State,
    *,
    config: dict[str, Any] | None = None,
    suffix: str = "safetensors",
    num_shards: int = 1,
) -> Path:
    """Write config.json and weights, sharded with an index when there are several shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG if config is None else config))
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(state)
    weight_map = {}
    for idx in range(num_shards):
        file = f"{stem}.{suffix}" if num_shards == 1 else f"{stem}-{idx + 1:05}-of-{num_shards:05}.{suffix}"
        part = {name: state[name] for name in names[idx::num_shards]}
        weight_map.update(dict.fromkeys(part, file))
        if suffix == "safetensors":
            (folder / file).write_bytes(safetensors_bytes(part))
        else:
            write_torch(folder / file, part)
    if num_shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder
