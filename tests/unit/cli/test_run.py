from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llavakit.cli.main import run_command
from llavakit.core.types import ImagePart, Role, SamplingParams, TextPart
from tests.unit.cli.fake_model import FakeModel, make_load
from tests.unit.cli.streams import make_console


def _run(*arguments: str, model: FakeModel | None = None, **streams: Any) -> tuple[int, str, str, FakeModel]:
    model = model or FakeModel()
    console = make_console(**streams)
    status = run_command(["run", "m", *arguments], console=console, load=make_load(model))
    return status, console.stdout.getvalue(), console.stderr.getvalue(), model


def test_run_when_given_a_prompt_then_the_answer_is_on_stdout_and_timings_on_stderr() -> None:
    status, out, err, _ = _run("how many?")
    assert (status, out) == (0, "I see 0 and read: how many?\n")
    assert err == "prompt 30 tokens, 300 tokens/s | answer 7 tokens, 12 tokens/s\n"


@pytest.mark.parametrize("flag", ["--quiet", "--no-timings"])
def test_run_when_timings_are_not_wanted_then_stderr_is_empty(flag: str) -> None:
    assert _run("x", flag)[2] == ""


def test_run_when_verbose_then_it_says_what_is_used() -> None:
    err = _run("x", "--verbose", "--preset", "hf", "--seed", "3", "--temperature", "0.5")[2]
    assert "preset hf" in err
    assert "llava-hf" in err
    assert "float32 on cpu" in err
    assert "temperature=0.5, seed=3" in err


def test_run_when_there_are_pictures_then_they_go_before_the_question(picture: Path) -> None:
    status, out, err, model = _run(
        "what?", "--image", str(picture), "--image", "data:image/png;base64,AA", "--system", "S"
    )
    assert (status, out) == (0, "I see 2 and read: what?\n")
    assert err.startswith("2 images: ")
    messages, _ = model.asked[0]
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER]
    assert messages[0].parts == (TextPart("S"),)
    assert messages[1].parts == (ImagePart(str(picture)), ImagePart("data:image/png;base64,AA"), TextPart("what?"))


def test_run_when_settings_are_given_then_they_reach_the_model() -> None:
    flags = (
        "--max-new-tokens 5 --temperature 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 "
        "--presence-penalty 0.2 --seed 7 --num-beams 1 --stop a --stop b"
    )
    _, _, err, model = _run("x", *flags.split())
    assert model.asked[0][1] == SamplingParams(
        max_new_tokens=5, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        seed=7, num_beams=1, stop=("a", "b"),
    )  # fmt: skip
    assert "cut at max_new_tokens=5" in err


_NOTE = (
    "5000 new tokens are allowed, but the context of 4096 holds the prompt and the answer; the answer ends where it is "
    "full.\n"
)


@pytest.mark.parametrize(
    ("flags", "note"),
    [("5000", _NOTE), ("5000 --json", _NOTE), ("4095", ""), ("5000 --quiet", ""), ("4095 --json", "")],
)
def test_run_when_no_answer_can_be_as_long_as_allowed_then_a_note_says_so(flags: str, note: str) -> None:
    status, _, err, _ = _run("x", "--no-timings", "--max-new-tokens", *flags.split())
    assert (status, err) == (0, note)


def test_run_when_the_context_is_short_and_nothing_was_said_of_the_answer_then_there_is_no_note() -> None:
    model = FakeModel()
    model.config = SimpleNamespace(max_context_tokens=100)  # type: ignore[misc]
    assert _run("x", "--no-timings", model=model)[2] == ""


def test_run_when_json_is_wanted_then_one_object_has_everything() -> None:
    _, out, err, _ = _run("hello", "--json", "--logprobs", "1")
    content = json.loads(out)
    assert out.count("\n") == 1
    assert err == ""
    assert content["answer"] == "I see 0 and read: hello"
    assert content["finish_reason"] == "stop"
    assert (content["model"], content["preset"], content["dtype"]) == ("llava:fake", "original", "float32")
    assert (content["num_prompt_tokens"], content["num_cached_tokens"], content["num_generated_tokens"]) == (30, 0, 6)
    assert content["timings"]["prefill_tokens_per_s"] == pytest.approx(300)
    assert content["logprobs"][2] == {
        "token_id": 2, "token": "<2>", "logprob": -0.5, "top": [{"token_id": 2, "token": "<2>", "logprob": -0.5}],
    }  # fmt: skip
    assert "logprobs" not in json.loads(_run("hello", "--json")[1])


