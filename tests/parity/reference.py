"""Our model with the weights of a transformers model, sharing their memory."""

from __future__ import annotations

from typing import Any

import torch

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig
from llavakit.model.llava import Llava
from llavakit.model.loader import build_meta_model

__all__ = ["config_from", "model_from", "relative_error"]


def config_from(reference: Any) -> LlavaConfig:
    """Translate transformers' configuration by hand: a second opinion beside the config reader."""
    text, vision = reference.text_config, reference.vision_config
    return LlavaConfig(
        text_config=TextConfig(
            vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers, num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads, head_dim=text.hidden_size // text.num_attention_heads,
            max_position_embeddings=text.max_position_embeddings, rms_norm_eps=text.rms_norm_eps,
            rope_theta=text.rope_parameters["rope_theta"], hidden_act="silu", tie_word_embeddings=False,
        ),
        vision_config=VisionConfig(
            hidden_size=vision.hidden_size, intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_hidden_layers, num_attention_heads=vision.num_attention_heads, num_channels=3,
            image_size=vision.image_size, patch_size=vision.patch_size, hidden_act=vision.hidden_act,
            layer_norm_eps=vision.layer_norm_eps,
        ),
        image_token_id=reference.image_token_id, vision_feature_layer=reference.vision_feature_layer,
        vision_feature_select_strategy=reference.vision_feature_select_strategy, projector_hidden_act="gelu",
        multimodal_projector_bias=True, bos_token_id=1, eos_token_id=2, pad_token_id=None, dtype="float32",
    )  # fmt: skip


def model_from(reference: torch.nn.Module) -> Llava:
    """Build our model around the tensors of a transformers model."""
    model = build_meta_model(config_from(reference.config))
    wanted = {name for name, _ in model.named_parameters()}
    state = {}
    for name, tensor in reference.state_dict().items():
        ours = name.removeprefix("model.").replace("pre_layrnorm", "pre_layernorm")
        if ours in wanted:
            state[ours] = tensor
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the reference; infinite when anything is not finite."""
    if ours.shape != theirs.shape or not bool(torch.isfinite(ours).all()):
        return float("inf")
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
