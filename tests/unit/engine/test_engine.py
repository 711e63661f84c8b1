"""The engine's specification: whatever it does to be fast, the answer is that of the naive loop.

Tolerance of logits: the same float32 operations in another order. A sum of n terms differs by at most
n * 2**-24 relative to the sum of magnitudes; with inner dimensions up to 48, two layers and a few additions the
bound is about 1e-5 of the largest logit, and 5e-5 is asserted (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from llavakit.core.errors import ContextOverflowError, NonFiniteError
from llavakit.core.types import FinishReason, SamplingParams, TokenEvent
from llavakit.engine.engine import Engine
from llavakit.engine.generation import Generation
from llavakit.engine.kv_cache import KVCache, PrefillView
from llavakit.engine.naive import decode_greedily
from llavakit.model.llava import Llava
from llavakit.model.stored_matrix import StoredMatrix
from llavakit.model.weights_state import find_non_finite, read_weights_state
from tests.tiny.random_model import NumberDecoder, RawPrompt, make_config, make_model, make_prompt

_GREEDY = SamplingParams(max_new_tokens=24)
_RELATIVE_TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def model() -> Llava:
    return make_model()


def _engine(model: Llava, **settings: int) -> Engine:
    return Engine(model, make_decoder=NumberDecoder, **settings)  # type: ignore[arg-type]


def _run(
    engine: Engine, prompts: Sequence[RawPrompt], params: SamplingParams | Sequence[SamplingParams] = _GREEDY
) -> tuple[list[Generation], list[TokenEvent]]:
    every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    generations = engine.submit(prompts, every)
    return generations, list(engine.run(generations))


def _naive(model: Llava, prompt: RawPrompt, max_new_tokens: int = 24) -> list[int]:
    pixels = None if prompt.pixel_values is None else torch.from_numpy(prompt.pixel_values)
    return decode_greedily(model, prompt.token_ids, pixels, max_new_tokens=max_new_tokens)[0]


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_one_prompt_equals_the_naive_loop(model: Llava, num_images: int) -> None:
    for seed in range(5):
        prompt = make_prompt(model, num_images=num_images, seed=seed)
        (generation,), _ = _run(_engine(model), [prompt])
        assert generation.token_ids == _naive(model, prompt)


@pytest.mark.parametrize("max_batch_size", [1, 2, 3, 8])
def test_batched_equals_alone_whatever_the_lengths_and_pictures(model: Llava, max_batch_size: int) -> None:
    prompts = [make_prompt(model, num_images=idx % 4, seed=idx, num_words=3 + 2 * (idx % 5)) for idx in range(9)]
    params = [SamplingParams(max_new_tokens=5 + 4 * (idx % 5)) for idx in range(9)]
    generations, _ = _run(_engine(model, max_batch_size=max_batch_size), prompts, params)
    for prompt, param, generation in zip(prompts, params, generations, strict=True):
        assert generation.token_ids == _naive(model, prompt, param.max_new_tokens)


def test_seeded_sampling_does_not_depend_on_the_batch(model: Llava) -> None:
    prompts = [make_prompt(model, num_images=idx % 3, seed=idx) for idx in range(5)]
    params = [SamplingParams(max_new_tokens=12, temperature=0.8, top_k=20, seed=idx) for idx in range(5)]
    batched, _ = _run(_engine(model, max_batch_size=3), prompts, params)
    for prompt, param, generation in zip(prompts, params, batched, strict=True):
        (alone,), _ = _run(_engine(model), [prompt], param)
        assert alone.token_ids == generation.token_ids


def test_a_prompt_in_pieces_gives_the_logits_of_one_pass(model: Llava) -> None:
    prompt = make_prompt(model, num_images=1, seed=3, num_words=12)
    pixels = torch.from_numpy(prompt.pixel_values)
    with torch.inference_mode():
        embeds = model.embed(torch.tensor([prompt.token_ids]), model.encode_images(pixels))
        length = embeds.shape[1]
        whole = model(embeds, torch.arange(length)[None])[0]
        for cuts in ([5], [1, 2, 9], list(range(1, length))):
            cache = KVCache(
                model.config.text_config, num_rows=1, max_len=length, dtype=model.dtype, device=model.device
            )
            pieces = []
            for start, end in zip([0, *cuts], [*cuts, length], strict=True):
                view = PrefillView(cache, row=0, start=start)
                positions = torch.arange(start, end)[None]
                pieces.append(model(embeds[:, start:end], positions, cache=view, mask=view.mask(end - start))[0])
            error = (torch.cat(pieces) - whole).abs().max() / whole.abs().max()
            assert error < _RELATIVE_TOLERANCE


def test_a_further_turn_computes_only_new_tokens_and_equals_a_fresh_start(model: Llava) -> None:
    engine = _engine(model)
    first = make_prompt(model, num_images=1, seed=11)
    (generation,), _ = _run(engine, [first])
    answer = tuple(generation.token_ids)
    second = RawPrompt((*first.token_ids, *answer, 17, 23, 42), first.pixel_values, first.image_keys)
    (followed,), _ = _run(engine, [second])
    assert followed.timings.num_cached_tokens == len(first.token_ids) + len(answer) - 1
    assert followed.timings.num_images_encoded == 0
    assert followed.token_ids == _naive(model, second)


def test_another_picture_under_the_same_words_is_no_cache_hit(model: Llava) -> None:
    engine = _engine(model)
    one = make_prompt(model, num_images=1, seed=1)
    other = make_prompt(model, num_images=1, seed=2)
    swapped = RawPrompt(one.token_ids, other.pixel_values, other.image_keys)
    _run(engine, [one])
    (generation,), _ = _run(engine, [swapped])
    assert generation.timings.num_cached_tokens == one.token_ids.index(model.config.image_token_id)
    assert generation.timings.num_images_encoded == 1
    assert generation.token_ids == _naive(model, swapped)


def test_a_picture_is_encoded_once_per_content(model: Llava) -> None:
    engine = _engine(model)
    prompt = make_prompt(model, num_images=2, seed=5)
    generations, _ = _run(engine, [prompt, prompt, prompt])
    assert sum(generation.timings.num_images_encoded for generation in generations) == 2
    assert len({tuple(generation.token_ids) for generation in generations}) == 1


def test_every_request_ends_with_exactly_one_terminal_event(model: Llava) -> None:
    prompts = [make_prompt(model, num_images=idx % 2, seed=idx) for idx in range(5)]
    params = [SamplingParams(max_new_tokens=3 + idx, num_beams=1 + (idx == 4)) for idx in range(5)]
    generations, events = _run(_engine(model, max_batch_size=2), prompts, params)
    for idx, generation in enumerate(generations):
        mine = [event for event in events if event.request_idx == idx]
        assert [event.finish_reason for event in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason is generation.finish_reason
        assert "".join(event.text for event in mine) == generation.result.text


@pytest.mark.parametrize("num_prompts", [1, 4])
def test_cancelling_ends_every_request_before_its_next_token(model: Llava, num_prompts: int) -> None:
    engine = _engine(model, max_batch_size=2)
    prompts = [make_prompt(model, num_images=1, seed=idx) for idx in range(num_prompts)]
    generations = engine.submit(prompts, [SamplingParams(max_new_tokens=50, ignore_eos=True)] * num_prompts)
    seen: list[TokenEvent] = []
    for event in engine.run(generations, should_stop=lambda: len(seen) >= 5):
        seen.append(event)  # noqa: PERF402 - the lambda watches the list grow
    assert [generation.finish_reason for generation in generations] == [FinishReason.CANCELLED] * num_prompts
    assert sum(event.token_id is not None for event in seen) <= 6
    # A cancelled answer leaves a cache that tells the truth.
    (after,), _ = _run(engine, [prompts[0]])
    assert after.token_ids == _naive(model, prompts[0])


def test_an_abandoned_stream_leaves_a_cache_that_tells_the_truth(model: Llava) -> None:
    engine = _engine(model)
    prompt = make_prompt(model, num_images=1, seed=8)
    events = engine.run(engine.submit([prompt], [SamplingParams(max_new_tokens=50, ignore_eos=True)]))
    for _ in range(4):
        next(events)
    events.close()
    (after,), _ = _run(engine, [prompt])
    assert after.token_ids == _naive(model, prompt)


def test_end_of_sequence_token_ends_the_answer_and_is_not_text(model: Llava) -> None:
    prompt = make_prompt(model, num_images=0, seed=0)
    tokens = _naive(model, prompt)
    config = make_config()
    object.__setattr__(config, "eos_token_id", tokens[4])
    stopping = make_model(config=config)
    (generation,), _ = _run(_engine(stopping), [prompt])
    end = tokens.index(tokens[4])
    assert generation.token_ids == tokens[: end + 1]
    assert generation.finish_reason is FinishReason.STOP
    assert generation.result.text == "".join(f"{token_id} " for token_id in tokens[:end])


def test_stop_string_ends_the_answer_before_it(model: Llava) -> None:
    prompt = make_prompt(model, num_images=0, seed=0)
    tokens = _naive(model, prompt)
    stop = f"{tokens[3]} {tokens[4]} "
    (generation,), _ = _run(_engine(model), [prompt], SamplingParams(max_new_tokens=24, stop=(stop,)))
    text = "".join(f"{token_id} " for token_id in tokens)
    assert generation.result.text == text[: text.index(stop)]
    assert generation.finish_reason is FinishReason.STOP


def test_logprobs_are_the_log_softmax_of_the_naive_logits(model: Llava) -> None:
    prompt = make_prompt(model, num_images=1, seed=4)
    params = SamplingParams(max_new_tokens=8, num_top_logprobs=3)
    (generation,), _ = _run(_engine(model), [prompt], params)
    _, logits = decode_greedily(model, prompt.token_ids, torch.from_numpy(prompt.pixel_values), max_new_tokens=8)
    reported = generation.result.logprobs
    assert reported is not None
    for row, entry in zip(logits, reported, strict=True):
        expected = row.log_softmax(-1)
        scale = row.abs().max().item()
        assert entry.logprob == pytest.approx(expected.max().item(), abs=_RELATIVE_TOLERANCE * scale)
        assert [token_id for token_id, _ in entry.top] == torch.topk(expected, 3).indices.tolist()


def test_a_prompt_that_fills_the_context_is_refused_with_numbers(model: Llava) -> None:
    engine = _engine(model)
    context = model.config.max_context_tokens
    full = RawPrompt((1,) * context, None, ())
    with pytest.raises(ContextOverflowError, match=f"{context} tokens"):
        engine.submit([full], [_GREEDY])


def test_an_answer_ends_with_the_context(model: Llava) -> None:
    context = model.config.max_context_tokens
    prompt = RawPrompt((1,) * (context - 3), None, ())
    (generation,), _ = _run(_engine(model), [prompt], SamplingParams(max_new_tokens=100, ignore_eos=True))
    assert len(generation.token_ids) == 3
    assert generation.finish_reason is FinishReason.LENGTH


def test_damaged_weights_are_an_error_not_an_answer() -> None:
    broken = make_model()
    broken.language_model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    engine = _engine(broken)
    prompt = make_prompt(broken, num_images=0, seed=0)
    with pytest.raises(NonFiniteError, match=r"'language_model\.layers\.0\.mlp\.down_proj\.weight' holds NaN"):
        _run(engine, [prompt])


def test_an_overflow_is_not_blamed_on_a_weight() -> None:
    broken = make_model()
    broken.language_model.norm.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match="the dtype overflows"):
        _run(_engine(broken), [make_prompt(broken, num_images=0, seed=0)])


@pytest.mark.parametrize(("dtype", "num_bytes"), [("bfloat16", 128), ("q8_0", 68)])
def test_damage_is_found_in_matrices_that_stay_as_stored(dtype: str, num_bytes: int) -> None:
    broken = make_model()
    layer = broken.language_model.layers[1].mlp.up_proj
    data = np.zeros(num_bytes, dtype=np.uint8)
    layer.matrix = StoredMatrix(data, dtype, (2, 32))
    layer.register_parameter("weight", None)
    assert find_non_finite(broken) is None
    data[-34:-32] = 0xFF  # the last block's scale, or one number
    assert find_non_finite(broken) == "language_model.layers.1.mlp.up_proj.weight"


def test_reset_gives_conversations_and_pictures_back(model: Llava) -> None:
    engine = _engine(model)
    prompt = make_prompt(model, num_images=1, seed=1)
    _run(engine, [prompt])
    engine.reset()
    (generation,), _ = _run(engine, [prompt])
    assert generation.timings.num_cached_tokens == 0
    assert generation.timings.num_images_encoded == 1


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "k_proj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_changed_in_place_are_those_of_the_next_answer(part: str, dtype: torch.dtype) -> None:
    model = make_model(seed=5).to(dtype)
    engine = _engine(model)
    prompt = make_prompt(model, num_images=1, seed=5)
    _run(engine, [prompt])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.mul_(-2.0)
    (changed,), _ = _run(engine, [prompt])
    (fresh,), _ = _run(_engine(model), [prompt])
    assert changed.token_ids == fresh.token_ids
    assert changed.timings.num_images_encoded == 1
    (again,), _ = _run(engine, [prompt])
    assert again.timings.num_images_encoded == 0


def test_a_replaced_parameter_or_stored_matrix_counts_as_changed() -> None:
    model = make_model(seed=6)
    states = [read_weights_state(model)]
    linear = model.language_model.layers[0].mlp.up_proj
    old = linear.weight
    linear.weight = torch.nn.Parameter(old.detach().clone(), requires_grad=False)
    states.append(read_weights_state(model))
    linear.matrix = StoredMatrix.quantize(torch.zeros(48, 32), "q8_0")
    states.append(read_weights_state(model))
    assert len(set(states)) == 3
    assert read_weights_state(model) == states[-1]


def test_a_reset_while_an_answer_is_read_leaves_no_lie(model: Llava) -> None:
    engine = _engine(model)
    prompt = make_prompt(model, num_images=0, seed=7)
    (generation,) = engine.submit([prompt], [_GREEDY])
    stream = engine.run([generation])
    next(stream)
    engine.reset()
    list(stream)
    follow_up = replace(prompt, token_ids=(*generation.token_ids[1:4], *prompt.token_ids))
    (second,), _ = _run(engine, [follow_up])
    assert second.timings.num_cached_tokens == 0
    assert second.token_ids == _naive(model, follow_up)


def test_two_answers_read_in_turns_do_not_disturb_each_other(model: Llava) -> None:
    engine = _engine(model)
    prompts = [make_prompt(model, num_images=1, seed=seed) for seed in (21, 22)]
    generations = [engine.submit([prompt], [_GREEDY])[0] for prompt in prompts]
    streams = [engine.run([generation]) for generation in generations]
    for pair in zip(*streams, strict=False):
        assert len(pair) == 2
    for stream in streams:
        list(stream)
    assert [g.token_ids for g in generations] == [_naive(model, prompt) for prompt in prompts]
