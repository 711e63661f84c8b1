"""The program as people run it: processes, pipes, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llavakit.cli.main import run_command
from tests.unit.cli.streams import make_console

PROGRAM = str(Path(sys.executable).with_name("llavakit"))


def _run(*arguments: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PROGRAM, *arguments], input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, capture_output=True,
        check=False, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


def _call(*arguments: str) -> tuple[int, str, str]:
    """Run the command in this process, where torch is loaded already."""
    console = make_console(stdin="Grüße".encode())
    return run_command(arguments, console=console), console.stdout.getvalue(), console.stderr.getvalue()


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
    status, _, err = _call(
        "run", str(tiny_folder), "-", "--preset", "hf", "--max-new-tokens", "3", "--verbose", "--dtype", "bfloat16",
        "--temperature", "0.7", "--seed", "1",
    )  # fmt: skip
    assert status == 0, err
    assert "bfloat16 on cpu" in err
    assert "preset hf: pictures crop, template llava-hf" in err


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
    status, out, err = _call("run", str(tiny_folder), "What?", "--image", str(tmp_path / name))
    assert (status, out) == (5, "")
    assert err.startswith(f"error[{code}]: ")
    assert name in err
    assert err.count("\n") == 1


def test_run_when_the_url_is_private_then_it_is_refused(tiny_folder: Path) -> None:
    status, _, err = _call("run", str(tiny_folder), "What?", "--image", "http://127.0.0.1:9/x.png")
    assert status == 5
    assert err.startswith("error[image-source]: ")
    assert err.count("\n") == 1


def test_run_when_the_model_is_not_there_then_it_says_which_are(tmp_path: Path) -> None:
    status, out, err = _call("run", "llava:nonsense", "hello")
    assert (status, out) == (4, "")
    assert err.startswith("error[model-not-found]: ")
    assert "llava:tiny" in err
    status, out, err = _call("run", str(tmp_path), "hello", "--json")
    assert status in (2, 3, 4)
    assert json.loads(out)["error"]["code"]
    assert err == ""


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
    plain = _call("show", str(tiny_folder))[1]
    assert "preset original (default)" in plain
    assert max(len(line) for line in plain.splitlines() if not line.lstrip().startswith("prompt")) < 200


def test_show_when_a_card_states_its_licence_then_it_is_shown(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with card"
    shutil.copytree(tiny_folder, folder)
    (folder / "README.md").write_text("---\nlicense: llama2\ntags: [a]\n---\n# Card\nlicense: not this one\n")
    content = json.loads(_call("show", str(folder), "--json")[1])
    assert content["licence"] == "llama2"
    assert content["card"] == str(folder / "README.md")


def test_rm_when_nobody_can_be_asked_or_nothing_is_there_then_nothing_is_removed() -> None:
    status, _, err = _call("rm", "llava:tiny")
    assert status == 4
    assert "part of the program" in err
    status, out, _ = _call("rm", "llava:7b", "--json")
    assert status == 4
    assert json.loads(out)["error"]["code"] == "model-not-found"


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("after_s", [0.5])
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
        _, err = process.communicate(timeout=60)
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
