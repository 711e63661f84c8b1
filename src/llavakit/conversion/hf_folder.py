"""A folder in the llava-hf format: every file but the weights.

What transformers and other programs expect beside a LLaVA-1.5's weights follows from the configuration.
"""

from __future__ import annotations

from typing import Any

from llavakit.core.config import CLIP_MEAN, CLIP_STD, LlavaConfig

__all__ = ["hf_files", "unused_tensors"]


def hf_files(config: LlavaConfig, *, dtype: str, preset: str) -> dict[str, dict[str, Any]]:
    """Return name and content of every JSON file.

    Parameters
    ----------
    config : LlavaConfig
    dtype : str
        Of the weights.
    preset : str
        What `llavakit.load` shall use.
    """
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
            "tie_word_embeddings": text.tie_word_embeddings,
            "torch_dtype": dtype,
            "text_config": {
                "model_type": "llama", "vocab_size": text.vocab_size, "hidden_size": text.hidden_size,
                "intermediate_size": text.intermediate_size, "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads, "num_key_value_heads": text.num_key_value_heads,
                "head_dim": text.head_dim, "max_position_embeddings": text.max_position_embeddings,
                "rms_norm_eps": text.rms_norm_eps, "rope_theta": text.rope_theta, "hidden_act": text.hidden_act,
                "attention_bias": False, "mlp_bias": False, "bos_token_id": config.bos_token_id,
                "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id,
                "tie_word_embeddings": text.tie_word_embeddings,
                "torch_dtype": dtype,
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size, "num_hidden_layers": vision.num_hidden_layers,
                "num_attention_heads": vision.num_attention_heads, "num_channels": vision.num_channels,
                "image_size": size, "patch_size": vision.patch_size, "hidden_act": vision.hidden_act,
                "layer_norm_eps": vision.layer_norm_eps, "projection_dim": vision.hidden_size,
                "torch_dtype": dtype,
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
            "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD),
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
        "llavakit.json": {"preset": preset},
    }  # fmt: skip


def unused_tensors(config: LlavaConfig) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return what LLaVA never runs, the tower's last blocks and final norm, by llava-hf names.

    Other programs expect a whole CLIP tower in the file. Each entry is a shape, and whether it is all ones (the weights
    of norms) rather than zeros.
    """
    vision = config.vision_config
    width, inner = vision.hidden_size, vision.intermediate_size
    tensors: dict[str, tuple[tuple[int, ...], bool]] = {}
    for idx in range(config.num_vision_blocks, vision.num_hidden_layers):
        prefix = f"vision_tower.vision_model.encoder.layers.{idx}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = ((width, width), False)
            tensors[f"{prefix}.self_attn.{name}.bias"] = ((width,), False)
        tensors[f"{prefix}.mlp.fc1.weight"] = ((inner, width), False)
        tensors[f"{prefix}.mlp.fc1.bias"] = ((inner,), False)
        tensors[f"{prefix}.mlp.fc2.weight"] = ((width, inner), False)
        tensors[f"{prefix}.mlp.fc2.bias"] = ((width,), False)
        for norm in ("layer_norm1", "layer_norm2"):
            tensors[f"{prefix}.{norm}.weight"] = ((width,), True)
            tensors[f"{prefix}.{norm}.bias"] = ((width,), False)
    tensors["vision_tower.vision_model.post_layernorm.weight"] = ((width,), True)
    tensors["vision_tower.vision_model.post_layernorm.bias"] = ((width,), False)
    return tensors
