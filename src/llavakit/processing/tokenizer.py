"""Text to token ids and back, exactly as LLaMA's tokenizer file says.

A thin adapter over the ``tokenizers`` library. Two tokenizers are kept: one knows the control tokens (for prompts a
developer wrote as one string), the other does not know them at all, so nothing a user types can become one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, PromptError
from llavakit.processing.presets import read_json
from llavakit.processing.spm import pieces_to_tokenizer_json, read_sentencepiece

__all__ = ["StreamDecoder", "Tokenizer"]

IMAGE_TOKEN = "<image>"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """LLaMA's tokenizer with LLaVA's image token.

    Parameters
    ----------
    content : dict
        A ``tokenizer.json``.
    bos_token_id, eos_token_id, image_token_id : int
    """

    def __init__(self, content: dict[str, Any], *, bos_token_id: int, eos_token_id: int, image_token_id: int) -> None:
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.image_token_id = image_token_id
        added = content.get("added_tokens") or []
        try:
            self._with_specials = RustTokenizer.from_str(json.dumps(content))
            self._plain = RustTokenizer.from_str(json.dumps({**content, "added_tokens": []}))
            self._special_ids = {int(entry["id"]): str(entry["content"]) for entry in added if entry["special"]}
        except Exception as error:  # the Rust library raises bare exceptions only
            raise ConfigError(f"tokenizer.json cannot be used ({error}). Fetch the model again.") from error
        self._frozen_special_ids = frozenset(self._special_ids)
        for tokenizer in (self._with_specials, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()

    @classmethod
    def from_folder(cls, folder: Path, *, config: LlavaConfig) -> Tokenizer:
        """Read ``tokenizer.json``, or LLaMA's ``tokenizer.model``, of a model folder.

        Raises
        ------
        ConfigError
            If there is none, it is damaged, or it does not fit the model.
        """
        json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
        if json_file.is_file():
            content = read_json(json_file)
        elif model_file.is_file():
            content = pieces_to_tokenizer_json(*read_sentencepiece(model_file))
        else:
            raise ConfigError(f"{folder.name!r} has no tokenizer.json and no tokenizer.model; fetch the model again.")
        return cls.from_content(content, config=config)

    @classmethod
    def from_content(cls, content: dict[str, Any], *, config: LlavaConfig) -> Tokenizer:
        """Build from the content of a ``tokenizer.json``.

        Raises
        ------
        ConfigError
            If it is damaged or does not fit the model.
        """
        tokenizer = cls(
            content,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            image_token_id=config.image_token_id,
        )
        tokenizer.check_fits(config)
        return tokenizer

    @classmethod
    def from_pieces(
        cls, pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, config: LlavaConfig
    ) -> Tokenizer:
        """Build from a sentencepiece vocabulary, as GGUF files carry it.

        Raises
        ------
        ConfigError
            If it is damaged or does not fit the model.
        """
        return cls.from_content(pieces_to_tokenizer_json(pieces, scores, types), config=config)

    def check_fits(self, config: LlavaConfig) -> None:
        """Check that every id of the tokenizer has an embedding and that the image token agrees."""
        size = config.text_config.vocab_size
        in_file = {text: token_id for token_id, text in self._special_ids.items()}.get(IMAGE_TOKEN)
        if in_file is not None and in_file != config.image_token_id:
            raise ConfigError(
                f"tokenizer.json gives {IMAGE_TOKEN} the id {in_file}, config.json says {config.image_token_id}. "
                "The files belong to different models."
            )
        if self.vocab_size > size + (config.image_token_id == size):
            raise ConfigError(
                f"tokenizer.json has {self.vocab_size} tokens, the model embeds {size}. "
                "The files belong to different models."
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the tokenizer's file; the model's own vocabulary may be padded beyond it."""
        return int(self._with_specials.get_vocab_size(with_added_tokens=True))

    @property
    def base_vocab_size(self) -> int:
        """The same without tokens that were added to the vocabulary."""
        return int(self._with_specials.get_vocab_size(with_added_tokens=False))

    def entries(self) -> dict[str, int]:
        """Return every token with its id."""
        return dict(self._with_specials.get_vocab(with_added_tokens=True))

    def token_id(self, text: str) -> int | None:
        """Return the id of a vocabulary entry, or None."""
        token_id = self._with_specials.token_to_id(text)
        return None if token_id is None else int(token_id)

    def encode(self, text: str, *, parse_special: bool = False, add_bos: bool = False) -> list[int]:
        """Turn text into ids.

        Parameters
        ----------
        text : str
        parse_special : bool, default False
            Read ``<image>``, ``</s>`` and the like in the text as control tokens. Only for text that a developer
            wrote; with False no control token can come out, whatever the text says.
        add_bos : bool, default False

        Raises
        ------
        PromptError
            If the text holds lone surrogates, which are not characters.
        """
        tokenizer = self._with_specials if parse_special else self._plain
        try:
            ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
        except (UnicodeError, TypeError) as error:
            raise PromptError(
                f"the text holds characters that are not valid Unicode ({error}). Remove them."
            ) from error
        return [self.bos_token_id, *ids] if add_bos else ids

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Turn ids into text. Ids outside the vocabulary give nothing."""
        return str(self._with_specials.decode(list(token_ids), skip_special_tokens=skip_special))

    def token_text(self, token_id: int) -> str | None:
        """Return the vocabulary entry of an id, or None."""
        text = self._with_specials.id_to_token(token_id)
        return None if text is None else str(text)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 text of one token, its leading space included; nothing for control tokens."""
        entry = self.token_text(token_id)
        if entry is None or token_id in self._frozen_special_ids:
            return b""
        if byte := _BYTE_TOKEN.fullmatch(entry):
            return bytes([int(byte.group(1), 16)])
        return entry.replace("\u2581", " ").encode("utf-8")

    def to_json(self) -> str:
        """Return the content of a ``tokenizer.json``."""
        return str(self._with_specials.to_str())

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens."""
        return self._frozen_special_ids


class StreamDecoder:
    """Turns tokens into text one at a time: whole characters only, and in sum exactly `Tokenizer.decode`.

    A run of byte tokens is one unit to the tokenizer: a bad byte at its end turns all of it into replacement
    characters. It is therefore held back until another token ends it. Everything else is shown at once, decoded
    behind the token before it, so the cost does not grow with the answer.

    Parameters
    ----------
    tokenizer : Tokenizer
    is_eager : bool, default False
        Give each whole character of a run of bytes at once (a line break is one, too), for those who look for a stop
        string and must see it with its last token. Exact as long as runs of bytes are valid UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_eager: bool = False) -> None:
        self._tokenizer = tokenizer
        self._is_eager = is_eager
        self._before: list[int] = []  # the last token that is text, so that the next one keeps its leading space
        self._bytes: list[int] = []

    def push(self, token_id: int) -> str:
        """Take a token; return the text that is certain now."""
        entry = self._tokenizer.token_text(token_id)
        if entry is None or token_id in self._tokenizer.special_ids:
            return ""  # decoding skips it too, and a run of bytes goes on behind it
        if _BYTE_TOKEN.fullmatch(entry):
            self._bytes.append(token_id)
            return self._whole_characters() if self._is_eager else ""
        text = self._behind([*self._bytes, token_id])
        self._before, self._bytes = [token_id], []
        return text

    def finish(self) -> str:
        """Return what was held back, undecodable bytes as replacement characters."""
        text = self._behind(self._bytes)
        self._bytes = []
        return text

    def _whole_characters(self) -> str:
        text = self._behind(self._bytes)
        if "\ufffd" in text:
            return ""
        self._before, self._bytes = self._bytes, []
        return text

    def _behind(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        before = self._tokenizer.decode(self._before) if self._before else ""
        return self._tokenizer.decode(self._before + token_ids)[len(before) :]
