"""A loaded model behind the server's protocol, and models by name: with the embedded model, on an event loop."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import llavakit
from llavakit.api import serving
from llavakit.api.host import Host, make_host
from llavakit.api.loaded_model import LoadedModel
from llavakit.api.serving import ServedModel, ServeSettings
from llavakit.conversion.convert import convert
from llavakit.core.errors import (
    ConfigError,
    ConstraintError,
    ContextOverflowError,
    ModelNotFoundError,
    OverloadedError,
    PromptError,
)
from llavakit.core.requests import ConstraintKind, GenerateRequest, OutputConstraint
from llavakit.core.types import FinishReason, ImagePart, Message, Role, SamplingParams, TextPart
from llavakit.engine.attention_map import attention_by_layers
from llavakit.model.layers import apply_rotary
from llavakit.processing.grammar import FormMasks
from llavakit.processing.sources import open_image
from llavakit.weights import store
from tests.pieces import exhaust

_SHAPES = Path(__file__).parents[3] / "examples" / "shapes.png"
_QUESTION = "How many red circles are there?"


def _ask(text: str = _QUESTION, *, picture: bool = True, **fields: object) -> GenerateRequest:
    parts = ((ImagePart(_SHAPES.read_bytes()),) if picture else ()) + (TextPart(text),)
    sampling = fields.pop("sampling", SamplingParams(max_new_tokens=24))
    return GenerateRequest(messages=(Message(Role.USER, parts),), sampling=sampling, **fields)  # type: ignore[arg-type]


def _serve(use: Callable[[ServedModel, Host], Awaitable[None]], **settings: object) -> None:
    async def run() -> None:
        host = make_host("llava:tiny", **settings)  # type: ignore[arg-type]
        served, _ = await host.open(None)
        try:
            await use(served, host)
            served.check_integrity()
        finally:
            await host.close(grace_s=10)

    asyncio.run(run())


async def _text(served: ServedModel, request: GenerateRequest) -> str:
    answer = await served.submit(request)
    pieces = [event.text async for event in answer]
    assert "".join(pieces) == answer.result.text
    return answer.result.text


def test_answers_side_by_side_are_those_of_the_python_interface() -> None:
    model = llavakit.load("llava:tiny")
    questions = [_QUESTION, "Is there a blue star?", "Describe the picture.", "Where is the red circle?"] * 2
    expected = [model.chat(q, images=[str(_SHAPES)], max_new_tokens=24).text for q in questions]

    async def use(served: ServedModel, _host: Host) -> None:
        found = await asyncio.gather(*(_text(served, _ask(q)) for q in questions))
        assert list(found) == expected
        assert served.stats().num_images_encoded == 1

    _serve(use, num_parallel=3)


def test_the_thread_that_loads_a_model_ends() -> None:
    async def use(_served: ServedModel, _host: Host) -> None:
        for _ in range(200):
            if not any(thread.name.startswith("loading") for thread in threading.enumerate()):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("a thread with a team of its own stays")

    _serve(use)


def test_a_second_question_finds_the_picture_and_the_beginning() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        for question, is_first in ((_QUESTION, True), ("Is there a blue star?", False)):
            answer = await served.submit(_ask(question))
            async for _ in answer:
                pass
            timings = answer.result.timings
            assert (timings.num_images_encoded == 1) == is_first
            assert (timings.num_cached_tokens == 0) == is_first
            assert timings.num_prompt_tokens - timings.num_cached_tokens < 40 or is_first

    _serve(use)


@pytest.mark.parametrize("isolates", [False, True])
def test_a_picture_that_comes_again_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch, isolates: bool) -> None:
    opened: list[object] = []

    def record(source: object, **kinds: object) -> object:
        opened.append(source)
        return open_image(source, **kinds)  # type: ignore[arg-type]

    monkeypatch.setattr("llavakit.processing.prompt.open_image", record)

    async def use(served: ServedModel, _host: Host) -> None:
        texts = [await _text(served, _ask(tenant=tenant)) for tenant in ("one", "one", "two")]
        assert len(set(texts)) == 1
        assert len(opened) == (2 if isolates else 1)
        assert served.stats().num_prepared_hits == 3 - len(opened)
        await _text(served, _ask(tenant="one", preset="hf"))
        assert len(opened) == (3 if isolates else 2)

    _serve(use, isolate_tenants=isolates)


def test_who_stops_listening_leaves_nothing_behind() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        answer = await served.submit(_ask(sampling=SamplingParams(max_new_tokens=300, ignore_eos=True)))
        async for event in answer:
            assert event.finish_reason is None
            break
        listening = answer.__aiter__()
        del listening
        answer.cancel()
        while served.num_open:
            await asyncio.sleep(0.01)
        stats = served.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)

    _serve(use)


def test_cancelling_ends_an_answer_with_one_event() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        answer = await served.submit(_ask(sampling=SamplingParams(max_new_tokens=500, ignore_eos=True)))
        ends = []
        async for event in answer:
            answer.cancel()
            ends.append(event.finish_reason)
        assert ends[-1] is FinishReason.CANCELLED
        assert ends.count(None) == len(ends) - 1
        assert answer.result.finish_reason is FinishReason.CANCELLED

    _serve(use)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        long = SamplingParams(max_new_tokens=400, ignore_eos=True)
        answers = [await served.submit(_ask(sampling=long)) for _ in range(3)]
        with pytest.raises(OverloadedError, match="3 requests are running or waiting") as refused:
            await served.submit(_ask())
        assert refused.value.retry_after_s >= 1
        for answer in answers:
            answer.cancel()
        while served.num_open:
            await asyncio.sleep(0.01)
        assert await _text(served, _ask())

    _serve(use, num_parallel=1, max_waiting=2)


def test_a_conversation_that_is_too_long_is_an_error_or_loses_whole_turns() -> None:
    turns = [
        Message(Role.USER, (ImagePart(_SHAPES.read_bytes()), TextPart("What is this?"))),
        Message(Role.ASSISTANT, (TextPart("Shapes."),)),
    ] * 3
    messages = (Message(Role.SYSTEM, (TextPart("Be brief."),)), *turns, Message(Role.USER, (TextPart(_QUESTION),)))

    async def use(served: ServedModel, _host: Host) -> None:
        request = GenerateRequest(messages=messages, max_context_tokens=200, sampling=SamplingParams(max_new_tokens=8))
        with pytest.raises(ContextOverflowError):
            await served.submit(request)
        shortened = GenerateRequest(
            messages=messages, max_context_tokens=200, sampling=SamplingParams(max_new_tokens=8), should_truncate=True
        )
        answer = await served.submit(shortened)
        async for _ in answer:
            pass
        assert 64 < answer.result.timings.num_prompt_tokens < 200
        assert answer.result.timings.num_images < 3
        alone = GenerateRequest(messages=messages[-1:], max_context_tokens=4, should_truncate=True)
        with pytest.raises(PromptError, match="no earlier turn"):
            await served.submit(alone)

    _serve(use)


@pytest.mark.parametrize("roles", ["usu", "uu", "au", "suus", "s"])
@pytest.mark.parametrize("should_truncate", [False, True])
def test_a_conversation_out_of_order_is_refused(roles: str, should_truncate: bool) -> None:
    names = {"s": Role.SYSTEM, "u": Role.USER, "a": Role.ASSISTANT}
    messages = tuple(Message(names[role], (TextPart("x"),)) for role in roles)

    async def use(served: ServedModel, _host: Host) -> None:
        with pytest.raises(PromptError):
            await served.submit(GenerateRequest(messages=messages, should_truncate=should_truncate))

    _serve(use)


def test_two_system_messages_are_as_good_as_one() -> None:
    def asked(*system: str, **fields: int) -> GenerateRequest:
        messages = [Message(Role.SYSTEM, (TextPart(words),)) for words in system]
        messages += [Message(Role.USER, (TextPart("red " * 40),)), Message(Role.ASSISTANT, (TextPart("Yes."),))]
        messages += [Message(Role.USER, (TextPart("Hi"),))]
        return GenerateRequest(messages=tuple(messages), should_truncate=True, **fields)  # type: ignore[arg-type]

    async def use(served: ServedModel, _host: Host) -> None:
        for fields in ({}, {"max_context_tokens": 60}):
            split, one = asked("Be brief.", "Say no.", **fields), asked("Be brief. Say no.", **fields)
            assert served._prepare_now(split).token_ids == served._prepare_now(one).token_ids

    _serve(use)


@pytest.mark.parametrize(
    ("kind", "text", "check"),
    [
        (ConstraintKind.CHOICE, '["purple", "seven of them"]', lambda t: t in ("purple", "seven of them")),
        (ConstraintKind.REGEX, "[A-C]{2,4}/[0-9]", lambda t: t[-2] == "/" and t[-1].isdigit()),
        (ConstraintKind.GRAMMAR, 'start: "x" /[yz]{3}/', lambda t: t[0] == "x" and len(t) == 4),
        (
            ConstraintKind.JSON_SCHEMA,
            '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, '
            '"c": {"enum": ["red", "blue"]}}, "required": ["n", "c"], "additionalProperties": false}',
            lambda t: set(json.loads(t)) == {"n", "c"},
        ),
    ],
)
def test_answers_keep_the_form_that_was_asked_for(
    kind: ConstraintKind, text: str, check: Callable[[str], bool]
) -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        for seed in range(4):
            sampling = SamplingParams(max_new_tokens=400, temperature=1.0, seed=seed)
            answer = await served.submit(_ask(sampling=sampling, constraint=OutputConstraint(kind=kind, text=text)))
            async for _ in answer:
                pass
            assert answer.result.finish_reason is FinishReason.STOP
            assert check(answer.result.text), answer.result.text

    _serve(use)


def test_any_json_object_is_one_from_its_first_character() -> None:
    """A model of few words may never close a string; what it writes until then is the beginning of an object."""

    async def use(served: ServedModel, _host: Host) -> None:
        sampling = SamplingParams(max_new_tokens=40, temperature=1.0, seed=1)
        request = _ask(sampling=sampling, constraint=OutputConstraint(kind=ConstraintKind.JSON_OBJECT))
        assert (await _text(served, request)).startswith("{")

    _serve(use)
    tokenizer = llavakit.load("llava:tiny").tokenizer
    for text, is_object in (('{"a": [1, true], "b": {"c": null}}', True), ("[1]", False), ('{"a"; 1}', False)):
        mask = FormMasks(tokenizer).make(OutputConstraint(kind=ConstraintKind.JSON_OBJECT))
        allowed = []
        for token_id in [*tokenizer.encode(text), tokenizer.eos_token_id]:
            bits = np.unpackbits(mask.next_bits().view(np.uint8), bitorder="little")
            allowed.append(bool(bits[token_id]))
            if not allowed[-1]:
                break
            mask.accept(token_id)
        assert all(allowed) == is_object, text


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (ConstraintKind.JSON_SCHEMA, "{", "no JSON"),
        (ConstraintKind.JSON_SCHEMA, "[]", "is an object"),
        (ConstraintKind.JSON_SCHEMA, '{"type": "no such type"}', "cannot be used"),
        (ConstraintKind.JSON_SCHEMA, '{"a":' * 50 + "1" + "}" * 50, "51 deep"),
        (ConstraintKind.JSON_SCHEMA, "[" * 60000, "no JSON"),
        (ConstraintKind.REGEX, "(", "cannot be used"),
        (ConstraintKind.CHOICE, "[]", "0 choices"),
        (ConstraintKind.CHOICE, '["", 3]', "not empty"),
        (ConstraintKind.GRAMMAR, "nonsense ::= (", "cannot be used"),
        (ConstraintKind.GRAMMAR, "x" * 70_000, "at most 65536 bytes"),
    ],
)
def test_forms_that_cannot_be_used_are_refused(kind: ConstraintKind, text: str, message: str) -> None:
    masks = FormMasks(llavakit.load("llava:tiny").tokenizer)
    with pytest.raises(ConstraintError, match=message):
        masks.make(OutputConstraint(kind=kind, text=text))


def test_pictures_of_the_servers_disk_and_unknown_presets_are_refused() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        request = GenerateRequest(messages=(Message(Role.USER, (ImagePart(str(_SHAPES)), TextPart("?"))),))
        with pytest.raises(llavakit.ImageSourceError, match="may not be read"):
            await served.submit(request)
        with pytest.raises(ConfigError, match="preset 'no'"):
            await served.submit(_ask(preset="no"))
        assert served.preset_names[0] == "original"

    _serve(use)


def test_a_raw_prompt_is_continued_as_it_stands() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        request = GenerateRequest(prompt="USER: Hello! ASSISTANT:", sampling=SamplingParams(max_new_tokens=20))
        assert await served.count_prompt_tokens(request) == len(
            llavakit.load("llava:tiny").tokenizer.encode("USER: Hello! ASSISTANT:", add_bos=True)
        )
        assert await _text(served, request)

    _serve(use)


def test_attention_is_that_of_the_model_and_falls_on_the_picture() -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        answer = await _text(served, _ask())
        seen = await served.attend(_ask(), answer)
        assert "".join(seen.texts).strip() == answer.strip()
        assert len(seen.weights) == len(seen.texts)
        assert {len(row) for row in seen.weights} == {seen.patches_per_side**2}
        assert all(0 < sum(row) <= 1.001 for row in seen.weights)
        with pytest.raises(PromptError, match="picture"):
            await served.attend(_ask(picture=False), answer)

    _serve(use)


def test_other_requests_go_on_while_attention_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, may_end = serving._rounded, threading.Event()

    def round_when_told(weights: np.ndarray) -> tuple[tuple[float, ...], ...]:
        assert may_end.wait(30)
        return rounded(weights)

    monkeypatch.setattr(serving, "_rounded", round_when_told)

    async def use(served: ServedModel, _host: Host) -> None:
        attending = asyncio.create_task(served.attend(_ask(), "Yes"))
        assert await _text(served, _ask())
        assert not attending.done()
        may_end.set()
        values = [value for row in (await attending).weights for value in row]
        assert values == [round(value, 6) for value in values]

    _serve(use)


@torch.inference_mode()
def test_attention_says_nothing_of_what_other_tenants_have_shown() -> None:
    async def use(served: ServedModel, _: Host) -> None:
        answer = await _text(served, _ask(tenant="alice"))
        for tenant, num_encoded in (("alice", 1), ("bob", 2), ("bob", 2)):
            await served.attend(_ask(tenant=tenant), answer)
            assert served.stats().num_images_encoded == num_encoded

    _serve(use, isolate_tenants=True)


def test_attention_equals_the_softmax_over_whole_matrices() -> None:
    model = llavakit.load("llava:tiny")
    prompt = model.prepare(_QUESTION, images=[str(_SHAPES)])
    assert prompt.pixel_values is not None
    features = model.model.encode_images(torch.from_numpy(prompt.pixel_values))[0]
    ids = [*prompt.token_ids, 40, 41, 42]
    found = exhaust(attention_by_layers(model.model, ids, features, num_prompt_tokens=len(prompt.token_ids)))
    decoder = model.model.language_model
    x = model.model.embed(torch.tensor([ids]), features)
    rotary = decoder.rotary_emb(torch.arange(len(ids))[None], x.dtype)
    whole = torch.zeros((len(ids), len(ids)))
    for layer in decoder.layers:
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        query, key = (
            apply_rotary(p(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2), *rotary)[0]
            for p in (attention.q_proj, attention.k_proj)
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(attention.head_dim)
        hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        whole += scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(0)
        x = layer(x, rotary, None, None, is_causal=True)
    first = prompt.image_starts[0]
    expected = whole[len(prompt.token_ids) - 1 : -1, first : first + 64] / len(decoder.layers)
    assert torch.allclose(found, expected, atol=1e-6)


def test_models_by_name_are_loaded_kept_and_let_go() -> None:
    async def run() -> None:
        host = make_host("llava:tiny", keep_alive_s=math.inf)
        assert host.loaded() == []
        first, took_s = await host.open(None)
        again, took_again_s = await host.open("llava:tiny", keep_alive_s=0.0)
        assert first is again
        assert took_s > 0.0 == took_again_s
        assert [entry.info.name for entry in host.loaded()] == ["llava:tiny"]
        for _ in range(100):
            if not host.loaded():
                break
            await asyncio.sleep(0.1)
        assert host.loaded() == []
        second, _ = await host.open("llava:tiny", keep_alive_s=math.inf)
        assert second is not first
        assert host.loaded()[0].expires_at_s is None
        assert await host.unload("llava:tiny")
        assert not await host.unload("llava:tiny")
        await host.close(grace_s=1)
        with pytest.raises(OverloadedError, match="shutting down"):
            await host.open(None)

    asyncio.run(run())


def test_a_model_is_unloaded_when_its_answers_have_ended_and_takes_no_more() -> None:
    async def run() -> None:
        host = make_host("llava:tiny")
        served, _ = await host.open(None)
        answer = await served.submit(_ask(sampling=SamplingParams(max_new_tokens=60, ignore_eos=True)))
        unloading = asyncio.create_task(host.unload("llava:tiny"))
        async for _ in answer:
            pass
        assert len(answer.result.token_ids) == 60
        assert await unloading
        with pytest.raises(OverloadedError, match="unloaded"):
            await served.submit(_ask())
        with pytest.raises(OverloadedError, match="unloaded"):
            await served.attend(_ask(), "Yes")
        answer.cancel()
        await host.close(grace_s=1)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "examples", "no/such-model", "llava:7b", "a" * 5000, "\0", ""])
def test_names_that_are_no_model_here_are_refused_whatever_lies_on_the_disk(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    async def run() -> None:
        host = make_host("llava:tiny")
        for ask in (lambda: host.open(name), lambda: asyncio.to_thread(host.describe, name), lambda: host.remove(name)):
            with pytest.raises(ModelNotFoundError):
                await ask()  # type: ignore[no-untyped-call]
        assert "llava:tiny" in [info.name for info in host.list_models()]
        await host.close(grace_s=1)

    asyncio.run(run())


def test_a_restart_finds_the_picture_again(tmp_path: Path) -> None:
    async def use(served: ServedModel, _host: Host) -> None:
        await _text(served, _ask())

    async def use_again(served: ServedModel, _host: Host) -> None:
        await _text(served, _ask("Is there a blue star?"))
        assert served.stats().num_images_encoded == 0
        assert served.stats().num_cached_tokens >= 64

    _serve(use, cache_dir=tmp_path)
    _serve(use_again, cache_dir=tmp_path)


def test_models_of_one_host_share_the_bound_of_their_folder(tmp_path: Path) -> None:
    convert("llava:tiny", tmp_path / "tiny.gguf", type_name="q8_0")

    async def run(folder: Path, names: tuple[str, ...], max_bytes: int) -> int:
        host = make_host(str(tmp_path / "tiny.gguf"), cache_dir=folder, disk_cache_bytes=max_bytes)
        for name in names:
            await _text((await host.open(name))[0], _ask())
        await host.close(grace_s=10)
        return sum(path.stat().st_size for path in folder.iterdir())

    first, second = str(tmp_path / "tiny.gguf"), "llava:tiny"
    alone = asyncio.run(run(tmp_path / "one", (first,), 1 << 30))
    assert alone < asyncio.run(run(tmp_path / "two", (first, second), 1 << 30))
    assert 0 < asyncio.run(run(tmp_path / "bounded", (first, second), alone)) <= alone


def test_a_cache_folder_that_cannot_be_used_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cache folder"):
        make_host("llava:tiny", cache_dir=tmp_path / "file")


def test_a_model_stays_while_a_request_for_it_is_being_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = ServedModel._prepare_now

    def prepare_slowly(served: ServedModel, request: GenerateRequest) -> object:
        time.sleep(2.5)  # unused models are looked for every second
        return prepare(served, request)

    async def run() -> None:
        host = make_host("llava:tiny", keep_alive_s=0.0)
        served, _ = await host.open(None)
        monkeypatch.setattr(ServedModel, "_prepare_now", prepare_slowly)
        assert await _text(served, _ask()) != ""
        await host.close(grace_s=1)

    asyncio.run(run())


def test_what_clients_that_left_have_sent_counts_until_its_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, may_end, lock = ServedModel._prepare_now, threading.Event(), threading.Lock()
    num_running, max_running = 0, 0

    def prepare_when_told(served: ServedModel, request: GenerateRequest) -> object:
        nonlocal num_running, max_running
        with lock:
            num_running += 1
            max_running = max(max_running, num_running)
        assert may_end.wait(60)
        with lock:
            num_running -= 1
        return prepare(served, request)

    async def use(served: ServedModel, host: Host) -> None:
        monkeypatch.setattr(ServedModel, "_prepare_now", prepare_when_told)
        for asks in [lambda: served.submit(_ask())] * 4 + [lambda: served.attend(_ask(), "Yes")]:
            task = asyncio.create_task(asks())  # type: ignore[arg-type]
            for _ in range(100):
                if num_running == 2:
                    break
                await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert served.num_coming == 2
        unloading = asyncio.create_task(host.unload("llava:tiny"))
        await asyncio.sleep(0.1)
        assert not unloading.done()
        may_end.set()
        assert await unloading
        assert served.num_coming == 0
        assert max_running == 2

    async def run() -> None:
        host = make_host("llava:tiny")
        served, _ = await host.open(None)
        try:
            await use(served, host)
        finally:
            may_end.set()
            await host.close(grace_s=10)

    asyncio.run(run())


_HUB_ID = "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("default", ["llava:tiny", "llava:7b", _HUB_ID])
def test_a_model_with_two_names_is_in_memory_once(
    default: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = store.StoredModel("llava:7b", _HUB_ID, 1, tmp_path, is_complete=True)
    names, removed = store.list_models, []
    tiny = store.resolve("llava:tiny")
    monkeypatch.setattr(store, "list_models", lambda: [names()[0], stored])
    monkeypatch.setattr(store, "resolve", lambda name, **_: replace(tiny, name=name))
    monkeypatch.setattr(store, "remove", removed.append)

    async def run() -> None:
        loads = []

        def load(name: str) -> LoadedModel:
            loads.append(name)
            return llavakit.load("llava:tiny")

        host = Host(default, load_model=load, settings=ServeSettings(), keep_alive_s=math.inf)
        listed = default if default == _HUB_ID else "llava:7b"
        assert sorted(info.name for info in host.list_models()) == sorted(["llava:tiny", listed])
        first, _ = await host.open("llava:7b")
        second, _ = await host.open(_HUB_ID)
        assert first is second
        assert loads == [listed] == [engine.name for engine in host.engines()]
        assert [host.describe(name).name for name in ("llava:7b", _HUB_ID)] == ["llava:7b", _HUB_ID]
        assert await host.unload(_HUB_ID if listed == "llava:7b" else "llava:7b")
        assert host.loaded() == []
        await host.open("llava:7b")
        await host.remove(_HUB_ID)
        assert host.loaded() == []
        assert removed == [_HUB_ID]
        await host.close(grace_s=1)

    asyncio.run(run())


def test_a_model_that_was_being_loaded_when_the_server_stopped_is_not_served() -> None:
    async def run() -> None:
        is_loading, may_end = threading.Event(), threading.Event()

        def load(name: str) -> LoadedModel:
            is_loading.set()
            assert may_end.wait(30)
            return llavakit.load(name)

        host = Host("llava:tiny", load_model=load, settings=ServeSettings(), keep_alive_s=math.inf)
        opening = asyncio.create_task(host.open(None))
        assert await asyncio.to_thread(is_loading.wait, 30)
        await host.close(grace_s=1)
        may_end.set()
        with pytest.raises(OverloadedError, match="shutting down"):
            await opening
        assert not host.engines()

    asyncio.run(run())
