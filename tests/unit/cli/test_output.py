from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.cli.answer_writer import AnswerWriter
from llavakit.cli.console import Console, printable
from llavakit.cli.tables import print_table
from llavakit.cli.timing_line import timing_line
from llavakit.core.types import FinishReason, GenerationResult, SamplingParams, Timings
from tests.unit.cli.streams import Stream, make_console


def _screen(written: str) -> list[str]:
    """Apply the few cursor movements that the writer uses."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[\d*[A-Z]|.|\n", written, flags=re.DOTALL):
        if token == "\n":
            lines.append("")
            column = 0
        elif token.endswith("D") and token[0] == "\x1b":
            column -= int(token[2:-1])
        elif token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + token
            column += 1
    return lines


def test_answer_writer_when_the_answer_is_long_then_words_move_to_the_next_line_whole() -> None:
    console = make_console(is_terminal=True, environ={"COLUMNS": "20"})
    writer = AnswerWriter(console)
    for piece in ("The quick br", "own fox jumps", " over the la", "zy dog."):
        writer.push(piece)
    writer.finish()
    assert [line.rstrip() for line in _screen(console.stdout.getvalue())] == [
        "The quick brown fox", "jumps over the lazy", "dog.", "",
    ]  # fmt: skip


@given(st.lists(st.text(alphabet="abc \n", max_size=30), max_size=8))
def test_answer_writer_when_on_a_terminal_then_no_line_is_too_wide_and_no_word_is_lost(pieces: list[str]) -> None:
    console = make_console(is_terminal=True, environ={"COLUMNS": "20"})
    writer = AnswerWriter(console)
    for piece in pieces:
        writer.push(piece)
    screen = _screen(console.stdout.getvalue())
    assert all(len(line) <= 20 for line in screen)
    text = "".join(pieces)
    if all(len(word) < 19 for word in text.split()):
        assert " ".join(screen).split() == text.split()
    assert "".join("".join(screen).split()) == "".join(text.split())


@given(st.lists(st.text(max_size=20), max_size=5))
def test_answer_writer_when_not_on_a_terminal_then_the_text_is_unchanged(pieces: list[str]) -> None:
    console = make_console()
    writer = AnswerWriter(console)
    for piece in pieces:
        writer.push(piece)
    writer.finish()
    text = "".join(pieces)
    assert console.stdout.getvalue() == (text if text.endswith("\n") else f"{text}\n")


def test_answer_writer_when_an_answer_holds_escapes_then_a_terminal_does_not_see_them() -> None:
    console = make_console(is_terminal=True, environ={"COLUMNS": "200"})
    writer = AnswerWriter(console)
    writer.push("a\x1b]0;title\x07b\x9b2Jc\rd")
    assert console.stdout.getvalue() == "a]0;titleb2Jcd"


def test_printable_keeps_newlines_and_text() -> None:
    assert printable("a\tb\nc\x00\x7fé漢") == "a\tb\ncé漢"


def test_console_when_no_color_is_set_then_nothing_is_styled() -> None:
    assert make_console(is_terminal=True).styled("x", "red") == "\x1b[31mx\x1b[0m"
    assert make_console(is_terminal=True, environ={"NO_COLOR": "1"}).styled("x", "red") == "x"
    assert make_console(is_terminal=True, environ={"TERM": "dumb"}).styled("x", "red") == "x"
    assert make_console().styled("x", "red") == "x"


def test_console_error_is_one_line_in_a_file_and_broken_at_words_on_a_terminal() -> None:
    console = make_console()
    console.error("code", "first\nsecond " + "word " * 30)
    assert console.stderr.getvalue().count("\n") == 1
    console = make_console(is_terminal=True, environ={"COLUMNS": "30", "NO_COLOR": "1"})
    console.error("code", "word " * 30)
    lines = console.stderr.getvalue().splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 29 and line.strip(" ").split(" ")[-1] in ("word", "") for line in lines)


def test_console_when_a_stream_is_closed_then_it_is_no_terminal(tmp_path: Path) -> None:
    file = (tmp_path / "closed").open("w+")
    file.close()
    assert not Console(stdin=file, stdout=Stream(), stderr=Stream()).is_input_terminal


def _result(reason: FinishReason = FinishReason.STOP, **timings: float) -> GenerationResult:
    return GenerationResult(text="x", token_ids=(1,), finish_reason=reason, timings=Timings(**timings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            _result(
                image_decode_s=0.0021, image_resize_s=0.0034, image_encode_s=1.234, num_images=1, num_images_encoded=1,
                num_prompt_tokens=620, prefill_s=2.0, num_generated_tokens=9, decode_s=2.0,
            ),
            "image: decode 2.1 ms, resize 3.4 ms, encode 1.23 s | prompt 620 tokens, 310 tokens/s | "
            "answer 9 tokens, 4 tokens/s",
        ),
        (
            _result(
                num_images=2, num_images_encoded=1, image_encode_s=0.05, num_prompt_tokens=700, num_cached_tokens=600,
                prefill_s=1.0, num_generated_tokens=1,
            ),
            "2 images: decode 0.0 ms, resize 0.0 ms, encode 50 ms (1 encoded before) | "
            "prompt 700 tokens, 600 cached, 100 tokens/s | answer 1 token",
        ),
        (
            _result(FinishReason.LENGTH, num_images=1, num_prompt_tokens=1, num_generated_tokens=512, decode_s=9999.0),
            "image: decode 0.0 ms, resize 0.0 ms, encoded before | prompt 1 token | answer 512 tokens, "
            "0.051 tokens/s | cut at max_new_tokens=512",
        ),
        (
            _result(FinishReason.LENGTH, num_prompt_tokens=2036, num_generated_tokens=12),
            "prompt 2036 tokens | answer 12 tokens | cut: the context of 2048 tokens is full",
        ),
        (  # a server that leaves the numbers out
            _result(FinishReason.LENGTH),
            "prompt 0 tokens | answer 0 tokens | cut at max_new_tokens=512",
        ),
        (_result(FinishReason.CANCELLED), "prompt 0 tokens | answer 0 tokens | stopped"),
    ],
)  # fmt: skip
def test_timing_line(result: GenerationResult, line: str) -> None:
    assert timing_line(result, SamplingParams()) == line


_TABLE = (
    [("device", "left"), ("needed", "right"), ("verdict", "left"), ("tokens/s", "right"), ("note", "left")],
    [("GeForce RTX 4090", "12.6 GB", "fits", "93 (83 to 104)", "two words"), ("Arc A770", "12.4 GB", "tight", "-", "")],
)


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_print_table_when_the_terminal_is_narrow_then_no_word_is_broken(columns: int) -> None:
    console = make_console(is_terminal=True, environ={"COLUMNS": str(columns), "NO_COLOR": "1"})
    print_table(console, *_TABLE)
    out = console.stdout.getvalue()
    words = out.split()
    for heading, _ in _TABLE[0]:
        assert set(heading.split()) <= set(words)
    for row in _TABLE[1]:
        assert {word for cell in row for word in cell.split()} <= set(words)
    if columns >= 40:
        assert max(map(len, out.splitlines())) <= columns


def test_print_table_when_columns_are_optional_then_a_narrow_terminal_does_without_the_first_of_them() -> None:
    shown = {}
    for columns in (80, 40, 20):
        console = make_console(is_terminal=True, environ={"COLUMNS": str(columns), "NO_COLOR": "1"})
        print_table(console, *_TABLE, optional=("note", "verdict"))
        shown[columns] = [heading for heading, _ in _TABLE[0] if heading in console.stdout.getvalue()]
    assert shown[80] == shown[20] == [heading for heading, _ in _TABLE[0]]  # a list has room for all
    assert shown[40] == ["device", "needed", "verdict", "tokens/s"]
