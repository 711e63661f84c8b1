"""The evaluation kit lmms-eval, unmodified, through its OpenAI adapters. Skipped where it is not installed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

import llavakit
from llavakit.api.host import make_host
from tests.server.live import SHAPES, chat_body, serving

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it and its many dependencies warn about at import is not ours
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    from lmms_eval.api.instance import GenerationResult, Instance
    from lmms_eval.models.chat.openai import OpenAICompatible as ChatAdapter
    from lmms_eval.models.simple.openai import OpenAICompatible as SimpleAdapter

_SIGN = SHAPES.with_name("sign.png")
_QUESTIONS = SHAPES.with_name("questions.json")
# What tasks of the kit commonly write under `generation_kwargs`.
_GREEDY = {"max_new_tokens": 20, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}

_Adapter = Callable[..., Any]


@dataclass(frozen=True)
class _Question:
    """One document of a task."""

    text: str
    pictures: Sequence[Image.Image]
    settings: dict[str, Any] = field(default_factory=lambda: dict(_GREEDY))

    @property
    def messages(self) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "image", "url": picture} for picture in self.pictures]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.text}]}]


def _chat_arguments(question: _Question, idx: int) -> tuple[Any, ...]:
    return (question.text, lambda doc: doc.messages, question.settings, idx, "task", "test")


def _simple_arguments(question: _Question, idx: int) -> tuple[Any, ...]:
    return (question.text, question.settings, lambda doc: list(doc.pictures), idx, "task", "test")


def _answers(adapter: Any, documents: Sequence[Any], arguments: Any) -> list[GenerationResult]:
    """Hand the documents to an adapter as the kit's evaluator does."""
    adapter.task_dict = {"task": {"test": documents}}
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    return adapter.generate_until(
        [
            Instance(request_type="generate_until", arguments=arguments(document, idx), idx=0, metadata=metadata)
            for idx, document in enumerate(documents)
        ]
    )


def _asked(adapter: Any, documents: Sequence[_Question]) -> list[str]:
    arguments = _chat_arguments if isinstance(adapter, ChatAdapter) else _simple_arguments
    return [answer.text for answer in _answers(adapter, documents, arguments)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_host("llava:tiny", num_parallel=4), default_model="llava:tiny") as address:
        yield address


@pytest.fixture(scope="module")
def model() -> llavakit.LlavaModel:
    return llavakit.load("llava:tiny")


@pytest.fixture
def connect(url: str) -> Iterator[_Adapter]:
    """Make adapters as `--model_args` would, and close their connections in the end."""
    opened: list[Any] = []

    def make(kind: type[Any] = ChatAdapter, **settings: Any) -> Any:
        adapter = kind(model="llava:tiny", base_url=f"{url}/v1", api_key="none", max_retries=1, **settings)
        opened.append(adapter)
        return adapter

    yield make
    for adapter in opened:
        adapter.client.close()


@pytest.fixture(scope="module")
def shapes() -> Image.Image:
    return Image.open(SHAPES).convert("RGB")


@pytest.fixture(scope="module")
def sign() -> Image.Image:
    return Image.open(_SIGN).convert("RGB")


@pytest.mark.parametrize("kind", [ChatAdapter, SimpleAdapter])
def test_many_at_a_time_answer_as_one_alone(
    kind: type[Any], connect: _Adapter, model: llavakit.LlavaModel, shapes: Image.Image, sign: Image.Image
) -> None:
    documents = [
        _Question("What color is the star?", [shapes]),
        _Question("What does the sign say?", [sign]),
        _Question("How many red circles are there?", [shapes]),
    ] * 5
    wanted = [model.chat(d.text, images=list(d.pictures), max_new_tokens=20).text for d in documents]
    assert len(set(wanted)) == 3
    assert _asked(connect(kind), documents) == wanted


def test_numbers_of_tokens_are_those_of_the_openai_client(connect: _Adapter, url: str, shapes: Image.Image) -> None:
    question = _Question("What color is the star?", [shapes])
    (answer,) = _answers(connect(), [question], _chat_arguments)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="llava:tiny", messages=chat_body()["messages"], temperature=0, max_tokens=20
        )
    assert reply.usage is not None
    assert answer.text == reply.choices[0].message.content
    assert answer.token_counts is not None
    counts = (answer.token_counts.input_tokens, answer.token_counts.output_tokens)
    assert counts == (reply.usage.prompt_tokens, reply.usage.completion_tokens)


@pytest.mark.parametrize("kind", [ChatAdapter, SimpleAdapter])
def test_limits_of_length(kind: type[Any], connect: _Adapter, model: llavakit.LlavaModel, shapes: Image.Image) -> None:
    """Cut where it is asked, whole where tasks for models with longer contexts ask for more than there is."""
    text = "What color is the star?"
    limits = (1, 3, 16_384)
    got = _asked(connect(kind), [_Question(text, [shapes], {**_GREEDY, "max_new_tokens": n}) for n in limits])
    assert got == [model.chat(text, images=[shapes], max_new_tokens=min(n, 20)).text for n in limits]
    assert len(set(got)) == 3


