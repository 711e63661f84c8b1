"""From token ids to text that is safe to show: whole characters only, and never a piece of a stop string."""

from __future__ import annotations

from typing import Protocol

__all__ = ["StopStrings", "TextStream", "TokenDecoder"]


class TokenDecoder(Protocol):
    """Incremental detokenizer that holds back incomplete characters."""

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is certain now."""

    def finish(self) -> str:
        """Return what was held back, decoded as well as it can be."""


class StopStrings:
    """Finds the first stop string in a stream of text pieces.

    Text is released as soon as it cannot be the beginning of a stop string.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece; return the text that may be shown, and whether a stop string was met."""
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            shown, self._held = self._held[: min(starts)], ""
            return shown, True
        keep = self._num_held_back()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """Return what was held back: it turned out not to be a stop string."""
        shown, self._held = self._held, ""
        return shown

    def _num_held_back(self) -> int:
        longest = max((len(stop) for stop in self._stops), default=0)
        for size in range(min(longest - 1, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0


class TextStream:
    """Decoder and stop strings together: one answer's text."""

    def __init__(self, decoder: TokenDecoder, stops: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stops)
        self._pieces: list[str] = []

    def push(self, token_id: int) -> tuple[str, bool]:
        """Take a token; return new text to show and whether a stop string ended the answer."""
        shown, is_stopped = self._stops.push(self._decoder.push(token_id))
        self._pieces.append(shown)
        return shown, is_stopped

    def finish(self) -> str:
        """End the answer without a stop string; return the rest of its text."""
        shown, is_stopped = self._stops.push(self._decoder.finish())
        if not is_stopped:
            shown += self._stops.finish()
        self._pieces.append(shown)
        return shown

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._pieces)
