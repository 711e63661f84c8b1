"""Write a trained model as a folder in the llava-hf format, as the package embeds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from llavakit.core.config import LlavaConfig
from llavakit.model.llava import Llava
from llavakit.weights.names import to_hf_legacy

__all__ = ["export", "load_checkpoint"]

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for block in message['content'] %}{% if block['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for block in message['content'] %}{% if block['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ block['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ block['text'] + ' ' }}{% endif %}"
    "{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def export(model: Llava, tokenizer_file: Path, folder: Path) -> None:
    """Write config, weights (float16), tokenizer and processor files.

    The last vision block and the final norm, which LLaVA never runs, are written too (zeros and the identity),
    because other programs expect a whole CLIP tower in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    tensors = {to_hf_legacy(name): tensor.detach().half().numpy() for name, tensor in model.state_dict().items()}
    tensors.update(_unused_tensors(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    (folder / "model.safetensors").chmod(0o644)
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    for name, content in _json_files(config).items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


def _unused_tensors(config: LlavaConfig) -> dict[str, np.ndarray]:
    vision = config.vision_config
    width, inner = vision.hidden_size, vision.intermediate_size
    tensors: dict[str, np.ndarray] = {}
    for idx in range(config.num_vision_blocks, vision.num_hidden_layers):
        prefix = f"vision_tower.vision_model.encoder.layers.{idx}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = np.zeros((width, width), np.float16)
            tensors[f"{prefix}.self_attn.{name}.bias"] = np.zeros(width, np.float16)
        tensors[f"{prefix}.mlp.fc1.weight"] = np.zeros((inner, width), np.float16)
        tensors[f"{prefix}.mlp.fc1.bias"] = np.zeros(inner, np.float16)
        tensors[f"{prefix}.mlp.fc2.weight"] = np.zeros((width, inner), np.float16)
        tensors[f"{prefix}.mlp.fc2.bias"] = np.zeros(width, np.float16)
        for norm in ("layer_norm1", "layer_norm2"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(width, np.float16)
            tensors[f"{prefix}.{norm}.bias"] = np.zeros(width, np.float16)
    tensors["vision_tower.vision_model.post_layernorm.weight"] = np.ones(width, np.float16)
    tensors["vision_tower.vision_model.post_layernorm.bias"] = np.zeros(width, np.float16)
    return tensors


def _json_files(config: LlavaConfig) -> dict[str, Any]:
    text, vision = config.text_config, config.vision_config
    size = vision.image_size
    return {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": config.image_token_id,
            "image_seq_length": config.num_image_tokens,
            "pad_token_id": config.pad_token_id,
            "projector_hidden_act": config.projector_hidden_act,
            "multimodal_projector_bias": config.multimodal_projector_bias,
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "text_config": {
                "model_type": "llama", "vocab_size": text.vocab_size, "hidden_size": text.hidden_size,
                "intermediate_size": text.intermediate_size, "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads, "num_key_value_heads": text.num_key_value_heads,
                "head_dim": text.head_dim, "max_position_embeddings": text.max_position_embeddings,
                "rms_norm_eps": text.rms_norm_eps, "rope_theta": text.rope_theta, "hidden_act": text.hidden_act,
                "attention_bias": False, "mlp_bias": False, "bos_token_id": config.bos_token_id,
                "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id, "tie_word_embeddings": False,
                "torch_dtype": "float16",
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size, "num_hidden_layers": vision.num_hidden_layers,
                "num_attention_heads": vision.num_attention_heads, "num_channels": vision.num_channels,
                "image_size": size, "patch_size": vision.patch_size, "hidden_act": vision.hidden_act,
                "layer_norm_eps": vision.layer_norm_eps, "projection_dim": vision.hidden_size,
                "torch_dtype": "float16",
            },
        },
        "generation_config.json": {
            "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True,
            "rescale_factor": 0.00392156862745098, "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "do_convert_rgb": True,
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": vision.patch_size,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
            "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "image_token": "<image>", "legacy": False,
            "clean_up_tokenization_spaces": False, "model_max_length": text.max_position_embeddings,
            "padding_side": "left",
        },
        "special_tokens_map.json": {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
        },
        "llavakit.json": {"preset": "original"},
    }  # fmt: skip


def load_checkpoint(model: Llava, file: Path) -> None:
    """Fill the model from a checkpoint of the trainer."""
    model.load_state_dict(torch.load(file, weights_only=True)["model"])