@pytest.mark.parametrize("arguments", [["-"], []])
def test_run_when_the_prompt_is_piped_then_it_is_read(arguments: list[str]) -> None:
    assert _run(*arguments, stdin="wörld\n".encode())[1] == "I see 0 and read: wörld\n"


def test_run_when_a_prompt_is_given_then_standard_input_is_left_alone() -> None:
    console = make_console(stdin=b"for somebody else")
    run_command(["run", "m", "hello"], console=console, load=make_load(FakeModel()))
    assert console.stdin.buffer.read() == b"for somebody else"


def test_run_when_a_file_would_be_a_word_of_the_question_then_it_says_so(picture: Path) -> None:
    status, _, err, model = _run("What is this?", "--image", str(picture), str(picture))
    assert status == 2
    assert "would be a word of the question" in err
    assert not model.asked
    assert _run(f"What is in {picture}?")[0] == 0


def test_run_when_a_picture_is_piped_then_its_bytes_are_sent(picture: Path) -> None:
    _, out, _, model = _run("what?", "--image", "-", stdin=picture.read_bytes())
    assert out == "I see 1 and read: what?\n"
    assert model.asked[0][0][0].parts[0] == ImagePart(picture.read_bytes())


@pytest.mark.parametrize(
    ("arguments", "streams", "code", "found"),
    [
        (["x", "--image", "-"], {"stdin": b""}, "bad-image", "0 bytes"),
        (["x", "--image", "-", "--image", "-"], {}, "config", "twice"),
        (["-", "--image", "-"], {}, "config", "--image -"),
        (["--image", "-"], {"stdin": b"picture"}, "config", "prompt must be an argument"),
        (["--image", "-"], {"has_typist": True}, "config", "terminal"),
        (["-"], {"stdin": b" \n"}, "prompt", "standard input is empty"),
        ([""], {}, "prompt", "command line is empty"),
        (["-"], {"stdin": b"\x89PNG"}, "prompt", "not UTF-8 text (byte 0 is 0x89)"),
        (["\udcff"], {}, "prompt", "not UTF-8"),
        (["x", "--system", "\udcff"], {}, "prompt", "system prompt"),
        (["x", "--image", "not/there.png"], {}, "image-source", "'not/there.png'"),
        (["x", "--image", "a\0b"], {}, "image-source", "there is no file"),
        (["x", "--image", "~nobody-of-this-name/x.png"], {}, "image-source", "there is no file"),
        (["x", "--top-p", "0.5"], {}, "sampling", "temperature"),
        (["x", "--max-new-tokens", "0"], {}, "sampling", "max_new_tokens is 0"),
        (["x", "--stop", ""], {}, "sampling", "empty string"),
        (["x", "--logprobs"], {}, "config", "--json"),
        (["x", "--threads", "0"], {}, "config", "--threads is 0"),
        (["--json"], {"has_typist": True}, "config", "--json needs a prompt"),
        (["overflow"], {}, "context-overflow", "4096"),
    ],
)
def test_run_when_the_request_is_wrong_then_one_line_says_what(
    arguments: list[str], streams: dict[str, Any], code: str, found: str
) -> None:
    status, out, err, model = _run(*arguments, **streams)
    if "--json" in arguments:
        err = f"error[{json.loads(out)['error']['code']}]: {json.loads(out)['error']['message']}\n"
    assert err.startswith(f"error[{code}]: ")
    assert found in err
    assert status in (2, 5)
    assert not model.asked


def test_run_when_the_request_is_wrong_then_no_model_is_loaded() -> None:
    load: Any = make_load(FakeModel())
    run_command(["run", "m", "x", "--image", "not/there.png"], console=make_console(), load=load)
    run_command(["run", "m", "x", "--top-k", "3"], console=make_console(), load=load)
    assert load.calls == []


def test_run_when_threads_are_given_then_the_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # as in a fresh process
    assert _run("x", "--threads", "3")[0] == 0
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "3")


def test_run_when_the_terminal_waits_then_a_passing_line_is_shown_and_wiped() -> None:
    _, _, err, _ = _run("x", "--no-timings", is_terminal=True)
    assert "loading m 50 %" in err
    assert err.endswith("\r\x1b[K")
