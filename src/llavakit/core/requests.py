"""The one request that every API becomes, and what a server may ask of an engine.

A server translates a dialect (OpenAI's, Ollama's) into a `GenerateRequest`, hands it to an `EngineClient` and frames
the events that come back. It knows no torch, and an engine knows no HTTP; both know this file. Tests drive the server
with a stand-in that implements the same protocols.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from llavakit.core.types import GenerationResult, ImagePart, Message, SamplingParams, TokenEvent

__all__ = [
    "Answer",
    "AttentionMap",
    "ConstraintKind",
    "EngineClient",
    "EngineStats",
    "GenerateRequest",
    "LoadedInfo",
    "ModelHost",
    "ModelInfo",
    "OutputConstraint",
]


class ConstraintKind(StrEnum):
    """What an answer may look like."""

    JSON_OBJECT = "json_object"  # any JSON object
    JSON_SCHEMA = "json_schema"  # `OutputConstraint.text` is the schema as JSON
    REGEX = "regex"  # the text is a regular expression that the whole answer matches
    CHOICE = "choice"  # the text is a JSON list of strings, one of which is the answer
    GRAMMAR = "grammar"  # the text is a grammar in llguidance's Lark syntax


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConstraint:
    """The form an answer must have; every token that would leave it is ruled out before the choice."""

    kind: ConstraintKind
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One answer that somebody wants.

    Parameters
    ----------
    messages : tuple of Message
        A conversation; empty when ``prompt`` is given.
    prompt : str, optional
        Text that is continued as it stands, without a template; its pictures are ``images``, each of which stands
        before the text on a line of its own. Control tokens in it are text.
    images : tuple of ImagePart
        Pictures of ``prompt``.
    sampling : SamplingParams
    constraint : OutputConstraint, optional
    preset : str, optional
        How pictures and prompts are prepared; by default what the model was loaded with.
    max_context_tokens : int, optional
        Prompt and answer together, where less than the model's context is wanted.
    should_truncate : bool
        Leave out the oldest turns when the conversation does not fit, whole messages at a time and never the system's;
        by default that is an error.
    tenant : str
        Whose request it is. Where tenants are kept apart nothing cached for one is used for another.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    images: tuple[ImagePart, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    constraint: OutputConstraint | None = None
    preset: str | None = None
    max_context_tokens: int | None = None
    should_truncate: bool = False
    tenant: str = ""


class Answer(Protocol):
    """An accepted request on its way.

    Iterating yields one `TokenEvent` per token; the last one, and only that, has a finish reason. Where the answer
    fails the iteration raises a `LlavakitError` instead, so that there is exactly one end in every case.
    """

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield the events; may be called once."""

    @property
    def result(self) -> GenerationResult:
        """The whole answer with its timings; after the last event."""

    def cancel(self) -> None:
        """End the answer: within one step nothing of it is left in the engine. Harmless after the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMap:
    """Where the tokens of an answer attended in a picture.

    Attributes
    ----------
    texts : tuple of str
        Text of each token of the answer.
    weights : tuple of tuple of float
        For each token the mean attention over layers and heads that fell on each patch of each picture, picture after
        picture, row by row; (num_tokens, num_images * patches_per_image).
    patches_per_side : int
    """

    texts: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    patches_per_side: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """What an engine is doing, for metrics and ``/api/ps``. Counts since it was loaded unless said otherwise."""

    num_running: int = 0  # now
    num_waiting: int = 0  # now
    max_waiting: int = 0
    num_blocks: int = 0
    num_blocks_in_use: int = 0  # now, by running requests
    num_blocks_cached: int = 0  # now, kept for later requests
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompts' tokens, those that were not computed again
    num_generated_tokens: int = 0
    num_images_encoded: int = 0
    num_image_hits: int = 0
    num_prepared_hits: int = 0  # pictures that did not have to be decoded and resized again
    num_image_cache_bytes: int = 0  # now
    max_image_cache_bytes: int = 0
    num_kv_cache_bytes: int = 0  # now: blocks that were used at least once
    max_kv_cache_bytes: int = 0
    num_disk_cache_bytes: int = 0  # now
    max_disk_cache_bytes: int = 0
    num_pixel_bytes: int = 0  # now: prepared pictures of requests that have not ended
    max_pixel_bytes: int = 0
    num_preemptions: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_steps: int = 0


class EngineClient(Protocol):
    """One loaded model that answers many requests at a time."""

    @property
    def name(self) -> str:
        """Of the model, as `ModelInfo.name`."""

    @property
    def max_context_tokens(self) -> int:
        """Prompt and answer together."""

    @property
    def tokens_per_image(self) -> int:
        """Positions that a picture takes in the prompt."""

    @property
    def preset_names(self) -> Sequence[str]:
        """The presets a request may name, the default one first."""

    async def submit(self, request: GenerateRequest) -> Answer:
        """Prepare and queue a request.

        Raises
        ------
        RequestError
            If pictures, messages, settings or the constraint cannot be used, or do not fit into the context.
        OverloadedError
            If too many requests wait already; it says after how many seconds to try again.
        CapacityError
            If the request cannot fit into memory, however long it waits.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 text of one token; empty for control tokens."""

    async def count_prompt_tokens(self, request: GenerateRequest) -> int:
        """Count the tokens of a prompt, its pictures included."""

    async def attend(self, request: GenerateRequest, answer: str) -> AttentionMap:
        """Compute where an answer to a request with pictures attended; an extra pass over prompt and answer."""

    def stats(self) -> EngineStats:
        """Say what the engine is doing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A model that can be asked for; read from its files without loading weights.

    Attributes
    ----------
    name : str
    num_bytes : int
        Of its files.
    digest : str
        64 hexadecimal digits that change when the files do.
    modified_at_s : float
        Seconds since 1970.
    format : str
        ``gguf`` or ``safetensors``.
    num_parameters : int
    storage_type : str
        How most weights are stored: ``float16``, ``q4_k_m``, ...
    max_context_tokens, hidden_size : int
    is_local : bool
        Whether it is on this machine.
    license_text, template : str
    details : mapping of str to str, int, float or bool
        Further numbers of its configuration under GGUF-like keys.
    """

    name: str
    num_bytes: int
    digest: str
    modified_at_s: float
    format: str
    num_parameters: int
    storage_type: str
    max_context_tokens: int
    hidden_size: int
    is_local: bool = True
    license_text: str = ""
    template: str = ""
    details: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedInfo:
    """A model in memory. ``expires_at_s`` is None when it stays for ever."""

    info: ModelInfo
    num_bytes: int
    expires_at_s: float | None
    max_context_tokens: int
    num_parallel: int


class ModelHost(Protocol):
    """Finds, loads, keeps and unloads models."""

    def list_models(self) -> Sequence[ModelInfo]:
        """All models on this machine, the embedded one included."""

    def describe(self, name: str) -> ModelInfo:
        """One model.

        Raises
        ------
        ModelNotFoundError
            If there is none of this name here.
        """

    async def open(self, name: str | None, *, keep_alive_s: float | None = None) -> tuple[EngineClient, float]:
        """Return a model ready to answer, loading it first if need be, and the seconds that loading took (0 if none).

        ``name`` None is the model the server was started with. The model stays loaded for ``keep_alive_s`` after its
        last request: infinity for ever, None for the host's default. A model that is in use is never unloaded.

        Raises
        ------
        ModelNotFoundError
            If there is none of this name here.
        OverloadedError
            If another model is in use and there is no room for two.
        LlavakitError
            If its files cannot be used.
        """

    def loaded(self) -> Sequence[LoadedInfo]:
        """Models in memory."""

    def engines(self) -> Sequence[EngineClient]:
        """Engines of the models in memory, for metrics."""

    async def unload(self, name: str) -> bool:
        """Let go of a model once its requests are answered; False if it was not loaded."""

    async def remove(self, name: str) -> None:
        """Delete a model's files from the store.

        Raises
        ------
        ModelNotFoundError, StoreError
            If it is not there, is the embedded one, or lies outside the store.
        """

    def pull(self, name: str) -> AsyncIterator[tuple[str, int, int]]:
        """Fetch a model from the Hub, yielding what is done, bytes so far and bytes in all."""

    async def close(self, *, grace_s: float) -> None:
        """Take no more requests, give those that run ``grace_s`` seconds to end, cancel the rest and unload."""
