"""Pieces of a stream that are put together from ready parts are those that would be written one by one."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from llavakit.server.framing import TextFrame, chat_chunk, sse


@given(text=st.text(), model=st.text(max_size=20), idx=st.integers(0, 9))
def test_a_filled_frame_is_the_whole_event(text: str, model: str, idx: int) -> None:
    def event(content: str) -> bytes:
        return sse(chat_chunk("chatcmpl-1", model, 7, idx=idx, delta={"content": content}, finish=None))

    assert TextFrame(event).fill(text) == event(text)
    assert json.loads(TextFrame(event).fill(text)[6:])["choices"][0]["delta"]["content"] == text
