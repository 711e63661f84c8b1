"""The server's engine against the one that computes each request alone: the same tokens, whatever happens around them.

Five invariants are its specification: chunked = whole, alone = batched, sent back = not, cache hit = miss, and exactly
one end per accepted request.
"""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llavakit
from llavakit.conversion.convert import convert
from llavakit.core.errors import CapacityError, ConfigError, ContextOverflowError, NonFiniteError, WeightsError
from llavakit.core.types import FinishReason, SamplingParams
from llavakit.engine.disk_store import DiskStore
from llavakit.engine.engine import Engine
from llavakit.engine.generation import Generation
from llavakit.engine.paged_cache import BLOCK_SIZE, BlockPool
from llavakit.engine.paged_engine import EngineEvent, PagedEngine
from llavakit.engine.picture_encoder import PictureEncoder, PictureKey
from llavakit.kernels.library import has_library
from llavakit.model.kv_blocks import BLOCKS
from llavakit.model.llava import Llava
from llavakit.processing.tokenizer import StreamDecoder
from llavakit.scheduling.scheduler import Budget
from tests.pieces import exhaust
from tests.tiny.random_model import NumberDecoder, RawPrompt, make_config, make_model, make_prompt

_MODEL = make_model()


def _engine(*, num_blocks: int = 64, model: Llava = _MODEL, **settings_: object) -> PagedEngine:
    return PagedEngine(model, make_decoder=NumberDecoder, num_blocks=num_blocks, **settings_)  # type: ignore[arg-type]


def _alone(prompt: RawPrompt, params: SamplingParams, *, model: Llava = _MODEL) -> tuple[int, ...]:
    engine = Engine(model, make_decoder=NumberDecoder)
    generations = engine.submit([prompt], [params])
    list(engine.run(generations))
    return generations[0].result.token_ids


def _drain(engine: PagedEngine, *, max_steps: int = 3000) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    for _ in range(max_steps):
        if not engine.has_work:
            return events
        events += engine.step()
        engine.check_integrity()
    raise AssertionError("the engine does not come to an end")


def _results(events: list[EngineEvent]) -> dict[int, tuple[int, ...]]:
    return {event.request_id: event.result.token_ids for event in events if event.result is not None}


def _params(rng: random.Random) -> SamplingParams:
    length = rng.randint(1, 20)
    if rng.random() < 0.5:
        return SamplingParams(max_new_tokens=length)
    return SamplingParams(max_new_tokens=length, temperature=1.0, seed=rng.randrange(99), frequency_penalty=0.2)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_five_invariants(seed: int) -> None:
    """Random requests come at random times into a small cache, some are cancelled; the others' tokens are their own."""
    rng = random.Random(seed)
    engine = _engine(
        num_blocks=rng.choice([8, 12, 40]),
        budget=Budget(
            max_running=rng.randint(1, 5), prompt_tokens=rng.choice([3, 16, 64]), mixed_tokens=rng.choice([1, 5])
        ),
        max_draft_tokens=rng.choice([0, 3]), max_decode_rows=rng.choice([4, 16]),
    )  # fmt: skip
    expected: dict[int, tuple[int, ...]] = {}
    cancelled: set[int] = set()
    events: list[EngineEvent] = []
    for _ in range(rng.randint(2, 7)):
        # Few seeds: pictures and whole prompts come twice.
        prompt = make_prompt(_MODEL, num_images=rng.randint(0, 3), seed=rng.randrange(3), num_words=rng.randint(1, 40))
        params = _params(rng)
        expected[engine.add(prompt, params)] = _alone(prompt, params)
        for _ in range(rng.randrange(6)):
            events += engine.step()
        if rng.random() < 0.2:
            victim = rng.choice(list(expected))
            ended = engine.cancel(victim)
            events += ended
            cancelled.update(event.request_id for event in ended)
    events += _drain(engine)
    ends = [event.request_id for event in events if event.result is not None or event.error is not None]
    assert sorted(ends) == sorted(expected)
    found = _results(events)
    for request_id, tokens in expected.items():
        if request_id in cancelled:
            assert found[request_id] == tokens[: len(found[request_id])]
        else:
            assert found[request_id] == tokens
        streamed = [e.event.token_id for e in events if e.request_id == request_id and e.event is not None]
        assert tuple(token for token in streamed if token is not None) == found[request_id]
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)


