from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llavakit.cli.main import run_command
from llavakit.cli.progress import human_bytes
from llavakit.cli.tables import print_pairs
from llavakit.core.errors import DiskFullError
from llavakit.weights import store
from llavakit.weights.store import ResolvedModel, StoredModel
from tests.unit.cli.streams import make_console


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A store with two models; the list holds what was removed from it."""
    names: list[str] = []
    models = [
        StoredModel("llava:tiny", None, 17_000_000, tmp_path, is_complete=True),
        StoredModel("llava:7b", "llava-hf/llava-1.5-7b-hf", 14_130_000_000, tmp_path, is_complete=True),
        StoredModel("me/half", "me/half", 999, tmp_path, is_complete=False),
    ]
    monkeypatch.setattr(store, "list_models", lambda: models)

    def remove(name: str) -> int:
        names.append(name)
        return 14_130_000_000

    monkeypatch.setattr(store, "remove", remove)
    return names


def _run(*arguments: str, **streams: Any) -> tuple[int, str, str]:
    console = make_console(**streams)
    return run_command(arguments, console=console), console.stdout.getvalue(), console.stderr.getvalue()


def test_list_shows_every_model_with_size_and_state(removed: list[str]) -> None:
    status, out, _ = _run("list")
    assert status == 0
    lines = out.splitlines()
    assert lines[2].split() == ["llava:tiny", "17.0", "MB", "embedded"]
    assert lines[3].split() == ["llava:7b", "14.1", "GB", "complete", "llava-hf/llava-1.5-7b-hf"]
    assert "incomplete: pull it again" in lines[4]


def test_list_as_json_holds_the_same(removed: list[str]) -> None:
    content = json.loads(_run("ls", "--json")[1])
    assert [(model["name"], model["num_bytes"], model["is_complete"]) for model in content["models"]] == [
        ("llava:tiny", 17_000_000, True), ("llava:7b", 14_130_000_000, True), ("me/half", 999, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "is_removed"), [(b"y\n", True), (b"YES\n", True), (b"\n", False), (b"", False), (b"no\n", False)]
)
def test_rm_when_somebody_can_be_asked_then_only_a_yes_removes(
    removed: list[str], answer: bytes, is_removed: bool
) -> None:
    status, _, err = _run("rm", "llava:7b", stdin=answer, has_typist=True)
    assert status == 0
    assert "Remove llava:7b from this machine? [y/N]" in err
    assert removed == (["llava:7b"] if is_removed else [])


def test_rm_when_nobody_can_be_asked_then_it_needs_yes(removed: list[str]) -> None:
    status, _, err = _run("rm", "llava-hf/llava-1.5-7b-hf")
    assert (status, removed) == (2, [])
    assert "Add --yes" in err
    status, out, _ = _run("rm", "llava:7b", "--yes", "--json")
    assert (status, removed) == (0, ["llava:7b"])
    assert json.loads(out) == {"model": "llava:7b", "num_freed_bytes": 14_130_000_000}


def test_pull_reports_progress_and_where_the_model_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * 2500)

    def pull(name: str, *, on_progress: Any = None) -> ResolvedModel:
        if on_progress:
            on_progress(0, 2500, "weights")
            on_progress(2500, 2500, "weights")
        return ResolvedModel(name, tmp_path, None, "hub")

    monkeypatch.setattr(store, "pull", pull)
    status, out, err = _run("pull", "me/model")
    assert status == 0
    assert out == f"me/model is here: 2.5 kB in {tmp_path}\n"
    assert err.splitlines() == [
        "fetching me/model: 0 B of 2.5 kB (weights)", "fetching me/model: 2.5 kB of 2.5 kB (weights)",
    ]  # fmt: skip
    assert _run("pull", "me/model", "--quiet")[2] == ""
    status, out, err = _run("pull", "me/model", "--json")
    assert (json.loads(out)["num_bytes"], err) == (2500, "")
    on_terminal = _run("pull", "me/model", is_terminal=True, environ={"COLUMNS": "80", "TERM": "xterm"})[2]
    assert "fetching me/model (2.5 kB)" in on_terminal


def test_pull_when_the_disk_is_full_then_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, *, on_progress: Any = None) -> ResolvedModel:
        raise DiskFullError("14.1 GB are needed, 3.0 GB are free. Make room.")

    monkeypatch.setattr(store, "pull", pull)
    assert _run("pull", "llava:7b") == (4, "", "error[disk-full]: 14.1 GB are needed, 3.0 GB are free. Make room.\n")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (999_600, "1.0 MB"), (2e13, "20.0 TB")],
)
def test_human_bytes(num_bytes: float, text: str) -> None:
    assert human_bytes(num_bytes) == text


def test_print_pairs_when_on_a_narrow_terminal_then_values_stay_in_their_column() -> None:
    console = make_console(is_terminal=True, environ={"COLUMNS": "40", "NO_COLOR": "1"})
    print_pairs(console, [("name", "word " * 20), ("longer", "x\x1by")])
    lines = console.stdout.getvalue().splitlines()
    assert all(len(line) < 40 for line in lines)
    assert lines[0].startswith("name    word")
    assert all(line.startswith("        word") for line in lines[1:-1])
    assert lines[-1] == "longer  xy"
