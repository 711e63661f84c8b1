"""Tokens and their ids, and which of them are special: the part of the tokenizer's surface that reads no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError
from llavakit.dropin.attributes import check_assignment, missing_attribute
from llavakit.processing.tokenizer import Tokenizer

__all__ = ["Vocabulary"]

_OF_CHECKPOINT = "the vocabulary is that of the checkpoint's files"
_FIXED = dict.fromkeys(
    ("bos_token", "bos_token_id", "eos_token", "eos_token_id", "unk_token", "unk_token_id", "image_token",
     "image_token_id", "all_special_tokens", "all_special_ids", "special_tokens_map", "vocab_size", "is_fast"),
    _OF_CHECKPOINT,
) | {"add_eos_token": "a prompt does not end with the end token"}  # fmt: skip


class Vocabulary:
    """A tokenizer's entries.

    Attributes
    ----------
    backend : Tokenizer
    config : LlavaConfig
        Of the model that the tokenizer belongs to.
    pad_token_id : int or None
        May be changed.

    Raises
    ------
    UnsupportedAttributeError
        For an attribute that is not there, or that cannot be set.
    """

    is_fast = True
    add_eos_token = False

    def __init__(self, backend: Tokenizer, config: LlavaConfig, settings: dict[str, Any]) -> None:
        self.backend = backend
        self.config = config
        self._unk_token = _content(settings.get("unk_token")) or "<unk>"
        self._image_token = _content(settings.get("image_token")) or "<image>"
        self.pad_token_id: int | None = config.pad_token_id
        if (pad_token := _content(settings.get("pad_token"))) is not None:
            self.pad_token = pad_token

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not there.
        raise missing_attribute("LlavaTokenizer", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if check_assignment(self, name, value, _FIXED):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.backend.vocab_size

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary without the tokens that were added to it, as in transformers; `len` has all."""
        return self.backend.base_vocab_size

    @property
    def bos_token(self) -> str:
        """Written form of the first token of every prompt."""
        return self.backend.token_text(self.bos_token_id) or ""

    @property
    def bos_token_id(self) -> int:
        """Id of it."""
        return self.backend.bos_token_id

    @property
    def eos_token(self) -> str:
        """Written form of the end token."""
        return self.backend.token_text(self.eos_token_id) or ""

    @property
    def eos_token_id(self) -> int:
        """Id of it."""
        return self.backend.eos_token_id

    @property
    def unk_token(self) -> str:
        """What stands for tokens that are not in the vocabulary."""
        return self._unk_token

    @property
    def unk_token_id(self) -> int | None:
        """Id of it."""
        return self.backend.token_id(self._unk_token)

    @property
    def image_token(self) -> str:
        """Placeholder of a picture."""
        return self._image_token

    @property
    def image_token_id(self) -> int:
        """Id of it."""
        return self.backend.image_token_id

    @property
    def pad_token(self) -> str | None:
        """Written form of the padding token; setting it to another token of the vocabulary changes ``pad_token_id``."""
        return None if self.pad_token_id is None else self.backend.token_text(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str | None) -> None:
        token_id = None if token is None else self.backend.token_id(token)
        if token is not None and token_id is None:
            raise ConfigError(f"{token!r} is not one token of this vocabulary, so it cannot be the padding token.")
        self.pad_token_id = token_id

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Written forms of the special tokens, as chat templates may use them."""
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, "unk_token": self.unk_token}
        if self.pad_token is not None:
            tokens["pad_token"] = self.pad_token
        return {**tokens, "image_token": self.image_token}

    @property
    def all_special_tokens(self) -> list[str]:
        """Written forms of the special tokens, each once."""
        return list(dict.fromkeys(self.special_tokens_map.values()))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        ids = [self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id, self.image_token_id]
        return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        return self.backend.entries()

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or a list of ids; that of the unknown token for what is not in the vocabulary."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens == self.image_token:
            return self.image_token_id  # original checkpoints have no entry for it
        token_id = self.backend.token_id(tokens)
        return self.unk_token_id if token_id is None else token_id

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """Return vocabulary entries as they are written in the tokenizer's file: of one id, or of a list of them."""
        if isinstance(ids, int):
            return self.backend.token_text(ids) or self.unk_token
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(token_id) for token_id in map(int, ids) if token_id not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text that vocabulary entries make."""
        return self.backend.decode(self.convert_tokens_to_ids(tokens), skip_special=False)


def _content(token: Any) -> str | None:
    """Return the text of a token entry, which may be a string or an object with ``content``."""
    return token.get("content") if isinstance(token, dict) else token
