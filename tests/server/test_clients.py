"""The official clients, unmodified, against the embedded model; pictures do not get mixed up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest

import llavakit
from llavakit.api.host import make_host
from tests.server.live import SHAPES, URI, chat_body, serving

_SIGN = SHAPES.with_name("sign.png")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_host("llava:tiny", num_parallel=4), default_model="llava:tiny") as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected() -> str:
    return llavakit.load("llava:tiny").chat("What color is the star?", images=[str(SHAPES)], max_new_tokens=20).text


_MESSAGES = chat_body()["messages"]


@pytest.fixture
def ollama_client(url: str) -> Iterator[ollama.Client]:
    opened = ollama.Client(host=url)
    yield opened
    opened._client.close()  # it has no public way to let go of its connections


def test_openai_chat(client: openai.OpenAI, expected: str) -> None:
    reply = client.chat.completions.create(
        model="llava:tiny", messages=_MESSAGES, temperature=0, max_tokens=20, logprobs=True, top_logprobs=2
    )
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 64
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    tokens = reply.choices[0].logprobs.content  # type: ignore[union-attr]
    assert tokens is not None
    assert len(tokens) == reply.usage.completion_tokens
    assert b"".join(bytes(t.bytes or ()) for t in tokens).decode().strip() == expected
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in tokens)


def test_openai_stream_with_usage(client: openai.OpenAI, expected: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model="llava:tiny", messages=_MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 64  # type: ignore[union-attr, operator]


def test_openai_several_answers_with_a_seed(client: openai.OpenAI) -> None:
    replies = [
        client.chat.completions.create(model="llava:tiny", messages=_MESSAGES, n=3, seed=5, temperature=2, max_tokens=8)
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in reply.choices] for reply in replies]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_openai_completions_responses_and_models(client: openai.OpenAI, expected: str) -> None:
    assert (
        client.completions.create(model="llava:tiny", prompt="USER: Hello! ASSISTANT:", temperature=0, max_tokens=12)
        .choices[0]
        .text
    )
    content = [{"type": "input_text", "text": "What color is the star?"}, {"type": "input_image", "image_url": URI}]
    reply = client.responses.create(model="llava:tiny", input=[{"role": "user", "content": content}], temperature=0)  # type: ignore[list-item, misc]
    assert (reply.output_text, reply.status) == (expected, "completed")
    with client.responses.stream(
        model="llava:tiny",
        input=[{"role": "user", "content": content}],
        temperature=0,  # type: ignore[list-item, misc]
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == expected
    assert [model.id for model in client.models.list()] == ["llava:tiny"]
    assert client.models.retrieve("llava:tiny").owned_by == "llavakit"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_openai_forms(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    reply = client.chat.completions.create(
        model="llava:tiny", messages=_MESSAGES, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )  # fmt: skip
    assert json.loads(reply.choices[0].message.content or "")["color"] in ("red", "blue")
    reply = client.chat.completions.create(
        model="llava:tiny", messages=_MESSAGES, temperature=0, extra_body={"guided_choice": ["purple", "no idea"]}
    )
    assert reply.choices[0].message.content in ("purple", "no idea")
    with pytest.raises(openai.BadRequestError, match="regex cannot be used"):
        client.chat.completions.create(model="llava:tiny", messages=_MESSAGES, extra_body={"guided_regex": "("})


@pytest.mark.parametrize("field", [{"foo": 1}, {"tools": [{"type": "function"}]}, {"temperature": -1},
                                   {"top_logprobs": 3}, {"n": 0}, {"max_tokens": -4}, {"logit_bias": {"x": 1}},
                                   {"stop": [""]}, {"seed": True}])  # fmt: skip
def test_what_is_not_done_is_refused(client: openai.OpenAI, field: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="llava:tiny", messages=_MESSAGES, extra_body=field)
    assert refused.value.body["message"]  # type: ignore[index]
    assert refused.value.code in ("unsupported-field", "prompt", "sampling")


def test_a_prompt_that_does_not_fit_is_an_error_or_is_truncated_when_asked(client: openai.OpenAI) -> None:
    question = {"role": "user", "content": "What is this? " * 60}
    turns = [question, {"role": "assistant", "content": "Blue."}] * 10
    messages = [*turns, *_MESSAGES]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="llava:tiny", messages=messages, max_tokens=8)  # type: ignore[arg-type]
    reply = client.chat.completions.create(
        model="llava:tiny",
        messages=messages,
        max_tokens=8,
        temperature=0,
        extra_body={"truncate": True},  # type: ignore[arg-type]
    )
    assert reply.usage is not None
    assert 500 < reply.usage.prompt_tokens < 2048


def test_ollama_chat_generate_and_models(ollama_client: ollama.Client, expected: str) -> None:
    client = ollama_client
    question = {"role": "user", "content": "What color is the star?", "images": [str(SHAPES)]}
    reply = client.chat(model="llava:tiny", messages=[question], options={"temperature": 0})
    assert reply.message.content == expected
    assert reply.done_reason == "stop"
    assert (reply.prompt_eval_count or 0) > 64
    assert (reply.total_duration or 0) > (reply.eval_duration or 0) >= 0
    pieces = list(client.chat(model="llava:tiny", messages=[question], stream=True, options={"temperature": 0}))
    assert "".join(piece.message.content or "" for piece in pieces) == expected
    assert [piece.done for piece in pieces].count(True) == 1
    made = client.generate(
        model="llava:tiny", prompt="What color is the star?", images=[SHAPES.read_bytes()], options={"temperature": 0}
    )
    assert made.response == expected
    assert client.list().models[0].model == "llava:tiny"
    assert client.ps().models[0].model == "llava:tiny"
    shown = client.show("llava:tiny")
    assert "vision" in (shown.capabilities or [])
    form = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    reply = client.chat(model="llava:tiny", messages=[question], format=form, options={"temperature": 0})
    assert json.loads(reply.message.content or "")["n"] in (1, 2)
    with pytest.raises(ollama.ResponseError, match="not done here"):
        client.generate(model="llava:tiny", prompt="x", options={"num_gpu": 3})
    with pytest.raises(ollama.ResponseError, match="no embeddings"):
        client.embed(model="llava:tiny", input="x")


def test_ollama_loads_and_unloads(ollama_client: ollama.Client) -> None:
    client = ollama_client
    assert client.generate(model="llava:tiny", prompt="", keep_alive="10m").done_reason == "load"
    assert client.ps().models[0].expires_at is not None
    assert client.generate(model="llava:tiny", prompt="", keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    assert client.generate(model="llava:tiny", prompt="", keep_alive=-1).done_reason == "load"


def test_pictures_side_by_side_are_not_mixed_up(url: str) -> None:
    model = llavakit.load("llava:tiny")
    asked = [("What color is the star?", SHAPES), ("What does the sign say?", _SIGN)] * 6
    wanted = [model.chat(question, images=[str(picture)], max_new_tokens=20).text for question, picture in asked]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:

            async def one(question: str, picture: bytes) -> str:
                import base64

                uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
                reply = await client.chat.completions.create(
                    model="llava:tiny", messages=chat_body(question, url=uri)["messages"], temperature=0, max_tokens=20
                )
                return reply.choices[0].message.content or ""

            return await asyncio.gather(*(one(question, picture.read_bytes()) for question, picture in asked))

    assert asyncio.run(ask_all()) == wanted


def test_a_client_that_goes_away_leaves_nothing_behind(url: str) -> None:
    body = chat_body(model="llava:tiny", stream=True, max_tokens=400, temperature=2, seed=1)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    for _ in range(100):
        metrics = httpx.get(f"{url}/metrics").text
        if 'llavakit_num_requests_running{model="llava:tiny"} 0' in metrics:
            break
        time.sleep(0.05)
    assert 'llavakit_kv_blocks_in_use{model="llava:tiny"} 0' in metrics


@pytest.mark.parametrize(
    ("path", "field", "more"),
    [
        ("/v1/chat/completions", "messages", {"max_tokens": 1}),
        ("/v1/responses", "input", {"max_output_tokens": 1}),
        ("/api/chat", "messages", {"model": "llava:tiny", "stream": False, "options": {"num_predict": 1}}),
    ],
)
def test_system_messages_come_first_in_every_dialect(url: str, path: str, field: str, more: dict[str, Any]) -> None:
    def ask(*said: tuple[str, str]) -> httpx.Response:
        messages = [{"role": role, "content": words} for role, words in said]
        return httpx.post(f"{url}{path}", json={**more, field: messages}, timeout=60)

    second = "system" if path == "/api/chat" else "developer"
    answers = [
        ask(("system", "Be brief."), (second, "Say no."), ("user", "Hi")).json(),
        ask(("system", "Be brief. Say no."), ("user", "Hi")).json(),
    ]
    counts = [answer.get("prompt_eval_count") or answer["usage"] for answer in answers]
    for count in counts:
        if isinstance(count, dict):
            count.pop("prompt_tokens_details", None)
            count.pop("input_tokens_details", None)
    assert counts[0] == counts[1]
    for order in ([("user", "Hi"), ("system", "Be brief.")], [("user", "Hi"), ("user", "Hi")]):
        assert ask(*order).status_code == 400


def test_the_page_and_what_it_asks(url: str) -> None:
    info = httpx.get(f"{url}/api/llavakit/info").json()
    assert info["presets"][0] == "original"
    assert not info["url_pictures"]
    body = {"model": "llava:tiny", "messages": _MESSAGES, "answer": "The star is blue."}
    seen = httpx.post(f"{url}/api/llavakit/attention", json=body, timeout=60).json()
    assert "".join(seen["texts"]).strip() == "The star is blue."
    assert len(seen["weights"][0]) == seen["patches_per_side"] ** 2
    assert httpx.get(url, headers={"accept": "*/*"}).text == "Ollama is running"
    assert httpx.get(f"{url}/api/version").json()["version"] == llavakit.__version__
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