def test_the_engine_says_how_full_its_caches_are_and_none_passes_its_bound() -> None:
    width = _MODEL.config.text_config.hidden_size * _MODEL.config.num_image_tokens * 4
    engine = _engine(num_blocks=32, max_picture_bytes=2 * width)
    block_bytes = BlockPool.block_bytes(_MODEL.config.text_config, _MODEL.kv_dtype)
    stats = engine.stats()
    assert (stats.num_image_cache_bytes, stats.num_kv_cache_bytes, stats.num_disk_cache_bytes) == (0, 0, 0)
    assert (stats.max_image_cache_bytes, stats.max_kv_cache_bytes) == (2 * width, 32 * block_bytes)
    found = []
    for seed in range(12):
        engine.add(make_prompt(_MODEL, num_images=1, seed=seed, num_words=40), SamplingParams(max_new_tokens=4))
        _drain(engine)
        stats = engine.stats()
        assert stats.num_image_cache_bytes == min(seed + 1, 2) * width
        found.append(stats.num_kv_cache_bytes)
    assert 0 < found[0] < found[1]
    assert found == sorted(found)
    assert found[-1] == 32 * block_bytes


def _held_bytes(engine: PagedEngine) -> int:
    """Bytes of the features that requests hold."""
    return sum(features.nbytes for request in engine._requests.values() for features in request.features.values())


def test_requests_that_wait_or_have_read_their_pictures_hold_no_features(tmp_path: Path) -> None:
    width = _MODEL.config.text_config.hidden_size * _MODEL.config.num_image_tokens * 4
    engine = _engine(budget=Budget(max_running=1), max_picture_bytes=width, disk=DiskStore(tmp_path, max_bytes=1 << 24))
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    prompts = [make_prompt(_MODEL, num_images=1, seed=seed) for seed in range(4)]
    for prompt in prompts:
        engine.add(prompt, params)
        _drain(engine)
    assert engine.stats().num_images_encoded == len(prompts)
    # Words before the picture make it another beginning, so that the features are needed.
    others = [replace(prompt, token_ids=(prompt.token_ids[0], 5, *prompt.token_ids[1:])) for prompt in prompts]
    ids = [engine.add(prompt, params) for prompt in others]
    assert _held_bytes(engine) == 0
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
        engine.check_integrity()
        assert _held_bytes(engine) == 0  # a step reads the whole prompt here
    assert _results(events) == {idx: _alone(prompt, params) for idx, prompt in zip(ids, others, strict=True)}
    assert engine.stats().num_images_encoded == len(prompts)  # the disk had them


def test_a_request_that_is_sent_back_lets_go_of_its_features_and_takes_them_again() -> None:
    engine = _engine(num_blocks=8, budget=Budget(max_running=2, mixed_tokens=1), max_draft_tokens=0)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    first, picture = (make_prompt(_MODEL, num_images=num, seed=1) for num in (0, 1))
    # Many words before the picture: its features wait for long, while the first answer takes all blocks.
    second = replace(picture, token_ids=(picture.token_ids[0], *range(5, 75), *picture.token_ids[1:]))
    events = _start(engine, first, params)
    engine.add(second, params)
    held_bytes = 0
    while not engine.stats().num_preemptions:
        held_bytes = _held_bytes(engine)
        events += engine.step()
    assert held_bytes > 0 == _held_bytes(engine)
    events += _drain(engine)
    assert list(_results(events).values()) == [_alone(first, params), _alone(second, params)]
    assert engine.stats().num_images_encoded == 1


