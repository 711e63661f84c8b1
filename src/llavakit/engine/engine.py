"""The engine: prepared prompts in, token events out.

One loop serves everything: prompts wait, a free row takes the next one and computes it (prefill), then all
rows take one step together (decode). A row is freed the moment its answer ends. A single prompt runs on a
cache row that survives the call, so a further turn of a conversation computes only its new words; a
picture's features are kept by content and never computed twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llavakit.core.errors import ContextOverflowError
from llavakit.core.types import FinishReason, GenerationResult, SamplingParams, Timings, TokenEvent, TokenLogprob
from llavakit.engine.beam import Beam, BeamSearch, EarlyStopping
from llavakit.engine.feature_cache import FeatureCache
from llavakit.engine.kv_cache import DecodeView, KVCache, PrefillView
from llavakit.engine.sampler import Sampler, apply_penalties
from llavakit.engine.text_stream import TextStream, TokenDecoder
from llavakit.model.llava import Llava

__all__ = ["Engine", "EnginePrompt", "Generation"]

_FEATURE_CACHE_BYTES = 256 * 1024**2
# A prompt position's identity: a token id, or a picture's digest with the offset inside the picture.
PositionKey = int | tuple[str, int]
# Called before each choice with the request's number, the logits (V,) and the scores (V,) chosen from.
StepObserver = Callable[[int, Tensor, Tensor], None]


class EnginePrompt(Protocol):
    """What the engine needs of a prepared prompt (``processing.prompt.PreparedPrompt``)."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids, each picture as ``num_image_tokens`` image tokens."""

    @property
    def pixel_values(self) -> np.ndarray | None:
        """Normalised pixels (n, 3, S, S), float32."""

    @property
    def image_keys(self) -> tuple[str, ...]:
        """One content digest per picture."""

    @property
    def image_decode_s(self) -> float:
        """Time spent opening the pictures."""

    @property
    def image_resize_s(self) -> float:
        """Time spent preprocessing them."""


@dataclass(eq=False)
class Generation:
    """One request inside the engine: its prompt, its state, and after the end its result."""

    request_idx: int
    prompt: EnginePrompt
    params: SamplingParams
    sampler: Sampler
    stream: TextStream
    max_new_tokens: int
    timings: Timings
    eos_token_ids: frozenset[int]
    on_step: StepObserver | None = None
    early_stopping: EarlyStopping = False
    beams: tuple[Beam, ...] = ()  # after a beam search: all finished answers, best first
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_cache_slots(self) -> int:
        """Slots of the cache in use: the last token is computed in the next step."""
        return len(self.prompt.token_ids) + len(self.token_ids) - 1

    @property
    def result(self) -> GenerationResult:
        """The finished answer."""
        if self.finish_reason is None:
            raise RuntimeError("the answer is not finished yet")
        return GenerationResult(
            text=self.stream.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs) if self.params.num_top_logprobs is not None else None,
            timings=self.timings,
        )


