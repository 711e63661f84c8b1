"""What the projector is taught: a patch is the sum of the words for what is there.

LLaVA aligns with captions. With exact labels the same can be said patch by patch: the projected feature of a patch
should be the sum of the decoder's own embeddings of "red", "star", "large", of "left" or "right" as far as it lies
there, plus fixed random codes for what has no word (which row and column, the centre of an object, letters in its
quarters). The decoder then meets pictures in its own
vocabulary and at the scale of its embeddings, and learns several times faster than from captions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.tiny.dense_labels import PATCH_TARGETS
from recipes.tiny.scenes import COLOR_NAMES, SHAPES
from recipes.tiny.vocabulary import Vocabulary

__all__ = ["PatchWords"]


class PatchWords:
    """Targets of the projector.

    Parameters
    ----------
    embeddings : tensor of shape (vocabulary, D)
        The decoder's, as initialised.
    vocabulary : Vocabulary
    """

    def __init__(self, embeddings: Tensor, vocabulary: Vocabulary) -> None:
        scale, width = embeddings.std().item(), embeddings.shape[1]
        generator = torch.Generator().manual_seed(1)

        def word(text: str) -> Tensor:
            return embeddings[torch.tensor(vocabulary.encode(text))].mean(0)

        words = {
            "shape": [f" {name}" for name in SHAPES],
            "color": [f" {name}" for name in COLOR_NAMES],
            "size": [" small", " large"],
            "value": [str(value) for value in range(1, 10)],
        }
        # Where a patch lies is said in words as well, by degrees: a decoder that compares two places subtracts.
        places = {"row": (" top", " bottom"), "column": (" left", " right")}
        self._codes = []
        for name, num_classes in PATCH_TARGETS.items():
            code = torch.randn(num_classes, width, generator=generator) * scale
            if name in places:
                first, last = (word(text) for text in places[name])
                # From one word to its opposite over the 8 rows or columns of a picture.
                along = torch.arange(num_classes - 1)[:, None] / 3.5 - 1
                code[1:] = 0.5 * code[1:] + along * (last - first)
            code[0] = 0
            for idx, text in enumerate(words.get(name, ()), start=1):
                code[idx] = word(text)
            self._codes.append(code)

    def __call__(self, patches: Tensor) -> Tensor:
        """Map dense labels (N, targets, P) to features (N, P, D)."""
        return sum((code[patches[:, idx]] for idx, code in enumerate(self._codes)), torch.zeros(()))
