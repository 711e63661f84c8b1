"""Greedy decoding with nothing clever: no cache, no batch, everything computed anew for each token.

The oracle that the engine is tested against; never used to serve.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llavakit.model.llava import Llava

__all__ = ["decode_greedily"]


@torch.inference_mode()
def decode_greedily(
    model: Llava, token_ids: Sequence[int], pixel_values: Tensor | None, *, max_new_tokens: int
) -> tuple[list[int], Tensor]:
    """Continue a prompt with the most likely tokens.

    Parameters
    ----------
    model : Llava
    token_ids : sequence of int
        The prompt, pictures expanded to image tokens.
    pixel_values : tensor of shape (n, 3, S, S), optional
    max_new_tokens : int

    Returns
    -------
    token_ids : list of int
        New tokens, up to and including the end-of-sequence token.
    logits : float32 tensor of shape (len(token_ids), V)
        From which each was chosen.
    """
    features = None if pixel_values is None else model.encode_images(pixel_values)
    embeds = model.embed(torch.tensor([list(token_ids)]), features)
    generated: list[int] = []
    chosen_from: list[Tensor] = []
    while len(generated) < max_new_tokens:
        positions = torch.arange(embeds.shape[1])[None]
        logits = model(embeds, positions)[0, -1].float()
        chosen_from.append(logits)
        generated.append(int(logits.argmax()))
        if generated[-1] == model.config.eos_token_id:
            break
        new = model.language_model.embed_tokens(torch.tensor([[generated[-1]]]))
        embeds = torch.cat((embeds, new), dim=1)
    return generated, torch.stack(chosen_from)