def test_a_second_question_about_a_picture_computes_only_its_words_and_no_picture() -> None:
    prompt = make_prompt(_MODEL, num_images=3, seed=1, num_words=30)
    other = replace(prompt, token_ids=(*prompt.token_ids[:-4], 5, 6, 7, 8))
    engine = _engine()
    params = SamplingParams(max_new_tokens=4)
    engine.add(prompt, params)
    _drain(engine)
    encoded = engine.stats().num_images_encoded
    assert encoded == 3
    second = engine.add(other, params)
    events = _drain(engine)
    assert _results(events)[second] == _alone(other, params)
    (result,) = (event.result for event in events if event.result is not None)
    shared = len(prompt.token_ids) - 4
    # The block in which they part is full, so that its beginning is used as well.
    assert len(prompt.token_ids) + params.max_new_tokens > -(-shared // BLOCK_SIZE) * BLOCK_SIZE
    assert result.timings.num_cached_tokens == shared
    assert engine.stats().num_images_encoded == encoded
    assert result.timings.num_images_encoded == 0


def test_tenants_find_nothing_of_each_other(tmp_path: Path) -> None:
    prompt = make_prompt(_MODEL, num_images=1, seed=1, num_words=30)
    disk = DiskStore(tmp_path, max_bytes=1 << 24)
    engine = _engine(disk=disk)
    for num_encoded, tenant in enumerate(("a", "b"), start=1):
        engine.add(prompt, SamplingParams(max_new_tokens=2), tenant=tenant)
        _drain(engine)
        _do_chores(engine)
        assert (engine.stats().num_images_encoded, engine.stats().num_image_hits) == (num_encoded, 0)
    assert engine.stats().num_cached_tokens == 0
    engine.add(prompt, SamplingParams(max_new_tokens=2), tenant="a")
    _drain(engine)
    assert engine.stats().num_cached_tokens > 0
    assert engine.stats().num_images_encoded == 2
    disk.close()
    again = _engine(disk=DiskStore(tmp_path, max_bytes=1 << 24))
    for tenant, num_encoded in (("c", 1), ("a", 1), ("b", 1)):
        again.add(prompt, SamplingParams(max_new_tokens=2), tenant=tenant)
        _drain(again)
        assert again.stats().num_images_encoded == num_encoded


def test_where_an_answer_looked_says_nothing_of_what_others_have_shown() -> None:
    prompt = make_prompt(_MODEL, num_images=1, seed=1)
    engine = _engine()
    for tenant, num_encoded in (("a", 1), ("a", 1), ("b", 2)):
        exhaust(engine.image_features(prompt, tenant=tenant))
        assert engine.stats().num_images_encoded == num_encoded


def test_a_picture_on_its_way_does_not_begin_anew_after_one_beside_it() -> None:
    """Else whoever asks where answers looked, over and over, would have the pictures of all others begin anew."""
    layers = list(_MODEL.vision_tower.encoder.layers)
    assert len(layers) > 1
    passed: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_: passed.append(1)) for layer in layers]
    first, second = (make_prompt(_MODEL, num_images=1, seed=seed).pixel_values for seed in (1, 2))
    assert first is not None
    assert second is not None
    encoder, alone = (PictureEncoder(_MODEL, max_bytes=1 << 20, disk=None, fingerprint="") for _ in range(2))
    try:
        assert encoder.advance(PictureKey("a", "first"), first[0], slice_s=0.0) is None
        beside = exhaust(encoder.by_layers(PictureKey("b", "second"), second[0]))
        found = None
        while found is None:
            found = encoder.advance(PictureKey("a", "first"), first[0], slice_s=0.0)
        assert len(passed) == 2 * len(layers)
    finally:
        for hook in hooks:
            hook.remove()
    for features, pixels in ((found, first), (beside, second)):
        expected = alone.advance(PictureKey("", ""), pixels[0], slice_s=None)
        assert features is not None
        assert expected is not None
        assert torch.equal(features, expected)


def test_two_who_ask_about_one_picture_at_once_encode_it_once() -> None:
    engine = _engine()
    prompt = make_prompt(_MODEL, num_images=2, seed=3, num_words=8)
    for last in (9, 10):
        engine.add(replace(prompt, token_ids=(*prompt.token_ids, last)), SamplingParams(max_new_tokens=3))
    _drain(engine)
    assert engine.stats().num_images_encoded == 2


