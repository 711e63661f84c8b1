"""The method page shows every residual, and its data are those of the stored records."""

from __future__ import annotations

import html
import re
from statistics import fmean

import pytest

from benchmarks.engine_shares import is_seen
from benchmarks.planner_error import RUNS, compare_memory, compare_runs, key_of, read_stored
from benchmarks.planner_proof import make_machines
from llavakit.planner.devices import read_rows
from llavakit.planner.measured import decode_work, list_rows
from llavakit.planner.method import make_method_page
from llavakit.planner.runs import compare_run, list_runs, load_proof
from llavakit.planner.speed import load_calibration

_NEW = "run `python -m benchmarks.planner_proof --write`"
# Our names of what a run measured, and those of `plan --verify`.
_NAMES = {"memory": "peak memory", "picture": "vision tower", "prompt": "prompt", "token": "one further token"}


@pytest.fixture(scope="module")
def tables() -> dict[str, list[list[str]]]:
    """Every table of the page by its name, as rows of text."""
    found = {}
    for name, table in re.findall(r'aria-label="([^"]*)"><table>(.*?)</table>', make_method_page(), re.DOTALL):
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")]
        found[html.unescape(name)] = [[html.unescape(cell) for cell in row] for row in rows if row]
    return found


def test_the_data_are_those_of_the_stored_records() -> None:
    proof = load_proof()
    assert proof["machines"] == make_machines(), _NEW
    assert proof["memory_rules"] == compare_memory(), _NEW


def test_every_run_is_shown_with_the_errors_that_the_benchmark_prints(tables: dict[str, list[list[str]]]) -> None:
    for machine in load_proof()["machines"]:
        stored = compare_runs(read_stored()[machine["instruction_set"]])
        shown = tables[f"Runs of llavakit with {machine['instruction_set']}"]
        runs = [run for run in RUNS if key_of(run) in {row["run"] for row in stored}]
        for run, expected, row, measured in zip(runs, stored, shown, list_runs(machine), strict=True):
            assert key_of(run) == expected["run"]
            assert row[-1] == ("seen" if is_seen(run) else "not seen")
            assert row[:2] == [run[0], run[1].upper()]
            residuals = compare_run(measured)
            for idx, (name, printed) in enumerate(_NAMES.items()):
                assert (name in residuals) == (printed in expected)
                if name in residuals:
                    assert row[7 + 2 * idx] in expected[printed]
                    assert f"{residuals[name].error:+.1%}" == row[7 + 2 * idx]
                else:
                    assert row[6 + 2 * idx : 8 + 2 * idx] == ["-", "-"]


def test_rows_that_are_not_used_are_shown_with_their_reasons(tables: dict[str, list[list[str]]]) -> None:
    shown = [(row[0], row[2], row[3].lower(), row[7]) for row in tables["Rows that are not used"]]
    unused = [row for row in read_rows("speeds.csv") if row["is_used"] != "yes"]
    assert shown == [(row["device"], row["model"], row["quant"].lower(), row["reason_unused"]) for row in unused]
    assert all(reason for *_, reason in shown)


def test_other_rules_are_shown_with_their_errors(tables: dict[str, list[list[str]]]) -> None:
    memory = {row[0].lower(): row[1:] for row in tables["Memory by each rule"]}
    for row in compare_memory():
        names = ("sum of parts, GB", "llavakit", "catalogue", "llmfit", "whichllm")
        assert memory[row["type"]] == [str(row[name] or "-") for name in names]
    errors = [abs(r["predicted"] / r["measured"] - 1) for r in load_calibration()["residuals"]["decode"]]
    speed = {row[0]: row[1:] for row in tables["Speed by each rule"]}
    assert speed["answers, llavakit"] == [str(len(errors)), f"{fmean(errors):.1%}", f"{max(errors):.1%}"]
    works = [work for row in list_rows() if (work := decode_work(row)) is not None]
    rules = load_proof()["speed_rules"]
    assert len(rules) == 2
    for row in rules:
        factor = float(row["rule"].split(", ")[-1])
        of_rule = [abs(factor * work.measured_s / work.ideal_s - 1) for work in works]
        assert speed[f"answers, bandwidth over size, {row['rule']}"] == [str(len(works)), row["mean"], row["worst"]]
        assert float(row["mean"].rstrip("%")) == pytest.approx(100 * fmean(of_rule), abs=1), _NEW


@pytest.mark.parametrize(("kind", "title"), [("decode", "Answers"), ("prompt", "Prompts")])
def test_every_residual_says_how_many_others_it_was_fitted_to(
    tables: dict[str, list[list[str]]], kind: str, title: str
) -> None:
    found = load_calibration()["residuals"][kind]
    assert sorted((r["device"], str(r["num_others"])) for r in found) == sorted((r[0], r[7]) for r in tables[title])
