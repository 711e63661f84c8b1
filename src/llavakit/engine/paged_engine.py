"""The engine of the server: many requests at a time, over blocks of one cache.

A step asks the scheduler what to compute, computes it in one pass, chooses the next tokens, and says what happened. The
answers are those of `llavakit.engine.engine.Engine`, which computes each request alone on a row of its own, and of the
naive loop: whatever is chunked, shared, guessed, sent back or cancelled around a request, its tokens are the same.

One thread calls `step`; the others' calls are brought to it (`llavakit.engine.async_engine`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from llavakit.core.errors import CapacityError, LlavakitError
from llavakit.core.requests import EngineStats
from llavakit.core.types import GenerationResult, SamplingParams, TokenEvent
from llavakit.engine.disk_store import DiskStore
from llavakit.engine.drafting import Drafter
from llavakit.engine.generation import EnginePrompt, Generation, make_generation
from llavakit.engine.paged_cache import BLOCK_SIZE, BlockPool, PackedPass, Piece
from llavakit.engine.picture_blocks import PictureBlocks
from llavakit.engine.picture_encoder import PictureEncoder, PictureKey
from llavakit.engine.runner import position_keys
from llavakit.engine.sampler import TokenMask, choose_greedily
from llavakit.engine.text_stream import TokenDecoder
from llavakit.model.llava import Llava
from llavakit.scheduling.blocks import BlockManager, root_digest
from llavakit.scheduling.scheduler import Budget, Chunk, Scheduler, Step
from llavakit.scheduling.sequence import ImageSpan
from llavakit.scheduling.sequence import Sequence as ScheduledSequence

__all__ = ["EngineEvent", "PagedEngine", "explain_failure"]

_LOG = logging.getLogger(__name__)
_PICTURE_BYTES = 256 * 1024**2


@dataclass(frozen=True, kw_only=True)
class EngineEvent:
    """What happened to a request: a token, or its failure. With the last of them comes its ``result``, or ``error``."""

    request_id: int
    event: TokenEvent | None = None
    error: LlavakitError | None = None
    result: GenerationResult | None = None


@dataclass(eq=False)
class _Request:
    generation: Generation
    sequence: ScheduledSequence
    drafter: Drafter
    added_s: float
    features: dict[str, Tensor] = field(default_factory=dict)
    has_started: bool = False


class PagedEngine:
    """Runs one model for many.

    Parameters
    ----------
    model : Llava
        In evaluation mode.
    make_decoder : callable
        Returns a fresh incremental detokenizer.
    num_blocks : int
        Blocks of the cache, `BLOCK_SIZE` positions each.
    suppressed_ids : sequence of int
        Tokens never chosen.
    budget : Budget, optional
    max_draft_tokens : int
        Longest guess of what follows; 0 for none.
    max_decode_rows : int
        Tokens of running answers in one pass, guesses included, up to which a guess costs next to nothing.
    max_picture_bytes : int
        Of pictures' features in memory.
    fingerprint : str
        Of the model's files; what is kept on the disk is kept under it.
    disk : DiskStore, optional
    """

    def __init__(
        self,
        model: Llava,
        *,
        make_decoder: Callable[[], TokenDecoder],
        num_blocks: int,
        suppressed_ids: Sequence[int] = (),
        budget: Budget | None = None,
        max_draft_tokens: int = 3,
        max_decode_rows: int = 4,
        max_picture_bytes: int = _PICTURE_BYTES,
        fingerprint: str = "",
        disk: DiskStore | None = None,
    ) -> None:
        self.model = model
        self._device = model.device
        self._make_decoder = make_decoder
        self._suppressed_ids = torch.tensor(suppressed_ids, device=self._device) if suppressed_ids else None
        self._max_draft_tokens = max_draft_tokens
        self._max_decode_rows = max_decode_rows
        self._fingerprint = f"{fingerprint}|{model.dtype}|{model.kv_dtype}|{BLOCK_SIZE}"
        self._disk = disk
        self._pool = BlockPool(
            model.config.text_config, num_blocks=num_blocks, dtype=model.kv_dtype, device=self._device
        )
        self._scheduler = Scheduler(BlockManager(num_blocks), BLOCK_SIZE, budget or Budget())
        self._picture_blocks = PictureBlocks(self._pool, self._scheduler, disk)
        self._pictures = PictureEncoder(model, max_bytes=max_picture_bytes, disk=disk, fingerprint=fingerprint)
        self._requests: dict[int, _Request] = {}
        self._num_added = 0
        # Of the step that is being computed: one that breaks off leaves behind what came of it so far.
        self._events: list[EngineEvent] = []
        self._counts = {
            "num_prompt_tokens": 0, "num_cached_tokens": 0, "num_generated_tokens": 0, "num_preemptions": 0,
            "num_drafted_tokens": 0, "num_accepted_tokens": 0, "num_steps": 0,
        }  # fmt: skip

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._requests)

    @torch.inference_mode()
    def add(
        self,
        prompt: EnginePrompt,
        params: SamplingParams,
        *,
        tenant: str = "",
        mask: TokenMask | None = None,
        max_context_tokens: int | None = None,
    ) -> int:
        """Queue a request and return its number.

        Parameters
        ----------
        prompt : EnginePrompt
        params : SamplingParams
        tenant : str
            Requests of other tenants do not find what was computed for this one.
        mask : TokenMask, optional
            The form the answer must have.
        max_context_tokens : int, optional
            Prompt and answer together, if less than the model's context.

        Raises
        ------
        ContextOverflowError
            If the prompt leaves no room for an answer.
        CapacityError
            If it cannot fit into the cache, however long it waits.
        """
        request_id = self._num_added
        generation = make_generation(
            request_id, prompt, params, model=self.model, make_decoder=self._make_decoder,
            suppressed_ids=self._suppressed_ids, eos_token_ids=frozenset((self.model.config.eos_token_id,)),
            max_context_tokens=max_context_tokens, mask=mask,
        )  # fmt: skip
        max_len = len(prompt.token_ids) + generation.max_new_tokens
        if not self._scheduler.can_ever_fit(max_len):
            raise CapacityError(
                f"prompt and answer together need {max_len} positions of the key-value cache, which has "
                f"{self._pool.num_blocks * BLOCK_SIZE} here. Ask for a shorter answer, send less, or give the server "
                "more memory."
            )
        self._num_added += 1
        keys = position_keys(prompt, self.model.config)
        sequence = ScheduledSequence(
            request_id, list(keys), root_digest(self._fingerprint, tenant), self._spans(prompt),
            max_len=max_len, tenant=tenant,
        )  # fmt: skip
        request = _Request(generation, sequence, Drafter(self._max_draft_tokens), time.perf_counter())
        self._picture_blocks.restore(sequence)
        # Last: a request that could not be prepared was never here.
        self._scheduler.add(sequence)
        self._requests[request_id] = request
        self._counts["num_prompt_tokens"] += len(keys)
        return request_id

    @property
    def has_chores(self) -> bool:
        """Whether there is something to do that nobody waits for."""
        return self._picture_blocks.has_unsaved

    def do_chore(self) -> None:
        """Put one block of a picture on the disk."""
        self._picture_blocks.save_one()

    def cancel(self, request_id: int) -> list[EngineEvent]:
        """End a request; nothing of it is left afterwards. Unknown numbers are ignored."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        try:
            return [self._end(request, request.generation.cancel())]
        except Exception as error:
            return [self._fail(request, explain_failure(error))]

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Compute what the scheduler decides, and return what came of it."""
        step = self._scheduler.schedule(on_start=self._find_features)
        self._counts["num_steps"] += 1
        self._counts["num_preemptions"] += len(step.preempted)
        for sequence in step.preempted:
            self._forget_features(sequence)
        for copy in step.copies:
            self._pool.copy(copy.source, copy.target, copy.length)
        if step.image is not None:
            self._encode(*step.image, slice_s=step.image_s)
        if step.chunks:
            self._compute(step)
        return self._take_events()

    @torch.inference_mode()
    def image_features(self, prompt: EnginePrompt, *, tenant: str = "") -> Generator[None, None, Tensor]:
        """Yield between layers, and return the features (M, D) of all pictures of a prompt.

        Those that its tenant has at hand are not computed.
        """
        pixels = prompt.pixel_values
        if pixels is None:
            raise AssertionError("a prompt without pictures has no features")
        rows = []
        for idx, digest in enumerate(prompt.image_keys):
            key = PictureKey(tenant, digest)
            features = self._pictures.find(key)
            if features is None:
                features = yield from self._pictures.by_layers(key, pixels[idx])
            rows.append(features)
        return torch.cat(rows)

    def fail_all(self, error: LlavakitError) -> list[EngineEvent]:
        """End every request with an error; return that, and what came of the step that broke off."""
        for request in list(self._requests.values()):
            self._events.append(self._fail(request, error))
        return self._take_events()

    def stats(self) -> EngineStats:
        """Say what the engine is doing."""
        blocks = self._scheduler.blocks
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=blocks.num_blocks,
            num_blocks_in_use=blocks.num_blocks - blocks.num_free,
            num_blocks_cached=blocks.num_kept,
            num_images_encoded=self._pictures.num_encoded,
            num_image_hits=self._pictures.num_hits,
            num_image_cache_bytes=self._pictures.num_bytes,
            max_image_cache_bytes=self._pictures.max_bytes,
            num_kv_cache_bytes=blocks.num_written * self._pool.num_block_bytes,
            max_kv_cache_bytes=blocks.num_blocks * self._pool.num_block_bytes,
            num_disk_cache_bytes=self._disk.num_bytes if self._disk else 0,
            max_disk_cache_bytes=self._disk.max_bytes if self._disk else 0,
            **self._counts,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a block, a request or a picture is not accounted for."""
        self._scheduler.check_integrity()
        known = {id(s) for s in [*self._scheduler.running, *self._scheduler.waiting]}
        if known != {id(request.sequence) for request in self._requests.values()}:
            raise AssertionError("requests and sequences differ")
        for request in self._requests.values():
            if not request.features.keys() == request.sequence.ready_images <= request.sequence.needed_images:
                raise AssertionError("a request holds features that it does not need, or does not say which it has")

    # Pictures.

    def _spans(self, prompt: EnginePrompt) -> tuple[ImageSpan, ...]:
        length = self.model.config.num_image_tokens
        image_token_id = self.model.config.image_token_id
        starts, position = [], 0
        while position < len(prompt.token_ids):
            if prompt.token_ids[position] == image_token_id:
                starts.append(position)
                position += length
            else:
                position += 1
        return tuple(ImageSpan(key, start, length) for key, start in zip(prompt.image_keys, starts, strict=True))

    def _find_features(self, sequence: ScheduledSequence) -> None:
        """Take the features that are at hand of the pictures that the cache does not cover."""
        for digest in sequence.needed_images:
            self._take_features(self._requests[sequence.sequence_id], digest)

    def _forget_features(self, sequence: ScheduledSequence) -> None:
        """Let go of features that are computed with, or have to wait: beside the bounded cache nobody may keep them."""
        features = self._requests[sequence.sequence_id].features
        for digest in features.keys() - sequence.needed_images:
            del features[digest]
            sequence.ready_images.remove(digest)

    def _take_features(self, request: _Request, digest: str) -> bool:
        features = self._pictures.find(PictureKey(request.sequence.tenant, digest))
        if features is None:
            return False
        request.features[digest] = features
        request.sequence.ready_images.add(digest)
        return True

    def _encode(self, sequence: ScheduledSequence, image: ImageSpan, *, slice_s: float | None) -> None:
        request = self._requests[sequence.sequence_id]
        if self._take_features(request, image.digest):  # somebody else's, a moment ago
            return
        started = time.perf_counter()
        idx = request.generation.prompt.image_keys.index(image.digest)
        pixels = request.generation.prompt.pixel_values
        if pixels is None:
            raise AssertionError("a prompt with a picture has no pixels")
        features = self._pictures.advance(PictureKey(sequence.tenant, image.digest), pixels[idx], slice_s=slice_s)
        request.generation.timings.image_encode_s += time.perf_counter() - started
        if features is None:
            return
        request.generation.timings.num_images_encoded += 1
        request.features[image.digest] = features
        sequence.ready_images.add(image.digest)

    # One pass.

    def _take_events(self) -> list[EngineEvent]:
        events, self._events = self._events, []
        return events

    def _compute(self, step: Step) -> None:
        started = time.perf_counter()
        chunks = sorted(step.chunks, key=lambda chunk: chunk.length)
        for chunk in chunks:
            self._note_start(chunk, started)
        pieces = [Piece(chunk.sequence.blocks, chunk.start, chunk.length) for chunk in chunks]
        packed = PackedPass(self._pool, pieces)
        hidden = self.model.language_model(self._embed(chunks), packed.positions, cache=packed)[0]
        rows: list[int] = []
        first = 0
        for chunk in chunks:
            first += chunk.length
            if chunk.has_logits:
                rows += range(first - 1 - chunk.num_draft, first)
        if len(rows) < len(hidden):
            hidden = hidden[torch.tensor(rows, dtype=torch.int64, device=self._device)]
        logits = self.model.lm_head(hidden[None])[0].float() if rows else hidden.new_empty((0, 1))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elapsed_s = time.perf_counter() - started
        self._scheduler.learn(step, seconds=elapsed_s)
        greedy_ids = choose_greedily(logits, self._suppressed_ids) if rows else []
        at = 0
        for chunk in chunks:
            request = self._requests[chunk.sequence.sequence_id]
            timings = request.generation.timings
            if request.generation.token_ids:
                timings.decode_s += elapsed_s
            else:
                timings.prefill_s += elapsed_s
            self._note_computed(chunk.sequence, chunk.length - chunk.num_draft)
            if chunk.has_logits:
                mine = slice(at, at + 1 + chunk.num_draft)
                at += 1 + chunk.num_draft
                try:
                    self._choose(request, logits[mine], greedy_ids[mine], chunk.sequence.draft[: chunk.num_draft])
                except Exception as error:  # of this request alone: its neighbours go on
                    self._events.append(self._fail(request, explain_failure(error)))
        self._guess()

    def _embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """Embeddings (1, T, D) of the chunks' tokens, pictures' features in their places."""
        ids: list[int] = []
        rows: list[Tensor] = []
        image_token_id = self.model.config.image_token_id
        for chunk in chunks:
            request, sequence = self._requests[chunk.sequence.sequence_id], chunk.sequence
            keys = sequence.keys[chunk.start : chunk.start + chunk.length - chunk.num_draft]
            for digest, run in groupby(keys, key=lambda key: None if isinstance(key, int) else key[0]):
                part = list(run)
                if digest is None:
                    ids += [key for key in part if isinstance(key, int)]
                    continue
                offsets = [key[1] for key in part if not isinstance(key, int)]
                ids += [image_token_id] * len(offsets)
                rows += _slices(request.features[digest], offsets)
            ids += sequence.draft[: chunk.num_draft]
        features = torch.cat(rows) if rows else None
        return self.model.embed(torch.tensor([ids], device=self._device), features)

    def _choose(
        self, request: _Request, logits: Tensor, greedy_ids: Sequence[int | None], draft: tuple[int, ...]
    ) -> None:
        """Choose tokens from logits (1 + len(draft), V), as long as the guess agrees with what is chosen."""
        sequence = request.sequence
        num_right = 0
        for idx, (row, greedy_id) in enumerate(zip(logits, greedy_ids, strict=True)):
            event = request.generation.advance(row, greedy_id=greedy_id)
            self._counts["num_generated_tokens"] += 1
            if event.finish_reason is not None:
                self._events.append(self._end(request, event))
                return
            self._events.append(EngineEvent(request_id=sequence.sequence_id, event=event))
            token_id = request.generation.token_ids[-1]
            self._scheduler.append(sequence, token_id)
            if idx == len(draft) or token_id != draft[idx]:
                break
            num_right += 1
            self._note_computed(sequence, 1)
        if draft:
            self._counts["num_drafted_tokens"] += len(draft)
            self._counts["num_accepted_tokens"] += num_right
            request.drafter.learn(num_guessed=len(draft), num_right=num_right)

    def _guess(self) -> None:
        """Guess what follows each running answer, while a pass over so many tokens costs little more than over one."""
        answering = [s for s in self._scheduler.running if s.is_decoding]
        room = self._max_decode_rows - len(answering)
        for sequence in answering:
            drafter = self._requests[sequence.sequence_id].drafter
            sequence.draft = drafter.guess(sequence.keys, max_tokens=room)
            room -= len(sequence.draft)

    # Bookkeeping.

    def _note_start(self, chunk: Chunk, now_s: float) -> None:
        request = self._requests[chunk.sequence.sequence_id]
        if request.has_started:
            return
        request.has_started = True
        timings = request.generation.timings
        timings.queue_s = now_s - request.added_s - timings.image_encode_s
        timings.num_cached_tokens = chunk.sequence.num_cached or 0
        self._counts["num_cached_tokens"] += timings.num_cached_tokens

    def _note_computed(self, sequence: ScheduledSequence, num_positions: int) -> None:
        """Count positions as computed, and note the blocks of pictures that are to be put on the disk.

        Features of pictures that are computed with are let go of.
        """
        full = self._scheduler.computed(sequence, num_positions)
        self._forget_features(sequence)
        self._picture_blocks.note(sequence, full)

    def _end(self, request: _Request, event: TokenEvent) -> EngineEvent:
        end = EngineEvent(request_id=request.sequence.sequence_id, event=event, result=request.generation.result)
        self._drop(request)
        return end

    def _fail(self, request: _Request, error: LlavakitError) -> EngineEvent:
        self._drop(request)
        return EngineEvent(request_id=request.sequence.sequence_id, error=error)

    def _drop(self, request: _Request) -> None:
        self._requests.pop(request.sequence.sequence_id, None)
        self._scheduler.finish(request.sequence)


def explain_failure(error: Exception) -> LlavakitError:
    """Return what a client is told of an exception; one that nobody foresaw goes to the log."""
    if isinstance(error, LlavakitError):
        return error
    _LOG.error("a step failed", exc_info=error)
    return CapacityError("the engine failed in the middle of a step; nothing was lost but this answer.")


def _slices(features: Tensor, offsets: Iterable[int]) -> list[Tensor]:
    """Rows of features (num_image_tokens, D); offsets count up by one, but for two equal pictures in a row."""
    slices = []
    for _, run in groupby(enumerate(offsets), key=lambda pair: pair[1] - pair[0]):
        part = [offset for _, offset in run]
        slices.append(features[part[0] : part[-1] + 1])
    return slices