def test_an_answer_that_repeats_is_guessed_and_stays_the_same() -> None:
    """A model that always says the same few tokens: guesses are right, steps are fewer, tokens are equal."""
    params = SamplingParams(max_new_tokens=60, ignore_eos=True, logit_bias=((7, 50.0),), frequency_penalty=0.4)
    prompt = make_prompt(_MODEL, num_images=0, seed=5)
    expected = _alone(prompt, params)
    steps = {}
    for num in (0, 3):
        engine = _engine(max_draft_tokens=num)
        request_id = engine.add(prompt, params)
        assert _results(_drain(engine))[request_id] == expected
        steps[num] = engine.stats().num_steps
        assert (engine.stats().num_accepted_tokens > 0) == (num > 0)
    assert steps[3] < steps[0] * 0.75


def test_a_request_that_fails_does_not_hurt_its_neighbours() -> None:
    engine = _engine()
    good, bad = (make_prompt(_MODEL, num_images=1, seed=seed, num_words=5) for seed in (1, 2))
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    broken = replace(bad, pixel_values=np.full_like(bad.pixel_values, np.nan))  # type: ignore[arg-type]
    good_id, bad_id = engine.add(good, params), engine.add(broken, params)
    events = _drain(engine)
    assert [type(e.error) for e in events if e.request_id == bad_id] == [NonFiniteError]
    assert _results(events)[good_id] == _alone(good, params)


def test_a_failure_of_a_whole_step_ends_every_request_once() -> None:
    engine = _engine()
    ids = [
        engine.add(make_prompt(_MODEL, num_images=0, seed=seed), SamplingParams(max_new_tokens=5)) for seed in range(3)
    ]
    engine.step()
    events = engine.fail_all(WeightsError("broken"))
    assert sorted(event.request_id for event in events) == ids
    assert not engine.has_work
    engine.check_integrity()


def test_a_choice_that_nobody_foresaw_fails_is_the_failure_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine()
    prompts = [make_prompt(_MODEL, num_images=0, seed=seed) for seed in range(3)]
    params = SamplingParams(max_new_tokens=5, ignore_eos=True)
    ids = [engine.add(prompt, params) for prompt in prompts]
    advance = Generation.advance

    def fail(generation: Generation, *args: Any, **options: Any) -> Any:
        if generation.request_idx == ids[1] and len(generation.token_ids) == 2:
            raise RuntimeError("a choice")
        return advance(generation, *args, **options)

    monkeypatch.setattr(Generation, "advance", fail)
    events = _drain(engine)
    assert [type(event.error) for event in events if event.error is not None] == [CapacityError]
    assert _results(events) == {ids[idx]: _alone(prompts[idx], params) for idx in (0, 2)}


def test_an_end_reaches_its_client_though_the_step_fails_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine()
    short, long = (
        engine.add(make_prompt(_MODEL, num_images=0, seed=seed), SamplingParams(max_new_tokens=num, ignore_eos=True))
        for seed, num in ((1, 1), (2, 9))
    )
    monkeypatch.setattr(PagedEngine, "_guess", _refuse)
    with pytest.raises(PermissionError):
        engine.step()
    events = engine.fail_all(WeightsError("broken"))
    assert [event.request_id for event in events if event.result is not None] == [short]
    assert [event.request_id for event in events if event.error is not None] == [long]
    assert engine.fail_all(WeightsError("broken")) == []


def test_what_can_never_fit_is_refused_at_once() -> None:
    engine = _engine(num_blocks=2)
    prompt = make_prompt(_MODEL, num_images=1, seed=0)
    with pytest.raises(CapacityError, match="key-value cache, which has 32 here"):
        engine.add(prompt, SamplingParams(max_new_tokens=100))
    with pytest.raises(ContextOverflowError, match="context is 8"):
        engine.add(prompt, SamplingParams(max_new_tokens=1), max_context_tokens=8)
    assert not engine.has_work


def test_less_context_ends_the_answer_earlier() -> None:
    engine = _engine()
    prompt = make_prompt(_MODEL, num_images=0, seed=0)
    engine.add(prompt, SamplingParams(ignore_eos=True), max_context_tokens=len(prompt.token_ids) + 3)
    (result,) = (event.result for event in _drain(engine) if event.result is not None)
    assert (len(result.token_ids), result.finish_reason) == (3, FinishReason.LENGTH)


