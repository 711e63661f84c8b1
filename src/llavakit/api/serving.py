"""A loaded model behind the protocol that a server speaks: requests in, answers out, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from llavakit.api.loaded_model import LoadedModel, never_generated
from llavakit.core.errors import ConfigError, PromptError
from llavakit.core.requests import AttentionMap, EngineStats, GenerateRequest
from llavakit.engine.async_engine import AsyncEngine, EngineAnswer
from llavakit.engine.attention_map import attention_by_layers
from llavakit.engine.disk_store import DiskStore
from llavakit.engine.paged_cache import BLOCK_SIZE, BlockPool
from llavakit.engine.paged_engine import PagedEngine
from llavakit.model.llava import Llava
from llavakit.processing.chat import ImageSegment, Segment, TextSegment, render, render_fitting, to_messages
from llavakit.processing.grammar import FormMasks
from llavakit.processing.pixel_cache import PixelCache
from llavakit.processing.prompt import PreparedPrompt, prepare_segments
from llavakit.processing.tokenizer import StreamDecoder
from llavakit.scheduling.scheduler import Budget

__all__ = ["ServeSettings", "ServedModel"]

# Requests of all models that are being prepared at a time: a decoded picture can take half a gigabyte. A thread goes on
# with its picture when the client has left, and counts until it ends.
_MAX_PREPARED_AT_ONCE = 2
_PREPARERS = ThreadPoolExecutor(_MAX_PREPARED_AT_ONCE, thread_name_prefix="preparing")
_GPU_BUDGET = {"prompt_tokens": 4096, "mixed_tokens": 1024}
# Products of more than 128 rows gain nothing on a CPU, while nobody who comes is looked at before their end.
_CPU_BUDGET = {"prompt_tokens": 256, "mixed_tokens": 32}
# A step with prompts beside answers may take so many times as long as one with answers only.
_MAX_SLOWDOWN = 5.0
# Prepared pictures of requests that wait: so large a part of the memory that is free, within bounds.
_MAX_PIXEL_SHARE, _MIN_PIXEL_BYTES, _MAX_PIXEL_BYTES = 1 / 8, 32 * 1024**2, 512 * 1024**2
# Of the memory of pictures that may come again. With 576 features of 4,096 numbers a picture's pixels take a seventh of
# what its features do.
_PIXEL_CACHE_SHARE = 1 / 8


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How one model is served.

    Parameters
    ----------
    num_parallel : int
        Requests that are computed at a time.
    max_waiting : int
        Further ones that wait; one more is refused.
    cache_bytes : int, optional
        Of keys and values; by default what is free, less what weights and pictures need.
    picture_cache_bytes : int
        Of pictures that may come again, part of what is free: most of it features, the rest prepared pixels.
    isolate_tenants : bool
        Whether nothing cached for one tenant is used for another.
    max_draft_tokens : int, optional
        Longest guess of what follows; 0 for none, by default what pays on the device.
    """

    num_parallel: int = 8
    max_waiting: int = 256
    cache_bytes: int | None = None
    picture_cache_bytes: int = 256 * 1024**2
    isolate_tenants: bool = False
    max_draft_tokens: int | None = None


