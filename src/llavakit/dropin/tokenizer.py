"""The tokenizer's surface as code written for transformers expects it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.processing.presets import read_json
from llavakit.processing.tokenizer import Tokenizer

__all__ = ["LlavaTokenizer"]

_LOGGER = logging.getLogger(__name__)
_PADDINGS = (True, False, None, "longest", "max_length", "do_not_pad")


class LlavaTokenizer:
    """Text to ids and back, by the checkpoint's own tokenizer files.

    Control tokens in the text (``<image>``, ``</s>``) become their ids, as in transformers: prompts of this
    surface are written out by the caller. `llavakit.load` keeps text and control tokens apart.

    Attributes
    ----------
    backend : Tokenizer
    padding_side : {"left", "right"}
        May be changed. "left" for generation.
    """

    def __init__(self, backend: Tokenizer, config: LlavaConfig, settings: dict[str, Any]) -> None:
        self.backend = backend
        self.padding_side: str = settings.get("padding_side", "left")
        self.truncation_side: str = settings.get("truncation_side", "right")
        self.bos_token_id = backend.bos_token_id
        self.eos_token_id = backend.eos_token_id
        self.image_token_id = backend.image_token_id
        self.unk_token: str = _content(settings.get("unk_token")) or "<unk>"
        self.image_token: str = _content(settings.get("image_token")) or "<image>"
        self.pad_token_id: int | None = config.pad_token_id
        if (pad_token := _content(settings.get("pad_token"))) is not None:
            self.pad_token = pad_token
        self._adds_bos = settings.get("add_bos_token", True)

    @classmethod
    def from_folder(cls, folder: Path, config: LlavaConfig) -> LlavaTokenizer:
        """Read the tokenizer of a checkpoint folder."""
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        return cls(Tokenizer.from_folder(folder, config=config), config, settings)

    def __len__(self) -> int:
        return self.backend.vocab_size

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.backend.vocab_size

    @property
    def bos_token(self) -> str:
        """Written form of the first token of every prompt."""
        return self.backend.token_text(self.bos_token_id) or ""

    @property
    def eos_token(self) -> str:
        """Written form of the end token."""
        return self.backend.token_text(self.eos_token_id) or ""

    @property
    def pad_token(self) -> str | None:
        """Written form of the padding token; setting it to another token of the vocabulary changes ``pad_token_id``."""
        return None if self.pad_token_id is None else self.backend.token_text(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str | None) -> None:
        if token is None:
            self.pad_token_id = None
            return
        ids = self.backend.encode(token, parse_special=True)
        if len(ids) != 1 or self.backend.token_text(ids[0]) != token:
            raise ConfigError(f"{token!r} is not one token of this vocabulary, so it cannot be the padding token.")
        self.pad_token_id = ids[0]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Written forms of the special tokens, as chat templates may use them."""
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, "unk_token": self.unk_token}
        if self.pad_token is not None:
            tokens["pad_token"] = self.pad_token
        return {**tokens, "image_token": self.image_token}

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Encode one text or several.

        Parameters
        ----------
        text : str or sequence of str
        add_special_tokens : bool, default True
            Begin with the BOS token.
        padding : bool or str, default False
            True or ``"longest"``: to the longest; ``"max_length"``: to ``max_length``.
        truncation : bool or str, optional
            True or ``"longest_first"`` cuts the end at ``max_length``.
        padding_side : {"left", "right"}, optional
            Instead of the attribute.
        pad_to_multiple_of : int, optional
        return_attention_mask : bool, optional
            False leaves the mask out.
        return_tensors : {"pt", "np"}, optional

        Returns
        -------
        BatchFeature
            ``input_ids`` and ``attention_mask``; lists of one text are not nested, tensors always are.

        Raises
        ------
        PromptError
            If something else than text was given, or rows of different lengths should become a tensor.
        ConfigError
            If an option is not one of those above.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise PromptError(f"text must be a string or a list of strings, got {text!r:.100}.")
        rows = [self.encode(one, add_special_tokens=add_special_tokens) for one in texts]
        rows = self._truncate(rows, truncation, max_length)
        width = _padded_width(rows, padding, max_length, pad_to_multiple_of)
        masks = [[1] * len(row) for row in rows]
        if width is not None:
            side = self.padding_side if padding_side is None else padding_side
            masks = [_pad(mask, width, 0, side) for mask in masks]
            rows = [_pad(row, width, self._require_pad_id(), side) for row in rows]
        data: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if return_attention_mask is False:
            del data["attention_mask"]
        if isinstance(text, str) and return_tensors is None:
            data = {name: value[0] for name, value in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of one text."""
        ids = [self.bos_token_id] if add_special_tokens and self._adds_bos else []
        # Piece by piece: original checkpoints have no <image> in their vocabulary, and its id lies above it.
        for idx, piece in enumerate(text.split(self.image_token)):
            if idx:
                ids.append(self.image_token_id)
            ids += self.backend.encode(piece, parse_special=True)
        return ids

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Return the text of ids: a string for one row, a list of strings for several.

        Parameters
        ----------
        token_ids : int, sequence of int, tensor or array
            One row, or a batch of them.
        skip_special_tokens : bool, default False
            Leave out BOS, EOS, padding and image tokens.
        clean_up_tokenization_spaces : bool, optional
            Has no effect: it would damage the text of a BPE tokenizer, and transformers 5 leaves it as well.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        ids = list(ids)
        if ids and not isinstance(ids[0], int):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        if clean_up_tokenization_spaces:
            _LOGGER.warning(
                "clean_up_tokenization_spaces=True has no effect on this kind of tokenizer, as in transformers 5."
            )
        return self.backend.decode(ids, skip_special=skip_special_tokens)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Return the texts of several rows; parameters as for `decode`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """Return vocabulary entries as they are written in the tokenizer's file."""
        if isinstance(ids, int):
            return self.backend.token_text(ids) or self.unk_token
        return [self.backend.token_text(int(token_id)) or self.unk_token for token_id in ids]

    def _truncate(
        self, rows: list[list[int]], truncation: bool | str | None, max_length: int | None
    ) -> list[list[int]]:
        if truncation in (None, False, "do_not_truncate"):
            return rows
        if truncation not in (True, "longest_first", "only_first"):
            raise ConfigError(f"truncation={truncation!r} is not supported; use True or False.")
        if max_length is None:
            return rows
        if self.truncation_side != "right":
            raise ConfigError(
                f"truncation_side={self.truncation_side!r} is not supported; only the end of a text can be cut."
            )
        return [row[:max_length] for row in rows]

    def _require_pad_id(self) -> int:
        if self.pad_token_id is None:
            raise ConfigError(
                "this tokenizer has no padding token. Set processor.tokenizer.pad_token_id, or pass padding=False."
            )
        return self.pad_token_id


def _padded_width(
    rows: list[list[int]], padding: bool | str | None, max_length: int | None, multiple: int | None
) -> int | None:
    """Return the common length to pad to; None without padding."""
    if padding not in _PADDINGS:
        raise ConfigError(f"padding={padding!r} is not supported; use True, False, 'longest' or 'max_length'.")
    if padding in (False, None, "do_not_pad"):
        return None
    width = max(len(row) for row in rows)
    if padding == "max_length":
        if max_length is None:
            raise ConfigError("padding='max_length' needs max_length.")
        width = max_length
    if multiple is not None:
        width = -(-width // multiple) * multiple
    return width


def _pad(row: list[int], width: int, value: int, side: str) -> list[int]:
    if side not in ("left", "right"):
        raise ConfigError(f"padding_side is {side!r}; it must be 'left' or 'right'.")
    filler = [value] * (width - len(row))
    return filler + row if side == "left" else row + filler


def _content(token: Any) -> str | None:
    """Return the text of a token entry, which may be a string or an object with ``content``."""
    return token.get("content") if isinstance(token, dict) else token