def test_8_bit_keys_and_values_give_what_the_other_engine_gives() -> None:
    model = make_model(config=make_config(head_dim=32))
    model.use_kv_blocks()
    params = SamplingParams(max_new_tokens=10)
    engine = _engine(model=model)
    prompts = [make_prompt(model, num_images=seed % 2, seed=seed) for seed in range(3)]
    ids = [engine.add(prompt, params) for prompt in prompts]
    found = _results(_drain(engine))
    assert [found[i] for i in ids] == [_alone(prompt, params, model=model) for prompt in prompts]


@pytest.mark.parametrize("in_8_bits", [False, True])
def test_what_is_copied_from_another_ones_block_gives_the_same_tokens(*, in_8_bits: bool) -> None:
    model = make_model(config=make_config(head_dim=32))
    if in_8_bits:
        model.use_kv_blocks()
    engine = _engine(model=model)
    prompt = make_prompt(model, num_images=1, seed=3, num_words=40)
    params = SamplingParams(max_new_tokens=12)
    for num_alike in (40, 37, 33, 21, 20, 19):
        ids = (*prompt.token_ids[:num_alike], *range(5, 5 + 44 - num_alike))
        question = replace(prompt, token_ids=ids)
        request_id = engine.add(question, params)
        (result,) = (event.result for event in _drain(engine) if event.result is not None)
        assert result.token_ids == _alone(question, params, model=model), (request_id, num_alike)
        assert num_alike == 40 or num_alike <= result.timings.num_cached_tokens < len(ids)


def test_a_restart_finds_pictures_and_their_blocks_on_the_disk(tmp_path: Path) -> None:
    prompt = make_prompt(_MODEL, num_images=3, seed=4, num_words=20)
    params = SamplingParams(max_new_tokens=6)
    disk = DiskStore(tmp_path, max_bytes=1 << 24)
    engine = _engine(disk=disk, fingerprint="weights")
    first = _results([*_start(engine, prompt, params), *_drain(engine)])
    _do_chores(engine)
    disk.close()
    again = _engine(disk=DiskStore(tmp_path, max_bytes=1 << 24), fingerprint="weights")
    assert _results([*_start(again, prompt, params), *_drain(again)]) == first
    stats = again.stats()
    assert stats.num_images_encoded == 0
    assert stats.num_cached_tokens >= 16
    other = _engine(disk=DiskStore(tmp_path, max_bytes=1 << 24), fingerprint="other weights")
    _start(other, prompt, params)
    _drain(other)
    assert other.stats().num_images_encoded == 3
    assert other.stats().num_cached_tokens == 0


def _do_chores(engine: PagedEngine) -> int:
    """Do all of them; return how many there were."""
    for count in range(1000):
        if not engine.has_chores:
            return count
        engine.do_chore()
    raise AssertionError("the chores do not come to an end")


def test_a_block_that_was_given_away_meanwhile_is_not_put_on_the_disk(tmp_path: Path) -> None:
    disk = DiskStore(tmp_path, max_bytes=1 << 24)
    engine = _engine(num_blocks=8, disk=disk)
    for seed in range(12):
        _start(engine, make_prompt(_MODEL, num_images=2, seed=seed, num_words=60), SamplingParams(max_new_tokens=3))
        _drain(engine)
    num_known = engine.stats().num_blocks_cached
    assert 0 < _do_chores(engine) <= 8  # what was given away is forgotten, or a busy server's list would only grow
    disk.close()
    blocks = [path for path in tmp_path.iterdir() if len(path.name) == 64]
    assert 0 < len(blocks) <= num_known
    again = _engine(num_blocks=8, disk=DiskStore(tmp_path, max_bytes=1 << 24))
    for seed in range(3):
        prompt = make_prompt(_MODEL, num_images=2, seed=seed, num_words=60)
        request_id = again.add(prompt, SamplingParams(max_new_tokens=3))
        assert _results(_drain(again))[request_id] == _alone(prompt, SamplingParams(max_new_tokens=3))


def _start(engine: PagedEngine, prompt: RawPrompt, params: SamplingParams) -> list[EngineEvent]:
    engine.add(prompt, params)
    return engine.step()


