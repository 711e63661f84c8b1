"""The scripts behind `make`: what they print can be typed, what they generate is legible."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llavakit.core.types import SamplingParams
from tools.demo import build_command, normalize, show_command
from tools.make_docs import describe, find_public_methods
from tools.size_table import find_long_functions


@pytest.mark.parametrize(
    "question",
    ["How many red circles are there?", 'Which word says "stop"?', "Is it $5 or `6`?", "It's a test!", "a\\b"],
)
def test_shown_command_is_the_command_that_runs(question: str) -> None:
    command = build_command(question, "examples/my shapes.png")
    assert shlex.split(show_command(command)) == command


def test_shown_command_reads_as_in_the_readme() -> None:
    shown = show_command(build_command("How many red circles are there?", "examples/shapes.png"))
    assert shown == 'llavakit run llava:tiny "How many red circles are there?" --image examples/shapes.png'


def test_answers_are_compared_by_their_words() -> None:
    assert normalize("Three.\n") == normalize(" three")
    assert normalize("three") != normalize("two")


def test_signatures_are_shown_without_quotation_marks() -> None:
    text = describe("SamplingParams", SamplingParams)
    assert text.startswith(
        "SamplingParams(*, max_new_tokens: int = 512, min_new_tokens: int = 0, temperature: float = 0.0, "
    )
    assert find_public_methods(SamplingParams) == ["is_greedy"]


def test_long_functions_are_found() -> None:
    body = "\n".join(["    x = 1"] * 60)
    source = f"def short():\n    pass\n\n\ndef long():\n{body}\n"
    assert find_long_functions(Path("file.py"), source) == [(61, "file.py:5 long")]
