"""Guessing what follows by looking it up: answers that quote the prompt, or themselves, are mostly guessed right.

A guess costs little, since a pass over a few tokens reads the same weights as a pass over one, and it changes nothing:
a token is chosen from its own logits in any case, and the guess only says which further logits are worth computing.
Source: prompt lookup decoding (Saxena, 2023); speculative decoding (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence

from llavakit.scheduling.blocks import PositionKey

__all__ = ["Drafter"]

_LONGEST, _SHORTEST = 4, 2
# Guesses that were right lately, of those that were made: below this share a guess needs a longer match.
_GOOD_SHARE = 0.4
_MEMORY = 0.8


class Drafter:
    """Guesses for one sequence.

    Parameters
    ----------
    max_tokens : int
        Longest guess.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._share = _GOOD_SHARE
        self._num_rests = 0

    def guess(self, keys: Sequence[PositionKey], *, max_tokens: int) -> tuple[int, ...]:
        """Return the tokens that followed the latest earlier occurrence of the last ones; pictures match nothing."""
        room = min(self._max_tokens, max_tokens)
        if room < 1 or self._is_resting():
            return ()
        shortest = _SHORTEST if self._share >= _GOOD_SHARE else _LONGEST
        for length in range(_LONGEST, shortest - 1, -1):
            tail = list(keys[-length:])
            if len(keys) <= length or not all(isinstance(key, int) for key in tail):
                continue
            for start in range(len(keys) - length - 1, -1, -1):
                if keys[start] == tail[0] and list(keys[start : start + length]) == tail:
                    return _leading_tokens(keys[start + length : start + length + room])
        return ()

    def learn(self, *, num_guessed: int, num_right: int) -> None:
        """Take note of how a guess turned out."""
        self._share = _MEMORY * self._share + (1 - _MEMORY) * num_right / num_guessed
        if self._share < _GOOD_SHARE / 4:
            self._num_rests = 16

    def _is_resting(self) -> bool:
        if self._num_rests == 0:
            return False
        self._num_rests -= 1
        if self._num_rests == 0:
            self._share = _GOOD_SHARE / 2
        return True


def _leading_tokens(keys: Sequence[PositionKey]) -> tuple[int, ...]:
    tokens = []
    for key in keys:
        if not isinstance(key, int):
            break
        tokens.append(key)
    return tuple(tokens)
