"""From a conversation to what the engine takes: token ids with every picture's positions, and its pixels."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import PromptError
from llavakit.core.types import Message
from llavakit.core.wording import counted
from llavakit.processing.chat import ImageSegment, Segment, TextSegment, render
from llavakit.processing.image import ImageProcessing, preprocess
from llavakit.processing.pixel_cache import PixelCache, PreparedPicture
from llavakit.processing.presets import Preset
from llavakit.processing.sources import SourcePolicy, open_image
from llavakit.processing.tokenizer import IMAGE_TOKEN, Tokenizer

__all__ = ["PreparedPrompt", "prepare", "prepare_segments", "prepare_text"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedPrompt:
    """A prompt ready to compute.

    Attributes
    ----------
    token_ids : tuple of int
        Beginning-of-sequence first; each picture as ``num_image_tokens`` image tokens.
    pixel_values : float32 array of shape (n, 3, S, S), or None
    image_keys : tuple of str
        SHA-256 of each picture's pixels: equal pictures, and only they, share a key.
    image_starts : tuple of int
        First position of each picture.
    image_decode_s, image_resize_s : float
        Seconds spent opening and preprocessing the pictures.
    """

    token_ids: tuple[int, ...]
    pixel_values: np.ndarray | None
    image_keys: tuple[str, ...]
    image_starts: tuple[int, ...]
    image_decode_s: float
    image_resize_s: float


def prepare(
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer,
    preset: Preset,
    config: LlavaConfig,
    policy: SourcePolicy,
    template: str | None = None,
) -> PreparedPrompt:
    """Prepare a conversation under a preset.

    Raises
    ------
    RequestError
        If a picture or the conversation cannot be used.
    """
    segments = render(messages, template or preset.template)
    return prepare_segments(segments, tokenizer=tokenizer, processing=preset.image, config=config, policy=policy)


def prepare_text(
    prompt: str,
    images: Sequence[Any],
    *,
    tokenizer: Tokenizer,
    processing: ImageProcessing,
    config: LlavaConfig,
    policy: SourcePolicy,
) -> PreparedPrompt:
    """Prepare a prompt written as one string with a literal ``<image>`` per picture.

    Control tokens in the string count: it is the developer's, not a user's.

    Raises
    ------
    PromptError
        If placeholders and pictures differ in number.
    """
    chunks = prompt.split(IMAGE_TOKEN)
    if len(chunks) - 1 != len(images):
        raise PromptError(
            f"the prompt has {counted(len(chunks) - 1, f'{IMAGE_TOKEN} placeholder')} for "
            f"{counted(len(images), 'picture')}; they must be as many."
        )
    ids: list[int] = [tokenizer.bos_token_id]
    starts = []
    for idx, chunk in enumerate(chunks):
        ids += tokenizer.encode(chunk, parse_special=True) if chunk else []
        if idx < len(images):
            starts.append(len(ids))
            ids += [tokenizer.image_token_id] * config.num_image_tokens
    return _with_pixels(ids, starts, images, processing, policy)


def prepare_segments(
    segments: Sequence[Segment],
    *,
    tokenizer: Tokenizer,
    processing: ImageProcessing,
    config: LlavaConfig,
    policy: SourcePolicy,
    cache: PixelCache | None = None,
    owner: str = "",
) -> PreparedPrompt:
    """Prepare rendered segments. Each text is tokenized on its own: the tokenizer starts anew after a control token.

    What was prepared before under the same policy may be taken from a cache, if for the same owner.
    """
    ids = [tokenizer.bos_token_id]
    starts: list[int] = []
    sources: list[Any] = []
    for segment in segments:
        if isinstance(segment, TextSegment):
            ids += tokenizer.encode(segment.text)
        elif isinstance(segment, ImageSegment):
            starts.append(len(ids))
            sources.append(segment.source)
            ids += [tokenizer.image_token_id] * config.num_image_tokens
        else:
            ids.append(tokenizer.eos_token_id)
    return _with_pixels(ids, starts, sources, processing, policy, cache, owner)


def _with_pixels(
    ids: list[int],
    starts: list[int],
    sources: Sequence[Any],
    processing: ImageProcessing,
    policy: SourcePolicy,
    cache: PixelCache | None = None,
    owner: str = "",
) -> PreparedPrompt:
    decode_s = resize_s = 0.0
    pictures = []
    for source in sources:
        began = time.perf_counter()
        key = None if cache is None else cache.key_of(source, processing, owner)
        picture = None if cache is None else cache.find(key)
        if picture is None:
            opened = open_image(source, policy=policy)
            decoded = time.perf_counter()
            pixels = preprocess(opened.image, processing)
            picture = PreparedPicture(pixels, hashlib.sha256(pixels.tobytes()).hexdigest())
            resize_s += time.perf_counter() - decoded
            if cache is not None:
                cache.put(key, picture)
        else:
            decoded = time.perf_counter()
        decode_s += decoded - began
        pictures.append(picture)
    return PreparedPrompt(
        token_ids=tuple(ids),
        pixel_values=np.stack([picture.pixels for picture in pictures]) if pictures else None,
        image_keys=tuple(picture.key for picture in pictures),
        image_starts=tuple(starts),
        image_decode_s=decode_s,
        image_resize_s=resize_s,
    )