def test_settings_of_drawing_are_those_of_the_openai_client(connect: _Adapter, url: str, shapes: Image.Image) -> None:
    drawn = {"temperature": 2, "top_p": 0.99, "presence_penalty": 0.5, "frequency_penalty": 0.25, "n": 1}
    documents = [
        _Question("What color is the star?", [shapes], {**drawn, "seed": seed, "max_new_tokens": 12})
        for seed in range(6)
    ]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        wanted = [
            client.chat.completions.create(
                model="llava:tiny", messages=chat_body()["messages"], seed=seed, max_tokens=12, **drawn
            )
            .choices[0]
            .message.content
            for seed in range(6)
        ]
    assert len(set(wanted)) > 1
    assert _asked(connect(), documents) == wanted


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
@pytest.mark.parametrize("kind", [ChatAdapter, SimpleAdapter])
def test_pictures_of_all_modes(
    kind: type[Any], mode: str, connect: _Adapter, model: llavakit.LlavaModel, shapes: Image.Image
) -> None:
    """Data sets hold gray, palette and transparent pictures; the adapters send them as PNG of the same mode."""
    picture = shapes.convert(mode)
    wanted = model.chat("What color is the star?", images=[picture], max_new_tokens=20).text
    assert _asked(connect(kind), [_Question("What color is the star?", [picture])]) == [wanted]


def test_pictures_as_jpeg(
    connect: _Adapter, model: llavakit.LlavaModel, shapes: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMMS_IMAGE_ENCODE_FORMAT", "JPEG")
    monkeypatch.setenv("LMMS_IMAGE_JPEG_QUALITY", "30")
    buffer = io.BytesIO()
    shapes.save(buffer, format="JPEG", quality=30)
    wanted = model.chat("What color is the star?", images=[Image.open(buffer)], max_new_tokens=20).text
    assert _asked(connect(), [_Question("What color is the star?", [shapes])]) == [wanted]


def test_several_pictures_and_none(
    connect: _Adapter, model: llavakit.LlavaModel, shapes: Image.Image, sign: Image.Image
) -> None:
    documents = [_Question("What is shown?", [shapes, sign]), _Question("What is the capital of France?", [])]
    wanted = [model.chat(d.text, images=list(d.pictures), max_new_tokens=20).text for d in documents]
    assert _asked(connect(), documents) == wanted
    assert _asked(connect(SimpleAdapter), documents) == wanted


def test_turns_and_a_system_prompt(connect: _Adapter, url: str, shapes: Image.Image) -> None:
    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    first = {"role": "user", "content": [{"type": "image", "url": shapes}, {"type": "text", "text": "Look."}]}
    later = [said("assistant", "There are 2 red circles."), said("user", "What color is the star?")]
    system = said("system", "Answer in one word.")
    (answer,) = _answers(
        connect(), [[system, first, *later]], lambda doc, idx: ("", lambda d: d, _GREEDY, idx, "task", "test")
    )
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        (picture,) = (part for part in chat_body()["messages"][0]["content"] if part["type"] == "image_url")
        messages = [system, {"role": "user", "content": [picture, {"type": "text", "text": "Look."}]}, *later]
        reply = client.chat.completions.create(model="llava:tiny", messages=messages, temperature=0, max_tokens=20)
    assert answer.text == reply.choices[0].message.content
    assert answer.token_counts is not None and reply.usage is not None
    assert answer.token_counts.input_tokens == reply.usage.prompt_tokens


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"enable_thinking_kwarg": True}, "chat_template_kwargs"), ({"pass_video_url": True}, "media_io_kwargs")],
)
def test_what_llava_cannot_do_is_refused_by_name(
    setting: dict[str, Any], name: str, connect: _Adapter, shapes: Image.Image
) -> None:
    (got,) = _asked(connect(**setting), [_Question("What color is the star?", [shapes])])
    assert got.startswith("[LMMS_EVAL_REQUEST_FAILED")
    assert "400" in got
    assert name in got


_TASK = """
task: llavakit_examples
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.of
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 20, temperature: 0, until: ["\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
_PICTURES = """
from pathlib import Path
from PIL import Image

def of(doc):
    return [Image.open(Path({folder!r}) / doc["image"]).convert("RGB")]
"""


def test_its_command_line_scores_a_task(url: str, tmp_path: Path) -> None:
    """The command of docs/server.md with a task of the kit's own form over the examples."""
    pytest.importorskip("pytablewriter", reason="lmms-eval prints its table with pytablewriter")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "examples.yaml").write_text(_TASK.format(questions=_QUESTIONS))
    (tasks / "pictures.py").write_text(_PICTURES.format(folder=str(_QUESTIONS.parents[1])))
    ran = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", "openai", "--tasks", "llavakit_examples",
         "--include_path", str(tasks),
         "--model_args",
         f"model=llava:tiny,base_url={url}/v1,api_key=none,num_concurrent=4,max_retries=1",
         "--batch_size", "1", "--log_samples", "--output_path", str(tmp_path / "out")],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (report,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(report.read_text())["results"]["llavakit_examples"]["exact_match,none"] == 1.0
    (samples,) = (tmp_path / "out").rglob("*_samples_llavakit_examples.jsonl")
    got = sorted(json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines())
    assert got == sorted(question["answer"] for question in json.loads(_QUESTIONS.read_text()))
