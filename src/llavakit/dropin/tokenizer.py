"""The tokenizer's surface as code written for transformers expects it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.dropin.vocabulary import Vocabulary
from llavakit.processing.presets import read_json
from llavakit.processing.tokenizer import Tokenizer

__all__ = ["LlavaTokenizer"]

_LOGGER = logging.getLogger(__name__)
# Files that give no length write a number far beyond this one.
_UNBOUNDED_LENGTH = 10**20
# Options that are taken as long as they ask for nothing.
_NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "text_pair": (None,), "text_target": (None,), "text_pair_target": (None,), "stride": (0,),
    "is_split_into_words": (False,), "return_token_type_ids": (None, False),
    "return_overflowing_tokens": (False,), "return_special_tokens_mask": (False,), "return_offsets_mapping": (False,),
    "return_length": (False,), "verbose": (True, False),
}  # fmt: skip
_PADDINGS = (True, False, None, "longest", "max_length", "do_not_pad")


class LlavaTokenizer(Vocabulary):
    """Text to ids and back, by the checkpoint's own tokenizer files.

    Control tokens in the text (``<image>``, ``</s>``) become their ids, as in transformers: prompts of this
    surface are written out by the caller. `llavakit.load` keeps text and control tokens apart.

    Attributes
    ----------
    padding_side, truncation_side : {"left", "right"}
        May be changed. Padding on the left is for generation.
    model_max_length : int
        Where truncation cuts when no ``max_length`` is given; may be changed.
    add_bos_token : bool
        Whether texts begin with the BOS token; may be changed.
    name_or_path : str
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, backend: Tokenizer, config: LlavaConfig, settings: dict[str, Any], *, name: str = "") -> None:
        super().__init__(backend, config, settings)
        self.padding_side: str = settings.get("padding_side", "left")
        self.truncation_side: str = settings.get("truncation_side", "right")
        self.model_max_length = int(settings.get("model_max_length") or _UNBOUNDED_LENGTH)
        self.add_bos_token = bool(settings.get("add_bos_token", True))
        self.name_or_path = name

    @classmethod
    def from_folder(cls, folder: Path, config: LlavaConfig, *, name: str | None = None) -> LlavaTokenizer:
        """Read the tokenizer of a checkpoint folder."""
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        return cls(Tokenizer.from_folder(folder, config=config), config, settings, name=name or str(folder))

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        **others: Any,
    ) -> BatchFeature:
        """Encode one text or several.

        Parameters
        ----------
        text : str or sequence of str
        text_pair : None
            Second texts are refused: LLaVA's prompts have none.
        add_special_tokens : bool, default True
            Begin with the BOS token.
        padding : bool or str, default False
            True or ``"longest"``: to the longest; ``"max_length"``: to ``max_length``.
        truncation : bool or str, optional
            True or ``"longest_first"`` cuts at ``max_length``, by default `model_max_length`.
        padding_side : {"left", "right"}, optional
            Instead of the attribute.
        pad_to_multiple_of : int, optional
        return_attention_mask : bool, optional
            False leaves the mask out.
        return_tensors : {"pt", "np"}, optional
        others
            Of transformers' further options the values that ask for nothing (``verbose``, ``return_length=False``).

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
        _refuse_others({"text_pair": text_pair, **others})
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise PromptError(f"text must be a string or a list of strings, got {text!r:.100}.")
        has_bos = add_special_tokens and self.add_bos_token
        rows = [self._encode(one, has_bos=has_bos) for one in texts]
        if truncation not in (None, False, "do_not_truncate"):
            rows = self._truncate(rows, truncation, max_length, num_kept=int(has_bos))
        batch = self.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=max_length,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
        )
        if isinstance(text, str) and return_tensors is None:
            return BatchFeature({name: value[0] for name, value in batch.items()})
        return batch.convert_to_tensors(return_tensors)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        padding: bool | str | None = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Bring rows of ids to one length.

        Parameters
        ----------
        encoded_inputs : mapping or sequence of mappings
            ``input_ids`` and, if positions are hidden already, ``attention_mask``: lists of rows, or of one row each.
        padding, max_length, pad_to_multiple_of, padding_side, return_attention_mask, return_tensors
            As for a call; padded to the longest by default.

        Returns
        -------
        BatchFeature
            ``input_ids`` and ``attention_mask``.
        """
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {name: [one[name] for one in encoded_inputs] for name in encoded_inputs[0]}
        if unknown := encoded_inputs.keys() - {"input_ids", "attention_mask"}:
            raise ConfigError(f"only input_ids and attention_mask can be padded, got {', '.join(sorted(unknown))}.")
        rows = _as_rows(encoded_inputs["input_ids"])
        masks = _as_rows(encoded_inputs.get("attention_mask", [[1] * len(row) for row in rows]))
        width = _padded_width(rows, padding, self._length_limit(max_length), pad_to_multiple_of)
        if width is not None:
            side = self.padding_side if padding_side is None else padding_side
            masks = [_pad(mask, width, 0, side) for mask in masks]
            rows = [_pad(row, width, self._require_pad_id(), side) for row in rows]
        data: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if return_attention_mask is False:
            del data["attention_mask"]
        return BatchFeature(data, tensor_type=return_tensors)

    def encode(self, text: str, **options: Any) -> Any:
        """Return the ids of one text: a list, or with ``return_tensors`` a tensor (1, T); options as for a call."""
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """Return a text as vocabulary entries."""
        return self.convert_ids_to_tokens(self._encode(text, has_bos=False))  # type: ignore[no-any-return]

    def _encode(self, text: str, *, has_bos: bool) -> list[int]:
        ids = [self.bos_token_id] if has_bos else []
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
        if isinstance(ids, str | Mapping):
            raise ConfigError(
                f"decode takes token ids, and got a {type(token_ids).__name__}. Pass its ids, as in "
                "decode(inputs['input_ids'][0])."
            )
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
        """Return the texts of several rows, of a single row as a list of one text; parameters as for `decode`."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _truncate(
        self, rows: list[list[int]], truncation: bool | str | None, max_length: int | None, *, num_kept: int
    ) -> list[list[int]]:
        """Cut rows, on the left behind the first ``num_kept`` ids."""
        if truncation not in (True, "longest_first", "only_first"):
            raise ConfigError(f"truncation={truncation!r} is not supported; use True or False.")
        if self.truncation_side not in ("left", "right"):
            raise ConfigError(f"truncation_side is {self.truncation_side!r}; it must be 'left' or 'right'.")
        limit = self._length_limit(max_length)
        if limit is None or self.truncation_side == "right":
            return [row[:limit] for row in rows]
        return [row if len(row) <= limit else row[:num_kept] + row[len(row) - limit + num_kept :] for row in rows]

    def _length_limit(self, max_length: int | None) -> int | None:
        """Return the length that is meant where it is not given: that of the model, unless it is unbounded."""
        if max_length is not None:
            return max_length
        return self.model_max_length if self.model_max_length < _UNBOUNDED_LENGTH else None

    def _require_pad_id(self) -> int:
        if self.pad_token_id is None:
            raise ConfigError(
                "this tokenizer has no padding token. Set processor.tokenizer.pad_token_id, or pass padding=False."
            )
        return self.pad_token_id


def _as_rows(values: Any) -> list[list[int]]:
    """Return nested lists of one or several rows."""
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in values]
    return [rows] if rows and isinstance(rows[0], int) else [list(row) for row in rows]


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


def _refuse_others(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _NOTHING_ASKED:
            raise ConfigError(f"the tokenizer does not take {name!r}; check its spelling or leave it out.")
        if not any(value is nothing for nothing in _NOTHING_ASKED[name]):
            raise ConfigError(f"the tokenizer does not support {name}={value!r:.100}; leave it out.")
