"""docs/planner.md: its commands run, its example prints, its numbers are the stored ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.planner_error import compare_memory
from llavakit.cli.main import run_command
from llavakit.planner.speed import load_calibration
from tests.unit.cli.streams import make_console

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "planner.md").read_text(encoding="utf-8")


def test_the_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
    exec(compile(code, "docs/planner.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("tight ")
    assert "0 weights 7773" in out


@pytest.mark.parametrize("line", re.findall(r"^\$ llavakit (.*)$", _PAGE, re.MULTILINE))
def test_the_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "--verify" in line:
        pytest.skip("writes and runs four gigabytes")
    monkeypatch.chdir(tmp_path)
    console = make_console()
    assert run_command(shlex.split(line), console=console) == 0, console.stderr.getvalue()


def test_the_tables_are_true() -> None:
    for row in compare_memory():
        cells = [str(row[name]).split(" ")[0] for name in ("sum of parts, GB", "llavakit", "catalogue", "llmfit")]
        line = next(line for line in _PAGE.splitlines() if line.startswith(f"| {row['type']} |"))
        assert [cell.split(" ")[0] for cell in line.strip("| ").split(" | ")[1:5]] == cells
    for kind, words in (("decode", "answers, llavakit"), ("prompt", "prompts, llavakit")):
        errors = [abs(r["predicted"] / r["measured"] - 1) for r in load_calibration()["residuals"][kind]]
        mean, worst = 100 * sum(errors) / len(errors), 100 * max(errors)
        assert f"| {words} | {len(errors)} | {mean:.1f} % | {worst:.0f} % |" in _PAGE
