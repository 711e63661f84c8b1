"""The command: what it prints, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llavakit.cli.main import run_command
from tests.unit.cli.streams import make_console


def _run(*arguments: str) -> tuple[int, str, str]:
    console = make_console()
    status = run_command(arguments, console=console)
    return status, console.stdout.getvalue(), console.stderr.getvalue()


def test_files_are_named_and_sized(tmp_path: Path) -> None:
    status, out, notes = _run("convert", "llava:tiny", str(tmp_path / "a.gguf"), "--type", "Q8_0")
    assert status == 0
    assert out.splitlines() == [f"{tmp_path / 'a.gguf'}  5.7 MB", f"{tmp_path / 'mmproj-a-f16.gguf'}  5.0 MB"]
    assert "q8_0" in notes


def test_json_says_all(tmp_path: Path) -> None:
    status, out, notes = _run("convert", "llava:tiny", str(tmp_path / "folder"), "--type", "bf16", "--json")
    report = json.loads(out)
    assert (status, notes) == (0, "")
    assert report["files"] == [str(tmp_path / "folder" / "model.safetensors")]
    assert report["num_bytes"] == (tmp_path / "folder" / "model.safetensors").stat().st_size
    assert list(report["types"]) == ["bfloat16"]
    assert report["was_quantized"] is False


def test_a_second_time_is_refused_with_what_to_do(tmp_path: Path) -> None:
    arguments = ("convert", "llava:tiny", str(tmp_path / "a.gguf"), "--type", "q4_0")
    assert _run(*arguments)[0] == 0
    status, _, notes = _run(*arguments)
    assert status == 4
    assert "--overwrite" in notes
    assert _run(*arguments, "--overwrite")[0] == 0


def test_a_licence_beside_a_gguf_file_is_not_the_models(tmp_path: Path) -> None:
    _run("convert", "llava:tiny", str(tmp_path / "a.gguf"), "--type", "q8_0", "--quiet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    status, out, _ = _run("show", str(tmp_path / "a.gguf"), "--json")
    assert status == 0
    assert json.loads(out)["licence"] is None


@pytest.mark.parametrize("command", [["verify"], ["quality", "llava:tiny"]])
def test_a_projector_can_be_named_wherever_one_is_asked_for(tmp_path: Path, command: list[str]) -> None:
    model, projector = str(tmp_path / "a.gguf"), str(tmp_path / "absent.gguf")
    _run("convert", "llava:tiny", model, "--type", "q8_0", "--quiet")
    status, _, err = _run(*command, model, "--mmproj", projector)
    assert status == 4
    assert "absent.gguf" in err
