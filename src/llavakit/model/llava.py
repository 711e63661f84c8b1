"""LLaVA-1.5: picture features in place of image tokens, then the language model.

pixel_values ─ vision_tower ─ patch_features ─ multi_modal_projector ─ image_features ┐
input_ids ──── embed_tokens ──────────────────────────────────────── inputs_embeds ───┴─ language_model ─ lm_head
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import PromptError
from llavakit.model.clip import CLIPVisionTower
from llavakit.model.kv_blocks import BLOCKS, num_bytes
from llavakit.model.layers import Linear
from llavakit.model.llama import LayerCache, LlamaAttention, LlamaModel
from llavakit.model.projector import MultiModalProjector

__all__ = ["Llava"]


class Llava(nn.Module):
    """The whole model. Build it on the ``meta`` device and let the loader fill it.

    Attributes
    ----------
    has_kv_blocks : bool
        Whether keys and values are kept in 8 bits (`kv_blocks`).
    """

    has_kv_blocks = False

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = CLIPVisionTower(
            config.vision_config,
            num_blocks=config.num_vision_blocks,
            select_strategy=config.vision_feature_select_strategy,
        )
        self.multi_modal_projector = MultiModalProjector(
            config.vision_config.hidden_size, config.text_config.hidden_size, bias=config.multimodal_projector_bias
        )
        self.language_model = LlamaModel(config.text_config)
        self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.text_config.tie_word_embeddings:
            self.lm_head.weight = self.language_model.embed_tokens.weight

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Map normalised pixels (N, 3, S, S) to image features (N, num_image_tokens, D)."""
        return self.multi_modal_projector(self.vision_tower(pixel_values))  # type: ignore[no-any-return]

    def embed(self, input_ids: Tensor, image_features: Tensor | None) -> Tensor:
        """Look up the tokens and put image features, in order, where the image tokens stand.

        Parameters
        ----------
        input_ids : integer tensor of shape (B, T)
        image_features : tensor of shape (N, num_image_tokens, D) or (M, D), optional
            As many rows in all as there are image tokens in ``input_ids``.

        Returns
        -------
        tensor of shape (B, T, D)

        Raises
        ------
        PromptError
            When the number of image tokens and of feature rows differ.
        """
        is_image = input_ids == self.config.image_token_id
        # The image token may lie outside the vocabulary; its embedding is never used, so look up 0 instead.
        embeds = self.language_model.embed_tokens(input_ids.masked_fill(is_image, 0))
        num_positions = int(is_image.sum())
        num_rows = 0 if image_features is None else image_features.flatten(0, -2).shape[0]
        if num_positions != num_rows:
            per_image = self.config.num_image_tokens
            raise PromptError(
                f"the prompt has {num_positions} image positions but the pictures give {num_rows} feature rows "
                f"({per_image} per picture); pass as many pictures as the prompt has image placeholders."
            )
        if image_features is not None and num_rows:
            rows = image_features.flatten(0, -2).to(embeds.dtype)
            embeds = embeds.masked_scatter(is_image[..., None].expand_as(embeds), rows)
        return embeds  # type: ignore[no-any-return]

    def forward(
        self,
        inputs_embeds: Tensor,
        positions: Tensor,
        *,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return logits of shape (B, T, V), or (B, 1, V) with ``last_only``; see `LlamaModel.forward`."""
        hidden = self.language_model(inputs_embeds, positions, cache=cache, mask=mask)
        return self.lm_head(hidden[:, -1:] if last_only else hidden)  # type: ignore[no-any-return]

    def use_native(self) -> None:
        """Leave what is float32 in the language model to the native library; see `LlamaModel.use_native`."""
        self.language_model.use_native()
        self.lm_head.is_left_to_library = True

    def use_torch_products(self) -> None:
        """Multiply parameters by torch alone from now on: the oracle of every faster product, slow in 16 bits on a CPU.

        With it each operation is the one that transformers calls, in the same dtype, so that logits have the same bits
        on the same machine, where the operation itself gives the same bits. Torch's product of one row in bfloat16
        does not always: its sums depend on where in a cache line the weights begin.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.is_left_to_torch = True

    def use_kv_blocks(self) -> None:
        """Keep keys and values in 8 bits from now on.

        Raises
        ------
        ConfigError
            If a head is not made of whole blocks.
        """
        num_bytes(self.config.text_config.head_dim)
        self.has_kv_blocks = True

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of keys and values in a cache: `BLOCKS` if chosen, float16 where the native library reads it, or `dtype`."""
        if self.has_kv_blocks:
            return BLOCKS
        attentions = (part for part in self.language_model.modules() if isinstance(part, LlamaAttention))
        is_native = all(attention.o_proj.matrix is not None for attention in attentions)
        return torch.float16 if is_native and self.dtype == torch.float32 else self.dtype

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the language model's weights."""
        return self.language_model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.norm.weight.device