class Engine:
    """Runs one model.

    Parameters
    ----------
    model : Llava
        In evaluation mode.
    make_decoder : callable
        Returns a fresh incremental detokenizer.
    suppressed_ids : sequence of int
        Tokens never chosen (the image token, padding rows of the vocabulary).
    max_batch_size : int
        Answers decoded side by side; further prompts wait.

    Notes
    -----
    Not safe for two threads at once: one engine, one caller.
    """

    def __init__(
        self,
        model: Llava,
        *,
        make_decoder: Callable[[], TokenDecoder],
        suppressed_ids: Sequence[int] = (),
        max_batch_size: int = 8,
    ) -> None:
        self.model = model
        self._make_decoder = make_decoder
        self._device = model.device
        self._suppressed_ids = torch.tensor(suppressed_ids, device=self._device) if suppressed_ids else None
        self._max_batch_size = max_batch_size
        self._features = FeatureCache(max_bytes=_FEATURE_CACHE_BYTES)
        self._solo_cache: KVCache | None = None
        self._solo_keys: list[PositionKey] = []

    def reset(self) -> None:
        """Forget cached conversations and pictures, and give their memory back."""
        self._features.clear()
        self._solo_cache = None
        self._solo_keys = []

    def submit(
        self,
        prompts: Sequence[EnginePrompt],
        params: Sequence[SamplingParams],
        *,
        eos_token_ids: Collection[int] | None = None,
        on_step: StepObserver | None = None,
        early_stopping: EarlyStopping = False,
    ) -> list[Generation]:
        """Check prompts against the context and make them ready to run.

        Parameters
        ----------
        prompts : sequence of EnginePrompt
        params : sequence of SamplingParams
            One per prompt.
        eos_token_ids : collection of int, optional
            Tokens that end an answer; by default the model's one.
        on_step : callable, optional
            Called before each choice with the request's number, its float32 logits (V,) and the scores (V,)
            that the token is chosen from. Not called in beam search.
        early_stopping : bool or "never", default False
            When a beam search ends; see `BeamSearch`.

        Raises
        ------
        ContextOverflowError
            If a prompt leaves no room for an answer; nothing has been computed then.
        """
        ends = frozenset((self.model.config.eos_token_id,) if eos_token_ids is None else eos_token_ids)
        pairs = zip(prompts, params, strict=True)
        return [
            self._admit(idx, *pair, eos_token_ids=ends, on_step=on_step, early_stopping=early_stopping)
            for idx, pair in enumerate(pairs)
        ]

    @torch.inference_mode()
    def run(
        self, generations: Sequence[Generation], *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[TokenEvent]:
        """Compute answers.

        Parameters
        ----------
        generations : sequence of Generation
            From `submit`; each is run once.
        should_stop : callable, optional
            Asked before every step; once true, every unfinished request ends as cancelled.

        Yields
        ------
        TokenEvent
            For each request one event per token, the last of them with a finish reason.
        """
        for generation in [g for g in generations if g.params.num_beams > 1]:
            yield from self._run_beams(generation, should_stop)
        plain = [g for g in generations if g.params.num_beams == 1]
        if len(plain) == 1:
            yield from self._run_solo(plain[0], should_stop)
        elif plain:
            yield from self._run_batch(plain, should_stop)

    def _admit(
        self,
        request_idx: int,
        prompt: EnginePrompt,
        params: SamplingParams,
        *,
        eos_token_ids: frozenset[int],
        on_step: StepObserver | None,
        early_stopping: EarlyStopping,
    ) -> Generation:
        context = self.model.config.max_context_tokens
        num_prompt_tokens = len(prompt.token_ids)
        room = context - num_prompt_tokens
        if room < 1:
            raise ContextOverflowError(
                f"the prompt has {num_prompt_tokens} tokens ({len(prompt.image_keys)} pictures of "
                f"{self.model.config.num_image_tokens} each included), but the model's context is {context}, which "
                "must also hold the answer. Shorten the prompt, drop pictures or clear the conversation."
            )
        return Generation(
            request_idx=request_idx,
            prompt=prompt,
            params=params,
            sampler=Sampler(params, self._vocabulary_ids(prompt), suppressed_ids=self._suppressed_ids),
            stream=TextStream(self._make_decoder(), params.stop),
            max_new_tokens=min(params.max_new_tokens, room),
            timings=Timings(
                image_decode_s=prompt.image_decode_s,
                image_resize_s=prompt.image_resize_s,
                num_images=len(prompt.image_keys),
                num_prompt_tokens=num_prompt_tokens,
            ),
            eos_token_ids=eos_token_ids,
            on_step=on_step,
            early_stopping=early_stopping,
        )

    def _vocabulary_ids(self, prompt: EnginePrompt) -> Tensor:
        """Ids of the prompt that have a logit: the image token of original checkpoints has none."""
        vocab_size = self.model.config.text_config.vocab_size
        return torch.tensor([i for i in prompt.token_ids if i < vocab_size], dtype=torch.int64, device=self._device)

    # One sequence, on a row that outlives the call.

    def _run_solo(self, generation: Generation, should_stop: Callable[[], bool] | None) -> Iterator[TokenEvent]:
        if should_stop is not None and should_stop():
            yield self._cancel(generation)
            return
        cache = self._solo_cache or self._new_cache(num_rows=1, max_len=self.model.config.max_context_tokens)
        self._solo_cache = cache
        keys = self._position_keys(generation.prompt)
        num_cached = _common_prefix_len(self._solo_keys, keys[:-1])
        # Until the new keys are in place the row's old tail is worthless: an interrupted pass must not leave a lie.
        self._solo_keys = self._solo_keys[:num_cached]
        logits = self._prefill(generation, cache, row=0, num_cached=num_cached)
        self._solo_keys = keys
        event = self._advance(generation, logits[0])
        yield event
        while event.finish_reason is None:
            if should_stop is not None and should_stop():
                yield self._cancel(generation)
                return
            logits = self._decode([generation], cache)
            self._solo_keys.append(generation.token_ids[-1])
            event = self._advance(generation, logits[0])
            yield event

    # Several sequences, side by side.

    def _run_batch(
        self, generations: Sequence[Generation], should_stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        waiting = deque(generations)
        active: list[Generation] = []
        num_rows = min(len(generations), self._max_batch_size)
        longest = max(len(g.prompt.token_ids) + g.max_new_tokens for g in generations)
        cache = self._new_cache(num_rows=num_rows, max_len=longest)
        while waiting or active:
            if should_stop is not None and should_stop():
                yield from (self._cancel(generation) for generation in [*active, *waiting])
                return
            if waiting and len(active) < num_rows:
                generation = waiting.popleft()
                logits = self._prefill(generation, cache, row=len(active), num_cached=0)
                event = self._advance(generation, logits[0])
                if event.finish_reason is None:
                    active.append(generation)
                yield event
                continue
            logits = self._decode(active, cache)
            events = [self._advance(generation, row) for generation, row in zip(active, logits, strict=True)]
            self._drop_finished(active, cache)
            yield from events

    def _drop_finished(self, active: list[Generation], cache: KVCache) -> None:
        """Keep the active rows at the front: a finished row is overwritten by the last one."""
        row = 0
        while row < len(active):
            if active[row].finish_reason is None:
                row += 1
                continue
            last = active.pop()
            if row < len(active):
                active[row] = last
                cache.copy_row(len(active), row, last.num_cache_slots)

    # Beam search: the beams of one prompt are the rows.

    def _run_beams(self, generation: Generation, should_stop: Callable[[], bool] | None) -> Iterator[TokenEvent]:
        params = generation.params
        prompt_len = len(generation.prompt.token_ids)
        cache = self._new_cache(num_rows=params.num_beams, max_len=prompt_len + generation.max_new_tokens)
        search = BeamSearch(
            num_beams=params.num_beams,
            length_penalty=params.length_penalty,
            max_new_tokens=generation.max_new_tokens,
            is_finished=lambda ids: self._ends(ids, generation),
            early_stopping=generation.early_stopping,
        )
        logits = self._prefill(generation, cache, row=0, num_cached=0)
        started = time.perf_counter()
        prompt_ids = self._vocabulary_ids(generation.prompt)
        while True:
            if should_stop is not None and should_stop():
                yield self._cancel(generation)
                return
            rows = search.step(self._beam_logprobs(logits, search, params, prompt_ids))
            if rows is None:
                break
            length = prompt_len + len(search.running[0].token_ids) - 1
            cache.gather_rows(torch.tensor(rows, device=self._device), length)
            last_ids = torch.tensor([[beam.token_ids[-1]] for beam in search.running], device=self._device)
            logits = self._decode_step(last_ids, DecodeView(cache, [length] * len(rows)))
        generation.timings.decode_s = time.perf_counter() - started
        generation.beams = search.candidates
        yield self._finish_beams(generation, search.best.token_ids)

    def _beam_logprobs(self, logits: Tensor, search: BeamSearch, params: SamplingParams, prompt_ids: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        if self._suppressed_ids is not None:
            logprobs = logprobs.index_fill(1, self._suppressed_ids, -torch.inf)
        pairs = zip(logprobs, search.running, strict=True)
        return torch.stack(
            [apply_penalties(row, params, prompt_ids=prompt_ids, generated=beam.token_ids) for row, beam in pairs]
        )

    def _ends(self, token_ids: tuple[int, ...], generation: Generation) -> bool:
        params = generation.params
        if token_ids[-1] in generation.eos_token_ids and not params.ignore_eos:
            return True
        if not params.stop:
            return False
        stream = TextStream(self._make_decoder(), params.stop)
        return any(stream.push(token_id)[1] for token_id in token_ids)

    def _finish_beams(self, generation: Generation, token_ids: tuple[int, ...]) -> TokenEvent:
        text = ""
        for token_id in token_ids:
            text += self._append(generation, token_id)
        if generation.finish_reason is None:
            generation.finish_reason = FinishReason.LENGTH
            text += generation.stream.finish()
        generation.timings.num_generated_tokens = len(token_ids)
        return TokenEvent(
            request_idx=generation.request_idx,
            text=text,
            token_id=token_ids[-1],
            finish_reason=generation.finish_reason,
        )

    # Steps of the model.

    def _new_cache(self, *, num_rows: int, max_len: int) -> KVCache:
        config = self.model.config.text_config
        return KVCache(config, num_rows=num_rows, max_len=max_len, dtype=self.model.dtype, device=self._device)

    def _prefill(self, generation: Generation, cache: KVCache, *, row: int, num_cached: int) -> Tensor:
        """Compute the prompt from position ``num_cached`` on; return float32 logits (1, V) of its last token."""
        features = self._image_features(generation, num_cached)
        started = time.perf_counter()
        ids = torch.tensor([generation.prompt.token_ids[num_cached:]], device=self._device)
        embeds = self.model.embed(ids, features)
        positions = torch.arange(num_cached, num_cached + ids.shape[1], device=self._device)[None]
        view = PrefillView(cache, row=row, start=num_cached)
        logits = self.model(embeds, positions, cache=view, mask=view.mask(ids.shape[1]), last_only=True)[:, -1].float()
        self._wait()
        generation.timings.prefill_s = time.perf_counter() - started
        generation.timings.num_cached_tokens = num_cached
        return logits  # type: ignore[no-any-return]

    def _decode(self, active: Sequence[Generation], cache: KVCache) -> Tensor:
        """Compute one token of every active row; return float32 logits (n, V)."""
        started = time.perf_counter()
        last_ids = torch.tensor([[generation.token_ids[-1]] for generation in active], device=self._device)
        logits = self._decode_step(last_ids, DecodeView(cache, [g.num_cache_slots for g in active]))
        elapsed = time.perf_counter() - started
        for generation in active:
            generation.timings.decode_s += elapsed
        return logits

    def _decode_step(self, last_ids: Tensor, view: DecodeView) -> Tensor:
        embeds = self.model.language_model.embed_tokens(last_ids)
        logits = self.model(embeds, view.positions, cache=view, mask=view.mask())[:, -1].float()
        self._wait()
        return logits  # type: ignore[no-any-return]

    def _wait(self) -> None:
        """Let asynchronous devices finish, so that timings are true."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _image_features(self, generation: Generation, num_cached: int) -> Tensor | None:
        """Features of the image positions from ``num_cached`` on, as rows (M, D)."""
        prompt = generation.prompt
        image_token_id = self.model.config.image_token_id
        num_cached_rows = sum(token_id == image_token_id for token_id in prompt.token_ids[:num_cached])
        num_rows = self.model.config.num_image_tokens
        if prompt.pixel_values is None or num_cached_rows == len(prompt.image_keys) * num_rows:
            return None
        started = time.perf_counter()
        first = num_cached_rows // num_rows
        rows = torch.cat([self._encode(generation, idx) for idx in range(first, len(prompt.image_keys))])
        self._wait()
        generation.timings.image_encode_s = time.perf_counter() - started
        return rows[num_cached_rows - first * num_rows :]

    def _encode(self, generation: Generation, image_idx: int) -> Tensor:
        """Features (num_image_tokens, D) of one picture, from the cache if it was seen before."""
        key = generation.prompt.image_keys[image_idx]
        features = self._features.get(key)
        if features is None:
            pixels = generation.prompt.pixel_values
            assert pixels is not None  # noqa: S101 - the caller has looked
            # One picture at a time: at 577 tokens a batch gains nothing on a CPU, and the result is that of a solo run.
            batch = torch.from_numpy(pixels[image_idx : image_idx + 1]).to(self._device)
            features = self.model.encode_images(batch)[0]
            self._features.put(key, features)
            generation.timings.num_images_encoded += 1
        return features

    def _position_keys(self, prompt: EnginePrompt) -> list[PositionKey]:
        num_rows = self.model.config.num_image_tokens
        keys: list[PositionKey] = []
        num_seen = 0
        for token_id in prompt.token_ids:
            if token_id == self.model.config.image_token_id:
                image_idx, offset = divmod(num_seen, num_rows)
                keys.append((prompt.image_keys[image_idx], offset))
                num_seen += 1
            else:
                keys.append(token_id)
        return keys

    # State of one answer.

    def _advance(self, generation: Generation, logits: Tensor) -> TokenEvent:
        """Choose the next token from float32 logits (V,) and update the answer."""
        if generation.on_step is not None:
            generation.on_step(generation.request_idx, logits, generation.sampler.process(logits))
        token_id, logprob = generation.sampler.choose(logits)
        if logprob is not None:
            generation.logprobs.append(logprob)
        text = self._append(generation, token_id)
        generation.timings.num_generated_tokens = len(generation.token_ids)
        if generation.finish_reason is None and len(generation.token_ids) >= generation.max_new_tokens:
            generation.finish_reason = FinishReason.LENGTH
            text += generation.stream.finish()
        return TokenEvent(
            request_idx=generation.request_idx,
            text=text,
            token_id=token_id,
            logprob=logprob,
            finish_reason=generation.finish_reason,
        )

    def _append(self, generation: Generation, token_id: int) -> str:
        generation.token_ids.append(token_id)
        if token_id in generation.eos_token_ids and not generation.params.ignore_eos:
            generation.finish_reason = FinishReason.STOP
            return generation.stream.finish()
        text, is_stopped = generation.stream.push(token_id)
        if is_stopped:
            generation.finish_reason = FinishReason.STOP
        return text

    def _cancel(self, generation: Generation) -> TokenEvent:
        generation.finish_reason = FinishReason.CANCELLED
        text = generation.stream.finish()
        return TokenEvent(
            request_idx=generation.request_idx, text=text, token_id=None, finish_reason=FinishReason.CANCELLED
        )


def _common_prefix_len(old: Sequence[PositionKey], new: Sequence[PositionKey]) -> int:
    length = 0
    for left, right in zip(old, new, strict=False):
        if left != right:
            break
        length += 1
    return length
