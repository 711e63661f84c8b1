"""Where an answer looked: one more pass over prompt and answer that keeps the attention of the answer's tokens.

The pass computes what the model computed, layer by layer; only the softmax over the prompt is written down, for the
tokens of the answer and the positions of the pictures. Attention says what was mixed in where, not why an answer came
out: the mean over layers and heads is a picture of it, no proof.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

import torch
from torch import Tensor

from llavakit.model.layers import apply_rotary
from llavakit.model.llama import LlamaDecoderLayer
from llavakit.model.llava import Llava

__all__ = ["attention_by_layers"]


@torch.inference_mode()
def attention_by_layers(
    model: Llava, token_ids: list[int], image_features: Tensor, *, num_prompt_tokens: int
) -> Generator[None, None, Tensor]:
    """Yield after every layer, and return the mean attention of each answer token to each picture position.

    Parameters
    ----------
    model : Llava
    token_ids : list of int
        Prompt and answer, pictures as image tokens.
    image_features : tensor of shape (M, D)
        Of all pictures.
    num_prompt_tokens : int
        P; the token at P is the answer's first, and was chosen at position P - 1, whose attention is its own.

    Returns
    -------
    float32 tensor of shape (len(token_ids) - P, M)
    """
    ids = torch.tensor([token_ids], device=model.device)
    is_image = ids[0] == model.config.image_token_id
    asking = torch.arange(num_prompt_tokens - 1, len(token_ids) - 1, device=model.device)
    later = torch.arange(len(token_ids), device=model.device)[None] > asking[:, None]
    x = model.embed(ids, image_features)
    decoder = model.language_model
    rotary = decoder.rotary_emb(torch.arange(len(token_ids), device=model.device)[None], x.dtype)
    total = torch.zeros((len(asking), int(is_image.sum())), device=model.device)
    for layer in (cast("LlamaDecoderLayer", module) for module in decoder.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        query, key = (
            apply_rotary(proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2), *rotary)[0].float()
            for proj in (attention.q_proj, attention.k_proj)
        )
        query = query[:, asking]
        key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        scores = query @ key.transpose(1, 2) * attention.head_dim**-0.5
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        total += weights.mean(0)[:, is_image]
        x = layer(x, rotary, None, None, is_causal=True)
        yield
    return total / len(decoder.layers)
