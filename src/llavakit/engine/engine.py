"""The engine: prepared prompts in, token events out.

One loop serves everything: prompts wait, a free row takes the next one and computes it (prefill), then all
rows take one step together (decode). A row is freed the moment its answer ends. A single prompt runs on a
cache row that survives the call, so a further turn of a conversation computes only its new words; a
picture's features are kept by content and never computed twice. Both are forgotten when the weights have changed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from llavakit.core.errors import NonFiniteError
from llavakit.core.types import SamplingParams, TokenEvent
from llavakit.engine.beam import BeamSearch, EarlyStopping
from llavakit.engine.generation import (
    EnginePrompt,
    Generation,
    StepObserver,
    make_generation,
    tensor_of_ends,
    vocabulary_ids,
)
from llavakit.engine.kv_cache import DecodeView, KVCache
from llavakit.engine.runner import ModelRunner, position_keys
from llavakit.engine.sampler import apply_penalties, forbid_ends
from llavakit.engine.text_stream import TextStream, TokenDecoder
from llavakit.model.llava import Llava
from llavakit.model.weights_state import find_non_finite, read_weights_state
from llavakit.scheduling.blocks import PositionKey

__all__ = ["Engine"]


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
        self._runner = ModelRunner(model)
        self._suppressed_ids = torch.tensor(suppressed_ids, device=self._device) if suppressed_ids else None
        self._max_batch_size = max_batch_size
        self._solo_cache: KVCache | None = None
        self._solo_keys: list[PositionKey] = []
        self._solo_is_busy = False
        self._weights_state = read_weights_state(model)

    def reset(self) -> None:
        """Forget cached conversations and pictures, and give their memory back."""
        self._runner.forget_pictures()
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
            make_generation(
                idx, prompt, settings, model=self.model, make_decoder=self._make_decoder,
                suppressed_ids=self._suppressed_ids, eos_token_ids=ends, on_step=on_step, early_stopping=early_stopping,
            )
            for idx, (prompt, settings) in enumerate(pairs)
        ]  # fmt: skip

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

        Raises
        ------
        NonFiniteError
            If the logits hold NaN or infinity; the damaged weight is named, where it is one.
        """
        try:
            yield from self._compute(generations, should_stop)
        except NonFiniteError as error:
            name = find_non_finite(self.model)
            if name is None:
                raise
            raise NonFiniteError(
                f"the tensor {name!r} holds NaN or infinity, and so does the model's output: no token can be chosen. "
                "The file is damaged or its training diverged: fetch it again."
            ) from error

    def _compute(
        self, generations: Sequence[Generation], should_stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        self._forget_what_other_weights_made()
        for generation in [g for g in generations if g.params.num_beams > 1]:
            yield from self._run_beams(generation, should_stop)
        plain = [g for g in generations if g.params.num_beams == 1]
        # A second answer that starts before the first is read to its end gets rows of its own.
        if len(plain) == 1 and not self._solo_is_busy:
            self._solo_is_busy = True
            try:
                yield from self._run_solo(plain[0], should_stop)
            finally:
                self._solo_is_busy = False
        elif plain:
            yield from self._run_batch(plain, should_stop)

    def _forget_what_other_weights_made(self) -> None:
        state = read_weights_state(self.model)
        if state != self._weights_state:
            self.reset()
            self._weights_state = state

    # One sequence, on a row that outlives the call.

    def _run_solo(self, generation: Generation, should_stop: Callable[[], bool] | None) -> Iterator[TokenEvent]:
        if should_stop is not None and should_stop():
            yield generation.cancel()
            return
        cache = self._solo_cache or self._runner.new_cache(num_rows=1, max_len=self.model.config.max_context_tokens)
        self._solo_cache = cache
        keys = position_keys(generation.prompt, self.model.config)
        num_cached = _common_prefix_len(self._solo_keys, keys[:-1])
        # Until the new keys are in place the row's old tail is worthless: an interrupted pass must not leave a lie.
        self._solo_keys = self._solo_keys[:num_cached]
        logits = self._runner.prefill(generation, cache, row=0, num_cached=num_cached)
        self._solo_keys = keys
        event = generation.advance(logits[0])
        yield event
        while event.finish_reason is None:
            if should_stop is not None and should_stop():
                yield generation.cancel()
                return
            logits = self._runner.decode([generation], cache)
            keys.append(generation.token_ids[-1])  # not to `self._solo_keys`: they may have been reset meanwhile
            event = generation.advance(logits[0])
            yield event

    # Several sequences, side by side.

    def _run_batch(
        self, generations: Sequence[Generation], should_stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        waiting = deque(generations)
        active: list[Generation] = []
        num_rows = min(len(generations), self._max_batch_size)
        longest = max(len(g.prompt.token_ids) + g.max_new_tokens for g in generations)
        cache = self._runner.new_cache(num_rows=num_rows, max_len=longest)
        while waiting or active:
            if should_stop is not None and should_stop():
                yield from (generation.cancel() for generation in [*active, *waiting])
                return
            if waiting and len(active) < num_rows:
                generation = waiting.popleft()
                logits = self._runner.prefill(generation, cache, row=len(active), num_cached=0)
                event = generation.advance(logits[0])
                if event.finish_reason is None:
                    active.append(generation)
                yield event
                continue
            logits = self._runner.decode(active, cache)
            events = [generation.advance(row) for generation, row in zip(active, logits, strict=True)]
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
        cache = self._runner.new_cache(num_rows=params.num_beams, max_len=prompt_len + generation.max_new_tokens)
        search = BeamSearch(
            num_beams=params.num_beams,
            length_penalty=params.length_penalty,
            max_new_tokens=generation.max_new_tokens,
            is_finished=lambda ids: self._ends(ids, generation),
            early_stopping=generation.early_stopping,
        )
        logits = self._runner.prefill(generation, cache, row=0, num_cached=0)
        started = time.perf_counter()
        prompt_ids = vocabulary_ids(generation.prompt, self.model)
        end_ids = tensor_of_ends(params, generation.eos_token_ids, self.model)
        while True:
            if should_stop is not None and should_stop():
                yield generation.cancel()
                return
            rows = search.step(self._beam_logprobs(logits, search, params, prompt_ids, end_ids))
            if rows is None:
                break
            length = prompt_len + len(search.running[0].token_ids) - 1
            cache.gather_rows(torch.tensor(rows, device=self._device), length)
            last_ids = torch.tensor([[beam.token_ids[-1]] for beam in search.running], device=self._device)
            logits = self._runner.decode_step(last_ids, DecodeView(cache, [length] * len(rows)))
        generation.timings.decode_s = time.perf_counter() - started
        generation.beams = search.candidates
        yield generation.finish_with(search.best.token_ids)

    def _beam_logprobs(
        self, logits: Tensor, search: BeamSearch, params: SamplingParams, prompt_ids: Tensor, end_ids: Tensor
    ) -> Tensor:
        logprobs = logits.log_softmax(-1)
        if self._suppressed_ids is not None:
            logprobs = logprobs.index_fill(1, self._suppressed_ids, -torch.inf)
        rows = []
        for row, beam in zip(logprobs, search.running, strict=True):
            row = apply_penalties(row, params, prompt_ids=prompt_ids, generated=beam.token_ids)
            rows.append(forbid_ends(row, params, end_ids=end_ids, num_generated=len(beam.token_ids)))
        return torch.stack(rows)

    def _ends(self, token_ids: tuple[int, ...], generation: Generation) -> bool:
        params = generation.params
        if token_ids[-1] in generation.eos_token_ids and not params.ignore_eos:
            return True
        if not params.stop:
            return False
        stream = TextStream(self._make_decoder(), params.stop)
        return any(stream.push(token_id)[1] for token_id in token_ids)


def _common_prefix_len(old: Sequence[PositionKey], new: Sequence[PositionKey]) -> int:
    length = 0
    for left, right in zip(old, new, strict=False):
        if left != right:
            break
        length += 1
    return length
