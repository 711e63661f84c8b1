"""How many positions of prompts go into a step beside running answers: learned from how long steps take.

In: how many tokens of answers and positions of prompts each step had, and its seconds. Out: a number of positions, so
that a step with them takes no more than a given multiple of what a step would take in which everybody that runs is
answering. It fits any model and machine, and needs no clock of its own. Until enough is known it gives no number.
"""

from __future__ import annotations

__all__ = ["Pace"]

# Weight of the newest measurement, if it is less or more than believed: what disturbs a step only makes it longer.
_WEIGHT_LESS, _WEIGHT_MORE = 0.5, 0.1
# Fewer positions of prompts say little about what one of them takes.
_MIN_LEARNED_POSITIONS = 16
# Matrix products are made for so many rows at a time; a step that fills them wastes nothing.
_TILE_ROWS = 16
# Fewer rows than this cost much more each: they are not worth being polite for.
_MIN_ROWS = 32
_MAX_PICTURE_S = 0.2


class Pace:
    """What steps take.

    Parameters
    ----------
    max_slowdown : float
        A step with prompts and pictures may take so many times as long as one in which all that run are answering.
    """

    def __init__(self, max_slowdown: float) -> None:
        self._max_slowdown = max_slowdown
        self._answering_s: dict[int, float] = {}  # of steps with answers only, by their tokens
        self._position_s: float | None = None  # that a prompt's position adds

    def learn(self, *, num_answering: int, num_prompt: int, seconds: float) -> None:
        """Take note of a pass over tokens of answers and positions of prompts."""
        if not num_prompt:
            if num_answering:
                self._answering_s[num_answering] = _mix(self._answering_s.get(num_answering), seconds)
            return
        if num_prompt < _MIN_LEARNED_POSITIONS:
            return
        others_s = self._estimate(num_answering) if num_answering else 0.0
        if others_s is not None and seconds > others_s:
            self._position_s = _mix(self._position_s, (seconds - others_s) / num_prompt)

    def allowance_s(self, num_running: int) -> float | None:
        """Seconds a step may take while somebody answers; None if that is not known yet."""
        whole_s = self._estimate(num_running)
        return None if whole_s is None else self._max_slowdown * whole_s

    def picture_s(self, num_running: int) -> float:
        """Seconds of a step that a picture may be encoded for while somebody answers."""
        allowance_s = self.allowance_s(num_running)
        return _MAX_PICTURE_S if allowance_s is None else min(_MAX_PICTURE_S, allowance_s / 4)

    def num_prompt(self, *, num_running: int, num_answering: int, with_picture: bool) -> int | None:
        """Positions of prompts that go beside ``num_answering`` tokens of answers; None if that is not known yet."""
        allowance_s, others_s = self.allowance_s(num_running), self._estimate(num_answering)
        if allowance_s is None or others_s is None or self._position_s is None:
            return None
        left_s = allowance_s - others_s - (self.picture_s(num_running) if with_picture else 0.0)
        num_rows = max(_MIN_ROWS, num_answering + int(left_s / self._position_s))
        return max(_TILE_ROWS, num_rows // _TILE_ROWS * _TILE_ROWS - num_answering)

    def _estimate(self, num_answering: int) -> float | None:
        """Seconds of a step with so many tokens of answers, from the nearest numbers that were seen."""
        known = self._answering_s
        below = max((n for n in known if n <= num_answering), default=None)
        above = min((n for n in known if n >= num_answering), default=None)
        if below is None:
            return None if above is None else known[above]
        if above is None:
            # While prompts wait there are no steps with all answers only; each adds about what a position adds.
            return known[below] + (num_answering - below) * (self._position_s or 0.0)
        if below == above:
            return known[below]
        share = (num_answering - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


def _mix(old: float | None, new: float) -> float:
    if old is None:
        return new
    return old + (_WEIGHT_LESS if new < old else _WEIGHT_MORE) * (new - old)
