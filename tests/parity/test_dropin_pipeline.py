"""The pipeline against transformers' own, in every way it can be called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llavakit
from llavakit.core.errors import ConfigError, PromptError, SamplingError
from tests.tiny.dropin_pair import Pair, load_pair, make_picture, png_bytes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("pipeline"), seed=21)


@pytest.fixture(scope="module")
def ours(pair: Pair) -> Any:
    return llavakit.pipeline("image-text-to-text", model=pair.model, processor=pair.processor)


@pytest.fixture(scope="module")
def theirs(pair: Pair) -> Any:
    return transformers.pipeline(
        "image-text-to-text", model=pair.their_model, processor=pair.their_processor, device="cpu"
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "scene.png"
    file.write_bytes(png_bytes(make_picture(4)))
    return str(file)


def _chat(path: str, question: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": question}]}]


def _prefilled(path: str) -> list[dict[str, Any]]:
    return [*_chat(path), {"role": "assistant", "content": [{"type": "text", "text": "There is a red"}]}]


def test_chat_as_first_argument_and_as_text_give_the_same(ours: Any, theirs: Any, path: str) -> None:
    chat = _chat(path)
    assert ours(chat, max_new_tokens=6) == ours(text=chat, max_new_tokens=6) == theirs(chat, max_new_tokens=6)


def test_list_of_chats_gives_a_list_of_lists(ours: Any, theirs: Any, path: str) -> None:
    chats = [_chat(path), _chat(path, "Is there a circle in the picture, and is it red?")]
    answers = ours(text=chats, max_new_tokens=6)
    assert answers == theirs(text=chats, max_new_tokens=6)
    assert [len(answer) for answer in answers] == [1, 1]


@pytest.mark.parametrize("options", [{}, {"return_full_text": False}])
def test_conversation_that_ends_with_the_assistant_is_gone_on_with(
    ours: Any, theirs: Any, path: str, options: dict[str, Any]
) -> None:
    answer = ours(text=_prefilled(path), max_new_tokens=6, **options)
    assert answer == theirs(text=_prefilled(path), max_new_tokens=6, **options)
    if not options:
        assert answer[0]["generated_text"][-1]["content"][-1]["text"].startswith("There is a red")


def test_continue_final_message_can_be_switched_off(ours: Any, theirs: Any, path: str) -> None:
    options = {"max_new_tokens": 6, "continue_final_message": False}
    answer = ours(text=_prefilled(path), **options)
    assert answer == theirs(text=_prefilled(path), **options)
    assert len(answer[0]["generated_text"]) == 3


@pytest.mark.parametrize("options", [{}, {"return_full_text": False}, {"skip_special_tokens": False}])
def test_prompt_with_a_picture(ours: Any, theirs: Any, path: str, options: dict[str, Any]) -> None:
    prompt = "USER: <image>\nWhat is this? ASSISTANT:"
    for picture in (path, make_picture(4)):
        answer = ours(images=picture, text=prompt, max_new_tokens=6, **options)
        assert answer == theirs(images=picture, text=prompt, max_new_tokens=6, **options)
        assert answer[0]["input_text"] == prompt


def test_prompts_with_pictures_are_one_batch(ours: Any, theirs: Any) -> None:
    prompts = ["USER: <image>\nWhat? ASSISTANT:", "USER: <image>\nIs there a red circle? ASSISTANT:"]
    pictures = [make_picture(5), make_picture(6)]
    answer = ours(images=pictures, text=prompts, max_new_tokens=6)
    assert answer == theirs(images=pictures, text=prompts, max_new_tokens=6)
    assert [one["input_text"] for one in answer] == prompts


def test_prompts_without_pictures(ours: Any, theirs: Any) -> None:
    one, several = "USER: What is a circle? ASSISTANT:", ["USER: Red? ASSISTANT:", "USER: What is this? ASSISTANT:"]
    assert ours(text=one, max_new_tokens=5) == theirs(text=one, max_new_tokens=5)
    assert ours(text=several, max_new_tokens=5) == theirs(text=several, max_new_tokens=5)


def test_dicts_with_pictures_and_text(ours: Any, theirs: Any) -> None:
    entry = {"images": make_picture(7), "text": "USER: <image>\nWhat? ASSISTANT:"}
    answer = ours(entry, max_new_tokens=5)
    assert answer == theirs(entry, max_new_tokens=5)
    # transformers takes a list of them for a chat and fails.
    assert ours([entry, entry], max_new_tokens=5) == [answer, answer]


def test_generator_of_chats_is_answered_one_by_one(ours: Any, path: str) -> None:
    asked: list[int] = []

    def chats() -> Any:
        for number in range(2):
            asked.append(number)
            yield _chat(path)

    answers = ours(chats(), max_new_tokens=4)
    assert asked == []
    assert next(answers) == ours(_chat(path), max_new_tokens=4)
    assert asked == [0]


def test_return_tensors_gives_token_ids(ours: Any, theirs: Any, path: str) -> None:
    mine, reference = (pipe(text=_chat(path), max_new_tokens=6, return_tensors=True)[0] for pipe in (ours, theirs))
    assert mine.keys() == reference.keys()
    assert torch.equal(mine["generated_token_ids"], reference["generated_token_ids"])


def test_generate_settings_are_forwarded(ours: Any, theirs: Any, path: str) -> None:
    options = {"generate_kwargs": {"num_beams": 3, "repetition_penalty": 1.3}, "max_new_tokens": 8}
    beams = ours(text=_chat(path), **options)
    assert beams == theirs(text=_chat(path), **options)
    assert beams != ours(text=_chat(path), max_new_tokens=8)


def test_default_is_256_new_tokens(ours: Any, theirs: Any) -> None:
    prompt = "USER: What is a circle? ASSISTANT:"
    mine, reference = (pipe(text=prompt, return_tensors=True)[0]["generated_token_ids"] for pipe in (ours, theirs))
    assert torch.equal(mine, reference)
    assert len(mine) == len(ours.tokenizer.encode(prompt)) + 256


@pytest.mark.parametrize("name", ["max_new_tokens", "max_length"])
def test_length_of_a_generation_config_counts(ours: Any, theirs: Any, name: str) -> None:
    prompt = "USER: What is a circle? ASSISTANT:"
    length = 4 if name == "max_new_tokens" else len(ours.tokenizer.encode(prompt)) + 5
    answers = [
        pipe(
            text=prompt,
            return_tensors=True,
            generate_kwargs={"generation_config": library.GenerationConfig(**{name: length})},
        )[0]["generated_token_ids"]
        for pipe, library in ((ours, llavakit), (theirs, transformers))
    ]
    assert torch.equal(*answers)
    direct = ours(text=prompt, return_tensors=True, generation_config={name: length})
    assert torch.equal(direct[0]["generated_token_ids"], answers[0])


def test_streamer_and_seed_reach_generate(ours: Any, theirs: Any, path: str, capsys: pytest.CaptureFixture) -> None:
    written = []
    for pipe in (ours, theirs):
        streamer = transformers.TextStreamer(pipe.tokenizer, skip_prompt=True)
        pipe(text=_chat(path), max_new_tokens=6, generate_kwargs={"streamer": streamer})
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != ""
    ours(text=_chat(path), max_new_tokens=6, streamer=transformers.TextStreamer(ours.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == written[0]
    drawn = [ours(text=_chat(path), do_sample=True, seed=5, max_new_tokens=8) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_picture_that_is_turned_or_transparent_is_treated_alike(ours: Any, theirs: Any, tmp_path: Path) -> None:
    turned = make_picture(8, width=90, height=60)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    clear = make_picture(9)
    clear.putalpha(make_picture(10).convert("L"))
    clear.save(tmp_path / "clear.png")
    for name in ("turned.jpg", "clear.png"):
        chat = _chat(str(tmp_path / name))
        assert ours(chat, max_new_tokens=8) == theirs(chat, max_new_tokens=8)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"max_new_tokens": 3, "generate_kwargs": {"max_new_tokens": 4}},
            SamplingError,
            "max_new_tokens was given twice",
        ),
        ({"return_full_text": True, "return_tensors": True}, ConfigError, "exclude each other"),
        ({"max_new_token": 3}, ConfigError, "does not know the argument 'max_new_token'. It takes max_new_tokens,"),
        ({"add_generation_prompt": False}, ConfigError, "does not know the argument 'add_generation_prompt'"),
        ({"generate_kwargs": {"top_kk": 3}}, SamplingError, "'top_kk'"),
        ({"images": "scene.png"}, PromptError, "a chat and images were given"),
    ],
)
def test_call_that_contradicts_itself_is_refused(
    ours: Any, path: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ours(text=_chat(path), **settings)


def test_pictures_without_words_and_nothing_at_all_are_refused(ours: Any, path: str) -> None:
    with pytest.raises(PromptError, match="pictures were given without text"):
        ours(images=path)
    with pytest.raises(PromptError, match="neither images nor text"):
        ours()


@pytest.mark.parametrize("task", ["text-generation", "visual-question-answering", None])
def test_other_task_is_refused_by_name(pair: Pair, task: str | None) -> None:
    with pytest.raises(ConfigError, match=f"the task {task!r} is not supported"):
        llavakit.pipeline(task, model=pair.model)


def test_old_task_name_is_refused_with_advice(pair: Pair) -> None:
    with pytest.raises(ConfigError, match=r"Use pipeline\('image-text-to-text', model=...\)"):
        llavakit.pipeline("image-to-text", model=pair.model)


def test_unknown_argument_of_the_factory_is_refused(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="pipeline does not know the argument 'framwork'"):
        llavakit.pipeline("image-text-to-text", model=pair.model, processor=pair.processor, framwork="pt")
    with pytest.raises(ConfigError, match="pipeline needs a model"):
        llavakit.pipeline("image-text-to-text")


def test_loading_argument_for_what_is_loaded_already_is_refused(pair: Pair) -> None:
    for name, value in (("torch_dtype", torch.float16), ("device_map", "auto"), ("revision", "main")):
        with pytest.raises(ConfigError, match=f"{name} says how to load, but the model is loaded already"):
            llavakit.pipeline("image-text-to-text", model=pair.model, processor=pair.processor, **{name: value})
    with pytest.raises(ConfigError, match="source_policy says how to load, but the processor is loaded already"):
        llavakit.pipeline(
            "image-text-to-text",
            model=pair.model,
            processor=pair.processor,
            source_policy=pair.processor.image_processor.policy,
        )