class ServedModel:
    """`llavakit.core.requests.EngineClient` over a `LoadedModel`, which nobody else uses from now on.

    Parameters
    ----------
    loaded : LoadedModel
    settings : ServeSettings
    name : str
        As clients call it.
    fingerprint : str
        Of the weights' files.
    available_bytes : int
        Memory that keys and values may take.
    disk : DiskStore, optional
        Where features and blocks of pictures outlive a restart; whoever opened it closes it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: ServeSettings,
        *,
        name: str,
        fingerprint: str,
        available_bytes: int,
        disk: DiskStore | None = None,
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._name = name
        self._coming: set[Future[PreparedPrompt]] = set()  # requests that the engine does not know yet
        self._masks: FormMasks | None = None
        self._pixels = PixelCache(max_bytes=int(settings.picture_cache_bytes * _PIXEL_CACHE_SHARE))
        is_cpu = loaded.device.type == "cpu"
        pixel_bytes = max(_MIN_PIXEL_BYTES, min(_MAX_PIXEL_BYTES, int(_MAX_PIXEL_SHARE * available_bytes)))
        engine = PagedEngine(
            loaded.model,
            make_decoder=lambda: StreamDecoder(loaded.tokenizer),
            num_blocks=_count_blocks(loaded.model, settings, available_bytes - pixel_bytes),
            suppressed_ids=never_generated(loaded.config, loaded.tokenizer),
            budget=Budget(
                max_running=settings.num_parallel,
                max_slowdown=_MAX_SLOWDOWN,
                **(_CPU_BUDGET if is_cpu else _GPU_BUDGET),
            ),
            max_draft_tokens=3 if settings.max_draft_tokens is None else settings.max_draft_tokens,
            max_decode_rows=4 if is_cpu else 32,
            max_picture_bytes=settings.picture_cache_bytes - self._pixels.max_bytes,
            fingerprint=fingerprint,
            disk=disk,
        )
        self._engine = AsyncEngine(
            engine, max_open=settings.num_parallel + settings.max_waiting, max_pixel_bytes=pixel_bytes,
            name=f"engine of {name}",
        )  # fmt: skip
        self._paged = engine

    @property
    def name(self) -> str:
        """Of the model, as clients call it."""
        return self._name

    @property
    def max_context_tokens(self) -> int:
        """Prompt and answer together."""
        return self._loaded.config.max_context_tokens

    @property
    def tokens_per_image(self) -> int:
        """Positions that a picture takes in the prompt."""
        return self._loaded.config.num_image_tokens

    @property
    def preset_names(self) -> Sequence[str]:
        """The presets a request may name, the default one first."""
        default = self._loaded.preset.name
        return [default, *(name for name in self._loaded.presets if name != default)]

    @property
    def num_coming(self) -> int:
        """Requests that are being prepared, for a client that has left too, until the thread ends."""
        return len(self._coming)

    @property
    def num_open(self) -> int:
        """Requests that came and have not ended."""
        return self.num_coming + self._engine.num_open

    async def submit(self, request: GenerateRequest) -> EngineAnswer:
        """Prepare and queue a request; see `llavakit.core.requests.EngineClient.submit`."""
        with self._preparing(request) as work:  # until the engine counts it, lest the model is let go of meanwhile
            prompt, mask = await asyncio.wrap_future(work), None
            if request.constraint is not None:
                constraint = request.constraint
                mask = await asyncio.to_thread(lambda: self._form_masks().make(constraint))
            return await self._engine.submit(
                prompt, request.sampling, tenant=self._tenant_of(request), mask=mask,
                max_context_tokens=request.max_context_tokens,
            )  # fmt: skip

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 text of one token; empty for control tokens."""
        return self._loaded.tokenizer.token_bytes(token_id)

    async def count_prompt_tokens(self, request: GenerateRequest) -> int:
        """Count the tokens of a prompt, its pictures included."""
        with self._preparing(request) as work:
            return len((await asyncio.wrap_future(work)).token_ids)

    async def attend(self, request: GenerateRequest, answer: str) -> AttentionMap:
        """Compute where an answer to a request with pictures attended."""
        with self._preparing(request) as work:
            prompt = await asyncio.wrap_future(work)
        tokenizer, config = self._loaded.tokenizer, self._loaded.config
        # The tokenizer puts the space that the answer's first token carries before every text.
        answer_ids = tokenizer.encode(answer.strip())
        if prompt.pixel_values is None or not answer_ids:
            raise PromptError("attention is shown of an answer to a question with a picture; one of them is missing.")
        if len(prompt.token_ids) + len(answer_ids) > config.max_context_tokens:
            raise PromptError(
                f"prompt and answer have {len(prompt.token_ids) + len(answer_ids)} tokens; the context is "
                f"{config.max_context_tokens}. Ask about a shorter conversation."
            )
        seen = await self._engine.do_beside(
            self._attend(prompt, answer_ids, tenant=self._tenant_of(request)), pixel_bytes=prompt.pixel_values.nbytes
        )
        weights = await asyncio.to_thread(_rounded, seen)
        vision = config.vision_config
        return AttentionMap(
            texts=tuple(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in answer_ids),
            weights=weights,
            patches_per_side=vision.image_size // vision.patch_size,
        )

    def stats(self) -> EngineStats:
        """Say what the engine is doing."""
        stats = self._engine.stats()
        return replace(
            stats,
            max_waiting=self._settings.max_waiting,
            num_image_cache_bytes=stats.num_image_cache_bytes + self._pixels.num_bytes,
            max_image_cache_bytes=stats.max_image_cache_bytes + self._pixels.max_bytes,
            num_prepared_hits=self._pixels.num_hits,
        )

    def close(self, *, grace_s: float) -> None:
        """Let running requests end, cancel the rest after ``grace_s`` seconds, and let go of the model."""
        self._engine.close(grace_s=grace_s)

    def check_integrity(self) -> None:
        """Raise AssertionError if anything in the engine is not accounted for; while it has nothing to do."""
        self._engine.call(self._paged.check_integrity).result()

    def _tenant_of(self, request: GenerateRequest) -> str:
        """Whose what is cached for it will be: everybody's, unless tenants are kept apart."""
        return request.tenant if self._settings.isolate_tenants else ""

    # Preparing, away from the event loop.

    @contextmanager
    def _preparing(self, request: GenerateRequest) -> Iterator[Future[PreparedPrompt]]:
        """Begin to prepare a request, which counts as coming until the end of both the block and the thread's work."""
        work = _PREPARERS.submit(self._prepare_now, request)
        self._coming.add(work)
        try:
            yield work
        finally:
            work.add_done_callback(self._coming.discard)

    def _prepare_now(self, request: GenerateRequest) -> PreparedPrompt:
        loaded = self._loaded
        name = request.preset or loaded.preset.name
        if name not in loaded.presets:
            raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(sorted(loaded.presets))}.")
        preset = loaded.presets[name]
        return prepare_segments(
            self._segments(request, preset.template), tokenizer=loaded.tokenizer, processing=preset.image,
            config=loaded.config, policy=loaded.policy, cache=self._pixels, owner=self._tenant_of(request),
        )  # fmt: skip

    def _segments(self, request: GenerateRequest, template: str) -> tuple[Segment, ...]:
        if request.prompt is not None:
            pictures = [part for image in request.images for part in (ImageSegment(image.source), TextSegment("\n"))]
            return (*pictures, TextSegment(request.prompt))
        messages = to_messages(request.messages)
        if not request.should_truncate:
            return render(messages, template)
        limit = self._loaded.config.max_context_tokens
        if request.max_context_tokens is not None:
            limit = min(limit, request.max_context_tokens)
        return render_fitting(messages, template, fits=lambda segments: self._has_fewer_tokens(segments, limit))

    def _has_fewer_tokens(self, segments: Sequence[Segment], limit: int) -> bool:
        """Whether a prompt has fewer tokens than a limit, without opening its pictures."""
        count = 1
        for segment in segments:
            if isinstance(segment, TextSegment):
                count += len(self._loaded.tokenizer.encode(segment.text))
            else:
                count += self.tokens_per_image if isinstance(segment, ImageSegment) else 1
            if count >= limit:
                return False
        return True

    def _form_masks(self) -> FormMasks:
        if self._masks is None:  # a second of work, which most servers never need
            self._masks = FormMasks(self._loaded.tokenizer)
        return self._masks

    def _attend(
        self, prompt: PreparedPrompt, answer_ids: list[int], *, tenant: str
    ) -> Generator[None, None, np.ndarray]:
        features = yield from self._paged.image_features(prompt, tenant=tenant)
        weights = yield from attention_by_layers(
            self._loaded.model, [*prompt.token_ids, *answer_ids], features, num_prompt_tokens=len(prompt.token_ids)
        )
        return weights.cpu().numpy()


def _rounded(weights: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 6) for value in row.tolist()) for row in weights)


def _count_blocks(model: Llava, settings: ServeSettings, available_bytes: int) -> int:
    """Blocks of the cache: as many as all parallel requests could ever use, if there is memory for them."""
    block_bytes = BlockPool.block_bytes(model.config.text_config, model.kv_dtype)
    per_request = -(-model.config.max_context_tokens // BLOCK_SIZE)
    budget = settings.cache_bytes
    if budget is None:
        budget = max(0, available_bytes - settings.picture_cache_bytes)
    # Twice what runs: the other half keeps what may be asked about again.
    return max(1, min(budget // block_bytes, 2 * settings.num_parallel * per_request))
