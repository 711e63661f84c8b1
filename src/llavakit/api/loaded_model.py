"""A model ready to answer: ``chat``, ``generate`` and ``stream``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llavakit.api.arguments import attach_pictures, pictures_per_prompt, read_prompts, read_sampling
from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError
from llavakit.core.types import GenerationResult, SamplingParams, TokenEvent
from llavakit.engine.engine import Engine
from llavakit.engine.generation import Generation
from llavakit.model.llava import Llava
from llavakit.processing.chat import to_messages
from llavakit.processing.presets import Preset
from llavakit.processing.prompt import PreparedPrompt, prepare
from llavakit.processing.sources import SourcePolicy
from llavakit.processing.tokenizer import StreamDecoder, Tokenizer

__all__ = ["LoadedModel", "Stream", "never_generated"]


class Stream:
    """One answer on its way: iterate for events, then read ``result``.

    Examples
    --------
    >>> stream = model.stream("How many circles are there?", images=["scene.png"])  # doctest: +SKIP
    >>> for event in stream:  # doctest: +SKIP
    ...     print(event.text, end="", flush=True)
    """

    def __init__(self, engine: Engine, generation: Generation) -> None:
        self._cancelled = threading.Event()
        self._generation = generation
        self._events = engine.run([generation], should_stop=self._cancelled.is_set)

    def __iter__(self) -> Iterator[TokenEvent]:
        """Yield one event per token; the last one has a finish reason."""
        return self._events

    def cancel(self) -> None:
        """End the answer before its next token; may be called from another thread."""
        self._cancelled.set()

    @property
    def result(self) -> GenerationResult:
        """The answer; runs what is left of it first. Cancelled where it is if its iterator was closed."""
        for _ in self._events:
            pass
        if self._generation.finish_reason is None:
            self._generation.cancel()
        return self._generation.result


class LoadedModel:
    """A model with its tokenizer, its presets and an engine. Made by `llavakit.load`.

    Attributes
    ----------
    name : str
        As it was asked for.
    folder : Path
        Where its files are.
    config : LlavaConfig
    preset : Preset
        How pictures and prompts are prepared.
    tokenizer : Tokenizer
    load_s : float
        Seconds that loading took.

    Notes
    -----
    One thread at a time.
    """

    def __init__(
        self,
        *,
        model: Llava,
        tokenizer: Tokenizer,
        presets: Mapping[str, Preset],
        preset_name: str,
        policy: SourcePolicy,
        name: str,
        folder: Path,
        load_s: float,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.presets = dict(presets)
        self.preset = self.presets[preset_name]
        self.policy = policy
        self.name = name
        self.folder = folder
        self.load_s = load_s
        self._engine = Engine(
            model,
            make_decoder=lambda: StreamDecoder(tokenizer),
            suppressed_ids=never_generated(model.config, tokenizer),
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError(
            f"a LoadedModel is neither copied nor pickled: its weights are mapped files. Load it again with "
            f"llavakit.load({self.name!r}), or use with_preset for the same weights."
        )

    @property
    def config(self) -> LlavaConfig:
        """The model's numbers."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def chat(
        self,
        messages: str | Sequence[Any],
        *,
        images: Iterable[Any] | None = None,
        sampling: SamplingParams | None = None,
        **settings: Any,
    ) -> GenerationResult:
        """Answer one conversation.

        Parameters
        ----------
        messages : str or sequence of messages
            A question; or `Message` objects or dicts with ``role`` and ``content`` as in transformers and
            in OpenAI's API.
        images : iterable, optional
            Pictures that go before the last user message: paths, URLs, data URIs, bytes, PIL images or
            numpy arrays.
        sampling : SamplingParams, optional
        **settings
            Fields of `SamplingParams`, instead of or on top of ``sampling``. ``stop`` may be one string or a list, and
            ``logit_bias`` a mapping of token ids to biases; None is their default.

        Returns
        -------
        GenerationResult

        Raises
        ------
        RequestError
            If pictures, messages or settings cannot be used, or do not fit into the context.
        """
        return self.stream(messages, images=images, sampling=sampling, **settings).result

    def stream(
        self,
        messages: str | Sequence[Any],
        *,
        images: Iterable[Any] | None = None,
        sampling: SamplingParams | None = None,
        **settings: Any,
    ) -> Stream:
        """Answer one conversation token by token; parameters as for `chat`.

        A conversation that goes on computes only what is new, and no picture is encoded twice.
        """
        prompt = self.prepare(messages, images=images)
        (generation,) = self._engine.submit([prompt], [read_sampling(sampling, settings)])
        return Stream(self._engine, generation)

    def generate(
        self,
        prompts: str | Iterable[Any],
        *,
        images: Iterable[Any] | None = None,
        sampling: SamplingParams | None = None,
        **settings: Any,
    ) -> list[GenerationResult]:
        """Answer several conversations side by side; each answer is that of a run alone.

        Parameters
        ----------
        prompts : str or iterable
            Each a question or a conversation, as for `chat`.
        images : iterable, optional
            For each prompt its pictures: a sequence, one picture, or None. With a single string prompt, its
            pictures.
        sampling, **settings
            As for `chat`, for all prompts. With a seed, prompt i uses ``seed + i``.

        Returns
        -------
        list of GenerationResult
            In the order of the prompts.
        """
        params = read_sampling(sampling, settings)
        if isinstance(prompts, str):
            prompts = [prompts]
            images = [images]
        prompts = read_prompts(prompts)
        per_prompt = pictures_per_prompt(images, len(prompts))
        prepared = [self.prepare(prompt, images=mine) for prompt, mine in zip(prompts, per_prompt, strict=True)]
        generations = self._engine.submit(prepared, [_offset_seed(params, idx) for idx in range(len(prepared))])
        for _ in self._engine.run(generations):
            pass
        return [generation.result for generation in generations]

    def prepare(self, messages: str | Sequence[Any], *, images: Iterable[Any] | None = None) -> PreparedPrompt:
        """Turn a conversation into token ids and pixels, as `chat` does."""
        conversation = attach_pictures(to_messages(messages), images)
        return prepare(
            conversation, tokenizer=self.tokenizer, preset=self.preset, config=self.config, policy=self.policy
        )

    def with_preset(self, name: str) -> LoadedModel:
        """Return the same weights under another preset.

        Raises
        ------
        ConfigError
            If there is no such preset.
        """
        if not isinstance(name, str) or name not in self.presets:
            raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(sorted(self.presets))}.")
        return LoadedModel(
            model=self.model,
            tokenizer=self.tokenizer,
            presets=self.presets,
            preset_name=name,
            policy=self.policy,
            name=self.name,
            folder=self.folder,
            load_s=self.load_s,
        )

    def reset(self) -> None:
        """Forget cached conversations and pictures, and give their memory back.

        Needed after weights were changed through ``.data`` or by something else than torch; other changes are noticed.
        """
        self._engine.reset()

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LoadedModel({self.name!r}, dtype={dtype}, device={self.device}, preset={self.preset.name!r})"


def never_generated(config: LlavaConfig, tokenizer: Tokenizer) -> list[int]:
    """Ids without a meaning in an answer: image token, padding, and rows that pad the vocabulary."""
    vocab_size = config.text_config.vocab_size
    ids = set(range(min(tokenizer.vocab_size, vocab_size), vocab_size))
    ids.update(token_id for token_id in (config.image_token_id, config.pad_token_id) if token_id is not None)
    ids.discard(config.eos_token_id)
    return sorted(token_id for token_id in ids if token_id < vocab_size)


def _offset_seed(params: SamplingParams, idx: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=(params.seed + idx) % (1 << 64))
