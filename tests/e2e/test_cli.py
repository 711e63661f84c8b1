"""The program as people run it: processes, pipes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = str(Path(sys.executable).with_name("llavakit"))


def _run(*arguments: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PROGRAM, *arguments], input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, capture_output=True,
        check=False, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


def test_run_when_asked_once_then_text_and_json_agree_with_the_library(tiny_folder: Path, picture: Path) -> None:
    from llavakit import load

    expected = load(tiny_folder).chat("What is this?", images=[picture], max_new_tokens=6)
    done = _run("run", str(tiny_folder), "What is this?", "--image", str(picture), "--max-new-tokens", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == expected.text + ("" if expected.text.endswith("\n") else "\n")
    assert done.stderr.decode().count("\n") == 1
    assert done.stderr.startswith(b"image: decode ")
    as_json = _run(
        "run", str(tiny_folder), "What is this?", "--image", "-", "--max-new-tokens", "6", "--json", "--logprobs", "2",
        stdin=picture.read_bytes(),
    )  # fmt: skip
    content = json.loads(as_json.stdout)
    assert content["answer"] == expected.text
    assert content["num_generated_tokens"] == len(expected.token_ids)
    assert [token["token_id"] for token in content["logprobs"]] == list(expected.token_ids)
    assert all(len(token["top"]) == 2 for token in content["logprobs"])


def test_run_when_the_preset_and_settings_change_then_they_are_used(tiny_folder: Path) -> None:
    done = _run(
        "run", str(tiny_folder), "-", "--preset", "hf", "--max-new-tokens", "3", "--verbose", "--dtype", "bfloat16",
        "--temperature", "0.7", "--seed", "1", stdin="Grüße".encode(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"bfloat16 on cpu" in done.stderr
    assert b"preset hf: pictures crop, template llava-hf" in done.stderr


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("empty.png", b"", "bad-image"),
        ("text.png", b"these are words", "bad-image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "bad-image"),
    ],
)
def test_run_when_a_picture_is_bad_then_one_line_names_it(
    tiny_folder: Path, tmp_path: Path, name: str, data: bytes, code: str
) -> None:
    (tmp_path / name).write_bytes(data)
    done = _run("run", str(tiny_folder), "What?", "--image", str(tmp_path / name))
    assert done.returncode == 5
    assert done.stdout == b""
    assert done.stderr.startswith(f"error[{code}]: ".encode())
    assert name.encode() in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_run_when_the_url_is_private_then_it_is_refused(tiny_folder: Path) -> None:
    done = _run("run", str(tiny_folder), "What?", "--image", "http://127.0.0.1:9/x.png")
    assert done.returncode == 5
    assert done.stderr.startswith(b"error[image-source]: ")
    assert done.stderr.count(b"\n") == 1


def test_run_when_the_model_is_not_there_then_it_says_which_are(tmp_path: Path) -> None:
    done = _run("run", "llava:nonsense", "hello")
    assert (done.returncode, done.stdout) == (4, b"")
    assert done.stderr.startswith(b"error[model-not-found]: ")
    assert b"llava:tiny" in done.stderr
    empty = _run("run", str(tmp_path), "hello", "--json")
    assert empty.returncode in (2, 3, 4)
    assert json.loads(empty.stdout)["error"]["code"]
    assert b"Traceback" not in done.stderr + empty.stderr


def test_show_and_list_describe_models_without_torch(tiny_folder: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "torch.py"
    blocker.write_text("raise AssertionError('torch was imported')")
    done = _run("show", str(tiny_folder), "--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["num_parameters"] == sum(content["num_parameters_by_part"].values()) > 0
    assert [(preset["name"], preset["is_default"]) for preset in content["presets"]] == [
        ("original", True), ("hf", False),
    ]  # fmt: skip
    assert content["presets"][1]["prompt"] == "USER: <image>\n{question} ASSISTANT:"
    plain = _run("show", str(tiny_folder), PYTHONPATH=str(tmp_path)).stdout.decode()
    assert "preset original (default)" in plain
    assert max(map(len, plain.splitlines())) < 200


def test_show_when_a_card_states_its_licence_then_it_is_shown(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with card"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "README.md").write_text("---\nlicense: llama2\ntags: [a]\n---\n# Card\nlicense: not this one\n")
    content = json.loads(_run("show", str(folder), "--json").stdout)
    assert content["licence"] == "llama2"
    assert content["card"] == str(folder / "README.md")


def test_rm_when_nobody_can_be_asked_or_nothing_is_there_then_nothing_is_removed() -> None:
    embedded = _run("rm", "llava:tiny")
    assert embedded.returncode == 4
    assert b"part of the program" in embedded.stderr
    absent = _run("rm", "llava:7b", "--json")
    assert absent.returncode == 4
    assert json.loads(absent.stdout)["error"]["code"] == "model-not-found"


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("after_s", [0.3, 1.5])
def test_run_when_interrupted_while_loading_then_130_and_no_traceback(tiny_folder: Path, after_s: float) -> None:
    with _start("run", str(tiny_folder), "Go on", "--max-new-tokens", "300") as process:
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    if process.returncode == 0:  # a fast machine was done before
        assert out
    else:
        assert process.returncode in (130, -signal.SIGINT)


def test_run_when_interrupted_in_the_answer_then_what_was_said_is_there(tiny_folder: Path) -> None:
    with _start("run", str(tiny_folder), "Go on", "--max-new-tokens", "330", "--repetition-penalty", "1.5") as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert first
    assert b"Traceback" not in err
    assert process.returncode in (0, 130)  # 0: the answer was complete already
    if process.returncode == 130:
        assert err == b"error[interrupted]: stopped by Ctrl-C.\n"


def test_run_when_the_reader_leaves_then_it_is_quiet(tiny_folder: Path) -> None:
    with _start("run", str(tiny_folder), "Go on", "--max-new-tokens", "300") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


def test_run_when_the_output_is_full_then_it_says_so(tiny_folder: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("wb") as stdout:
        done = subprocess.run(
            [PROGRAM, "--help"], stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=60
        )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr == b"error[output]: the output cannot be written: No space left on device.\n"
