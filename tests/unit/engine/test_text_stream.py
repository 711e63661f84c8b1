"""Text that is shown must be whole and must never contain a piece of a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llavakit.engine.text_stream import StopStrings, TextStream

_TEXT = st.text(alphabet="abcé ", max_size=30)


class _Letters:
    """A decoder whose token i is character i."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


def _cut_at_first_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The slow, obvious answer: grow the text until it holds a stop string, then cut there."""
    for end in range(1, len(text) + 1):
        starts = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(_TEXT, st.lists(st.text(alphabet="abcé ", min_size=1, max_size=4), max_size=4).map(tuple))
def test_stream_equals_cutting_the_whole_text(text: str, stops: tuple[str, ...]) -> None:
    stream = TextStream(_Letters(), stops)
    is_stopped = False
    shown = ""
    for char in text:
        piece, is_stopped = stream.push(ord(char))
        shown += piece
        # What was shown can never be taken back.
        assert _cut_at_first_stop(text, stops)[0].startswith(shown)
        if is_stopped:
            break
    if not is_stopped:
        shown += stream.finish()
    assert (shown, is_stopped) == _cut_at_first_stop(text, stops)
    assert stream.text == shown


def test_stop_string_inside_one_piece_cuts_before_the_earliest() -> None:
    stops = StopStrings(("world", "lo"))
    assert stops.push("hello world") == ("hel", True)


def test_half_a_stop_string_is_held_back_and_released() -> None:
    stops = StopStrings(("END",))
    assert stops.push("the E") == ("the ", False)
    assert stops.push("N") == ("", False)
    assert stops.push("T") == ("ENT", False)
    assert stops.finish() == ""
