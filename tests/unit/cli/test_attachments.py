from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.cli.attachments import IMAGE_SUFFIXES, find_attachments, split_sources, starts_with_file
from llavakit.core.errors import ImageSourceError


@pytest.mark.parametrize(
    ("line", "text", "sources"),
    [
        ("a.png what is this?", "what is this?", ["a.png"]),
        ("what is this? ./a.png", "what is this?", ["./a.png"]),
        ("compare a.png and b.jpg please", "compare and please", ["a.png", "b.jpg"]),
        ("what is in a.png?", "what is in?", ["a.png"]),
        ("look at a.png, then answer", "look at then answer", ["a.png"]),
        ("'my cat.png' what?", "what?", ["my cat.png"]),
        ('what is "my cat.png"', "what is", ["my cat.png"]),
        (r"my\ cat.png what?", "what?", ["my cat.png"]),
        ("./my cat.png what?", "what?", ["./my cat.png"]),
        ("a.png", "", ["a.png"]),
        ("./no_suffix what?", "what?", ["./no_suffix"]),
        ("what is ./no_suffix", "what is", ["./no_suffix"]),
        ("./notes what?", "what?", ["./notes"]),
        ("https://example.com/x/cat.JPG?size=3 what?", "what?", ["https://example.com/x/cat.JPG?size=3"]),
        ("what is https://example.com/cat.webp?", "what is", ["https://example.com/cat.webp"]),
        ("http://127.0.0.1:8765/ok How many?", "How many?", ["http://127.0.0.1:8765/ok"]),
        ("  'HTTPS://example.com/view?id=3', what?", "what?", ["HTTPS://example.com/view?id=3"]),
        ("https://example.com/page", "", ["https://example.com/page"]),
        ("https://example.com/1 or https://example.com/2?", "or https://example.com/2?", ["https://example.com/1"]),
        ("see data:image/png;base64,AAAA there", "see there", ["data:image/png;base64,AAAA"]),
    ],
)
def test_find_attachments_when_pictures_are_named_then_they_are_taken_out(
    pictures_here: Path, line: str, text: str, sources: list[str]
) -> None:
    assert find_attachments(line) == (text, sources)


@pytest.mark.parametrize(
    "line",
    [
        "how many red circles are there?",
        "red is a file here, and a word",
        "notes is a file here",
        "what does ./notes say?",
        "read https://example.com/page and ftp://example.com/a.png",
        "it's what we don't know: \"quotes\" and 'more'",
        "is a .png better than a .jpg?",
        "   leading,  and   inner spaces stay ",
        "an open 'quote stays",
        "1.5 < 2, e.g. this",
    ],
)
def test_find_attachments_when_no_picture_is_named_then_the_line_is_unchanged(pictures_here: Path, line: str) -> None:
    assert find_attachments(line) == (line, [])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("what is cta.png?", "cta.png"),
        ("/tmp/not/there/cat.JPEG what?", "/tmp/not/there/cat.JPEG"),
        ("'not my cat.webp' what?", "not my cat.webp"),
        ("file:///not/there.png", "file:///not/there.png"),
        ("file://otherhost/a.png", "file://otherhost/a.png"),
    ],
)
def test_find_attachments_when_the_file_is_missing_then_the_error_names_it(
    pictures_here: Path, line: str, name: str
) -> None:
    with pytest.raises(ImageSourceError, match="there is no picture") as caught:
        find_attachments(line)
    assert repr(name) in str(caught.value)


def test_find_attachments_when_a_file_url_has_escapes_then_the_path_is_decoded(picture: Path) -> None:
    assert find_attachments(f"{picture.as_uri()} what?") == ("what?", [str(picture)])


_names = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("C", "Z")) | st.just(" "),
    min_size=1,
    max_size=20,
).map(lambda name: f"x{name}x.png")


@given(name=_names)
def test_find_attachments_when_a_shell_quoted_the_path_then_it_is_found(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    file = tmp_path_factory.mktemp("names") / name
    file.write_bytes(b"anything")
    assert find_attachments(f"{shlex.quote(str(file))} what?") == ("what?", [str(file)])


@given(st.text(max_size=80))
def test_find_attachments_when_given_anything_then_it_answers_or_raises_our_error(line: str) -> None:
    try:
        text, sources = find_attachments(line)
    except ImageSourceError:
        assert any(suffix in line.lower() for suffix in IMAGE_SUFFIXES) or "file:" in line.lower()
    else:
        assert sources or text == line


def test_starts_with_file_when_a_file_has_the_name_of_a_command_then_it_wins(pictures_here: Path) -> None:
    assert starts_with_file(f"{pictures_here}/a.png what?")
    assert starts_with_file(f"{pictures_here}/my cat.png what?")
    assert starts_with_file(f"{pictures_here}/notes what?")
    assert not starts_with_file(f"{pictures_here} what?")
    assert not starts_with_file("/help")
    assert not starts_with_file("")


@pytest.mark.parametrize(
    ("argument", "sources"),
    [
        ("a.png", ["a.png"]),
        ("my cat.png", ["my cat.png"]),
        (r"my\ cat.png", ["my cat.png"]),
        ("a.png b.jpg", ["a.png", "b.jpg"]),
        ("'my cat.png' a.png", ["my cat.png", "a.png"]),
        ("/not there/cat.png", ["/not there/cat.png"]),
        ("https://example.com/1 https://example.com/2", ["https://example.com/1", "https://example.com/2"]),
    ],
)
def test_split_sources_when_given_words_then_paths_with_spaces_stay_whole(
    pictures_here: Path, argument: str, sources: list[str]
) -> None:
    assert split_sources(argument) == sources
