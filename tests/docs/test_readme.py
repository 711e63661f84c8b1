"""What README.md says, happens: its Python blocks run, its commands and targets exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

_README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
_PYTHON = re.findall(r"```python\n(.*?)```", _README, flags=re.DOTALL)
_SHELL = "\n".join(re.findall(r"```\n(.*?)```", _README, flags=re.DOTALL))


def _run(repository: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_python_blocks_run_as_one_program(repository: Path) -> None:
    assert len(_PYTHON) >= 3
    printed = _run(repository, sys.executable, "-c", "\n".join(_PYTHON)).splitlines()
    questions = json.loads((repository / "examples" / "questions.json").read_text(encoding="utf-8"))
    expected = {entry["question"]: entry["answer"] for entry in questions}
    question = re.search(r'model\.chat\("(.+?)"', _PYTHON[0])
    assert question
    assert printed[0].rstrip(".") == expected[question[1]].rstrip(".")
    assert re.fullmatch(r"\d+ tokens per second", printed[2])
    assert printed[3].strip(), "the pipeline answered nothing"


def test_named_commands_exist(repository: Path) -> None:
    commands = set(re.findall(r"^llavakit (\w+)", _SHELL, flags=re.MULTILINE))
    assert {"run", "pull", "verify", "bench"} <= commands
    for command in sorted(commands):
        assert _run(repository, sys.executable, "-m", "llavakit", command, "--help").strip()


def test_named_targets_exist(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w-]+)", _SHELL, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_first_command_answers(repository: Path) -> None:
    match = re.search(r'^llavakit run llava:tiny "(.+?)" --image (\S+)', _SHELL, flags=re.MULTILINE)
    assert match
    command = (sys.executable, "-m", "llavakit", "run", "llava:tiny", match[1], "--image", match[2])
    assert _run(repository, *command).strip()


def test_demo_prints_commands_that_can_be_typed_again(repository: Path) -> None:
    printed = _run(repository, sys.executable, "tools/demo.py")
    commands = re.findall(r"^\$ (llavakit run llava:tiny .+)$", printed, flags=re.MULTILINE)
    assert len(commands) >= 2
    assert "\n0 of" not in printed
