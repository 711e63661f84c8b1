"""The tokenizer of `llava:tiny`: byte-fallback BPE in the exact manner of LLaMA's, trained on our own sentences.

Capital letters stay single tokens wherever a sign is read, so that words are spelled, not looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

__all__ = ["IGNORE", "Vocabulary", "build_tokenizer_json"]

IGNORE = -100
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ALPHABET = list("▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-/&%+*=<>#@_")


def build_tokenizer_json(sentences: Iterable[str], *, vocab_size: int) -> dict[str, Any]:
    """Train merges on sentences and return the content of a tokenizer.json.

    ``vocab_size`` counts everything: control tokens, bytes, letters, merges, and the two added tokens ``<image>`` and
    ``<pad>`` at the end.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=["<unk>", "<s>", "</s>", *_BYTES],
        initial_alphabet=_ALPHABET,
        limit_alphabet=len(_ALPHABET),
        show_progress=False,
        min_frequency=2,
    )
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    # Merges never cross a space or touch punctuation and digits; capitals merge only in the two role names.
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?(USER|ASSISTANT)|▁?[A-Z]?[a-z]+|."), behavior="isolated")
    raw.train_from_iterator((f"▁{text}".replace(" ", "▁") for text in sentences), trainer)
    model = json.loads(raw.to_str())["model"]
    # Exactly vocab_size entries: transformers sizes its embeddings by this file.
    vocab, merges = model["vocab"], model["merges"]
    added = [("<unk>", 0), ("<s>", 1), ("</s>", 2), ("<image>", len(vocab)), ("<pad>", len(vocab) + 1)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": idx, "content": text, **flags} for text, idx in added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            **model,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


class Vocabulary:
    """Ids for training. Text is encoded without control tokens."""

    def __init__(self, file: Path) -> None:
        content = json.loads(file.read_text(encoding="utf-8"))
        named = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        self.bos_id: int = named["<s>"]
        self.eos_id: int = named["</s>"]
        self.image_id: int = named["<image>"]
        self.pad_id: int = named["<pad>"]
        self.size = len(content["model"]["vocab"]) + 2
        self._tokenizer = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS."""
        if text not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._cache[text]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, control tokens left out."""
        text: str = self._tokenizer.decode([i for i in ids if i > 2 and i < self.image_id], skip_special_tokens=False)
        return text