@pytest.mark.parametrize("damage", ["flip", "cut", "part"])
def test_what_a_kill_or_the_disk_has_damaged_is_never_used(tmp_path: Path, damage: str) -> None:
    prompt = make_prompt(_MODEL, num_images=3, seed=4, num_words=20)
    params = SamplingParams(max_new_tokens=6)
    disk = DiskStore(tmp_path, max_bytes=1 << 24)
    engine = _engine(disk=disk)
    _start(engine, prompt, params)
    expected = set(_results(_drain(engine)).values())
    _do_chores(engine)
    disk.close()
    for path in list(tmp_path.iterdir()):
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(content[:-1])
        else:
            path.rename(path.with_name(path.name + ".part"))
    again = _engine(disk=DiskStore(tmp_path, max_bytes=1 << 24))
    _start(again, prompt, params)
    assert set(_results(_drain(again)).values()) == expected
    assert again.stats().num_images_encoded == 3
    assert not list(tmp_path.glob("*.part"))


def test_the_disk_store_stays_within_its_bound_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=400)
    for idx in range(4):
        store.put(f"entry{idx}", bytes(100))
        store.flush()
        assert store.get("entry0") is not None or idx > 2
    assert store.num_bytes <= 400
    assert "entry1" not in store
    assert store.get("entry0") == bytes(100)
    store.put("large", bytes(500))
    store.flush()
    assert "large" not in store
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == store.num_bytes


def test_what_waits_for_a_slow_disk_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_ready = threading.Event()
    write = DiskStore._write

    def write_slowly(store: DiskStore, name: str, data: bytes) -> None:
        is_ready.wait(timeout=60)
        write(store, name, data)

    monkeypatch.setattr(DiskStore, "_write", write_slowly)
    store = DiskStore(tmp_path, max_bytes=1 << 30)
    for idx in range(20):
        store.put(f"entry {idx}", bytes(10 << 20))
    assert store.is_full
    is_ready.set()
    store.flush()
    assert not store.is_full
    assert 60 << 20 < store.num_bytes < 80 << 20
    store.put("another", b"x")
    store.close()
    assert "another" in store


def test_the_disk_store_survives_a_folder_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path / "cache", max_bytes=10_000)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("in the way")
    store.put("entry", b"data")
    store.flush()
    assert store.get("entry") is None
    assert "could not be kept" in caplog.text


def _refuse(*_args: object, **_options: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_cache_folder_that_can_only_be_read_serves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make_prompt(_MODEL, num_images=3, seed=4, num_words=20)
    params = SamplingParams(max_new_tokens=6)
    disk = DiskStore(tmp_path, max_bytes=1 << 24)
    engine = _engine(disk=disk)
    first = _results([*_start(engine, prompt, params), *_drain(engine)])
    _do_chores(engine)
    disk.close()
    monkeypatch.setattr("os.utime", _refuse)
    monkeypatch.setattr(Path, "unlink", _refuse)
    for path in sorted(tmp_path.iterdir())[::2]:
        path.write_bytes(b"damaged, and cannot be removed")
    again = _engine(disk=DiskStore(tmp_path, max_bytes=1 << 24))
    assert _results([*_start(again, prompt, params), *_drain(again)]) == first
    assert again.stats().num_images_encoded < 3
    again.check_integrity()


def test_a_request_that_cannot_be_prepared_was_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = make_prompt(_MODEL, num_images=3, seed=4, num_words=20)
    params = SamplingParams(max_new_tokens=6)
    disk = DiskStore(tmp_path, max_bytes=1 << 24)
    engine = _engine(disk=disk)
    _start(engine, prompt, params)
    _drain(engine)
    _do_chores(engine)
    disk.flush()
    again = _engine(disk=disk)
    with monkeypatch.context() as patch:
        patch.setattr(BlockPool, "write", _refuse)
        with pytest.raises(PermissionError):
            again.add(prompt, params)
    assert not again.has_work
    assert again.fail_all(WeightsError("broken")) == []
    again.check_integrity()
    assert again.stats().num_blocks_in_use == 0
    _start(again, prompt, params)
    assert len(_results(_drain(again))) == 1


def test_the_disk_store_touches_only_what_it_wrote_itself(tmp_path: Path) -> None:
    name = "ab" * 32
    store = DiskStore(tmp_path, max_bytes=4000)
    store.put(name, bytes(100))
    store.put(f"{'0' * 16}-{name}", bytes(100))
    store.close()
    (tmp_path / f"{'cd' * 32}.part").write_bytes(b"left behind")
    foreign = {"thesis.docx", "notes.part", name[:-1], name.upper(), f"{name}.part.part"}
    for other in foreign:
        (tmp_path / other).write_bytes(bytes(3000))
    (tmp_path / "folder").mkdir()
    (tmp_path / ("12" * 32)).mkdir()
    (tmp_path / ("34" * 32)).symlink_to("thesis.docx")
    kept = {*foreign, "folder", "12" * 32, "34" * 32}
    again = DiskStore(tmp_path, max_bytes=4000)
    assert again.num_bytes == 2 * (100 + 32)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, name, f"{'0' * 16}-{name}"}
    again.close()
    none = DiskStore(tmp_path, max_bytes=10)
    none.close()
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert none.num_bytes == 0


