"""What clients of OpenAI and Ollama send and expect beyond the question: their own answers, nulls, codes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest

from llavakit.api.host import make_host
from llavakit.core.errors import ContextOverflowError, UnloadedError
from tests.server.live import ScriptedEngine, ScriptedHost, chat_body, serving

_CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(ScriptedHost(engine)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_an_answer_may_come_back_as_it_was_given(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    question: Any = {"role": "user", "content": "Hello?"}
    first = client.chat.completions.create(model="scripted", messages=[question])
    for answer in (first.choices[0].message, first.choices[0].message.model_dump()):
        client.chat.completions.create(model="scripted", messages=[question, answer, question])  # type: ignore[list-item]
        assert [message.role.value for message in engine.seen[-1].messages] == ["user", "assistant", "user"]


def test_an_output_may_come_back_as_it_was_given(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    first = client.responses.create(model="scripted", input="Hello?", temperature=0.5, instructions="Be kind.")
    assert (first.temperature, first.instructions, first.status) == (0.5, "Be kind.", "completed")
    assert first.id.startswith("resp_")
    history: Any = [{"role": "user", "content": "Hello?", "status": "completed"}, *first.output]
    history.append({"role": "user", "content": "And now?"})
    client.responses.create(model="scripted", input=history, include=["reasoning.encrypted_content"], tools=[])
    assert [message.role.value for message in engine.seen[-1].messages] == ["user", "assistant", "user"]
    assert engine.seen[-1].messages[1].parts[0].text == first.output_text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": None, "functions": None, "anything": None}, {"tools": [], "tool_choice": "none"}, {"stream": None},
        {"store": False, "metadata": {}, "service_tier": "auto", "modalities": ["text"]},
        {"prompt_cache_key": "a", "safety_identifier": "b", "parallel_tool_calls": True},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_taken(url: str, fields: dict[str, Any]) -> None:
    assert httpx.post(f"{url}{_CHAT}", json=chat_body(**fields)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [{"tools": [{"type": "function"}]}, {"store": True}, {"metadata": {"a": "b"}}, {"service_tier": "priority"},
     {"modalities": ["audio"]}, {"anything": 0}],
)  # fmt: skip
def test_what_asks_for_something_else_is_refused(url: str, fields: dict[str, Any]) -> None:
    refused = httpx.post(f"{url}{_CHAT}", json=chat_body(**fields))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] in {f"{name}{rest}" for name in fields for rest in ("", ".0")}


def test_needed_fields_are_not_null(url: str) -> None:
    for body in ({"messages": None}, {"messages": [{"role": "user", "content": None}]}):
        refused = httpx.post(f"{url}{_CHAT}", json=body)
        assert refused.status_code == 400
        assert "messages" in refused.json()["error"]["param"]


def test_a_bad_part_is_named(url: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "video_url"}]
    error = httpx.post(f"{url}{_CHAT}", json={"messages": [{"role": "user", "content": parts}]}).json()["error"]
    assert error["param"] == "messages.0.content.1.type"
    assert "'text' or 'image_url'" in error["message"]


@pytest.mark.parametrize("name", ["maxTokens", "Tools", "x-y", "str", "ä"])
def test_an_unknown_field_is_named_whatever_its_name(url: str, name: str) -> None:
    error = httpx.post(f"{url}{_CHAT}", json=chat_body(**{name: 1})).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported-field")
    assert repr(name) in error["message"]
    bad = httpx.post(f"{url}/api/chat", json={"model": "scripted", "messages": [], "keep_alive": [1]}).json()["error"]
    assert "'keep_alive'" in bad


def test_several_prompts_have_an_answer_each(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="scripted", prompt=["one", "two"], n=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10, 16)
    chunks = list(client.completions.create(
        model="scripted", prompt=["one", "two"], stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    texts = {idx: "".join(c.text for chunk in chunks for c in chunk.choices if c.index == idx) for idx in (0, 1)}
    assert texts == {0: "Hello world.", 1: "Hello world."}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 10


@pytest.mark.parametrize("path", [_CHAT, "/v1/completions"])
def test_lengths_of_answers_as_other_servers_name_them(url: str, engine: ScriptedEngine, path: str) -> None:
    asked: dict[str, Any] = {"prompt": "a"} if path != _CHAT else {"messages": [{"role": "user", "content": "a"}]}
    fields = {"max_tokens": 9, "min_tokens": 4, "ignore_eos": True}
    assert httpx.post(f"{url}{path}", json=asked | fields).status_code == 200
    sampling = engine.seen[-1].sampling
    assert (sampling.max_new_tokens, sampling.min_new_tokens, sampling.ignore_eos) == (9, 4, True)
    reply = httpx.post(f"{url}{path}", json=asked | fields | {"min_tokens": 10})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "sampling")


def test_truncation_is_of_conversations(url: str) -> None:
    refused = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "truncate": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "truncate")


def test_errors_have_the_codes_that_clients_look_for() -> None:
    engine = ScriptedEngine(refusal=ContextOverflowError("the prompt is too long for the context."))
    with serving(ScriptedHost(engine)) as url:
        refused = httpx.post(f"{url}{_CHAT}", json=chat_body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        missing = httpx.post(f"{url}{_CHAT}", json=chat_body(model="other"))
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_a_pull_that_fails_is_no_success(url: str) -> None:
    client = ollama.Client(host=url)
    try:
        with pytest.raises(ollama.ResponseError, match="far away"):
            client.pull("owner/name")
    finally:
        client._client.close()
    unknown = httpx.post(f"{url}/api/generate", json={"model": "other", "keep_alive": 0})
    assert unknown.status_code == 404


def test_a_model_that_is_let_go_of_meanwhile_is_opened_again() -> None:
    class Forgetful(ScriptedEngine):
        num_refused = 0

        async def submit(self, request: Any) -> Any:
            if self.num_refused < 3:
                self.num_refused += 1
                raise UnloadedError("gone")
            return await super().submit(request)

    engine = Forgetful()
    with serving(ScriptedHost(engine)) as url:
        assert httpx.post(f"{url}{_CHAT}", json=chat_body()).status_code == 200
        engine.num_refused = -1000
        assert httpx.post(f"{url}{_CHAT}", json=chat_body()).status_code == 503


def test_unloading_fails_nobody_elses_question() -> None:
    with serving(make_host("llava:tiny", num_parallel=4), default_model="llava:tiny") as url:

        async def ask() -> list[int]:
            async with httpx.AsyncClient(timeout=60) as client:
                question = {"model": "llava:tiny", "prompt": "Hi", "stream": False, "options": {"num_predict": 3}}
                unload = {"model": "llava:tiny", "keep_alive": 0}
                posts = [client.post(f"{url}/api/generate", json=question) for _ in range(12)]
                posts[4:4] = [client.post(f"{url}/api/generate", json=unload) for _ in range(2)]
                return [reply.status_code for reply in await asyncio.gather(*posts)]

        assert asyncio.run(ask()) == [200] * 14
        refused = httpx.request("DELETE", f"{url}/api/delete", json={"model": "llava:tiny"})
        assert refused.status_code == 403
        assert "cannot be removed" in refused.json()["error"]
        assert httpx.post(f"{url}/api/pull", json={"model": "llava:tiny", "stream": False}).json() == {
            "status": "success"
        }
        bias = httpx.post(f"{url}{_CHAT}", json={**chat_body(), "model": "llava:tiny", "logit_bias": {"99999999": 5}})
        assert bias.status_code == 400