def test_a_cache_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"the cache folder .*file' cannot be used .*Name a folder"):
        DiskStore(tmp_path / "file", max_bytes=1000)


def test_room_is_made_though_another_thread_drops_the_last_entry(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=400)
    store.put("ab" * 32, bytes(300))
    store.flush()

    class Overtaken:
        """A lock that another thread had just before, and dropped everything."""

        def __enter__(self) -> None:
            store._sizes.clear()
            store._num_bytes = 0

        def __exit__(self, *_error: object) -> None:
            pass

    store._lock = Overtaken()  # type: ignore[assignment]
    store._make_room(300)
    assert store.num_bytes == 0


def test_blocks_read_and_write_back() -> None:
    config = make_config().text_config
    pool = BlockPool(config, num_blocks=3, dtype=torch.float16, device=torch.device("cpu"))
    pool.keys.copy_(torch.randn(pool.keys.shape))
    pool.values.copy_(torch.randn(pool.values.shape))
    data = pool.read(1)
    assert len(data) == BlockPool.block_bytes(config, torch.float16)
    pool.write(2, data)
    assert torch.equal(pool.keys[:, 1], pool.keys[:, 2])
    assert torch.equal(pool.values[:, 1], pool.values[:, 2])


@pytest.mark.parametrize("dtype", [torch.float16, BLOCKS])
def test_the_beginning_of_a_block_is_copied_and_nothing_else(dtype: torch.dtype) -> None:
    pool = BlockPool(make_config(head_dim=32).text_config, num_blocks=2, dtype=dtype, device=torch.device("cpu"))
    for store in (pool.keys, pool.values):
        store[:, 0] = torch.randint(1, 99, store[:, 0].shape).to(dtype)
    pool.copy(0, 1, 5)
    for store in (pool.keys, pool.values):
        assert torch.equal(store[:, 1, :, :5], store[:, 0, :, :5])
        assert not store[:, 1, :, 5:].any()


@pytest.mark.skipif(not has_library(), reason="the native library is not built")
def test_over_blocks_of_a_gguf_model_the_native_kernels_give_the_same_tokens(tmp_path: Path) -> None:
    """Quantized products round by their number of rows, so tokens may part where two are nearly as likely."""
    convert("llava:tiny", tmp_path / "tiny.gguf", type_name="q8_0")
    model = llavakit.load(tmp_path / "tiny.gguf")
    picture = Path(__file__).parents[3] / "examples" / "shapes.png"
    questions = ["What color is the star?", "Is there a green circle?", "How many circles are there?", "Hello!"]
    expected = [
        model.chat(q, images=[str(picture)] if q != "Hello!" else None, max_new_tokens=12).text for q in questions
    ]
    engine = PagedEngine(
        model.model, make_decoder=lambda: StreamDecoder(model.tokenizer), num_blocks=64,
        budget=Budget(max_running=3, prompt_tokens=40, mixed_tokens=7),
    )  # fmt: skip
    ids = [
        engine.add(
            model.prepare(q, images=[str(picture)] if q != "Hello!" else None), SamplingParams(max_new_tokens=12)
        )
        for q in questions
    ]
    results = {event.request_id: event.result for event in _drain(engine) if event.result is not None}
    assert [results[i].text for i in ids] == expected
