"""Why no device meets what is asked, and which comes nearest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from llavakit.planner.candidates import Candidate, Need, filter_candidates

__all__ = ["explain_nothing"]


@dataclass(frozen=True)
class _Limit:
    """One limit of a need, and what devices have to set against it.

    Attributes
    ----------
    need : Need
        This limit and no other.
    words, asked : str
        The limit as a condition, and as a demand.
    figure : callable
        What a candidate has, None where it is not known.
    sign : {1, -1}
        1 where more is better.
    nearest : str
        The device that comes nearest: has places for ``which``, ``name`` and ``figure``.
    unknown : str
        What is not known where there is no figure.
    """

    need: Need
    words: str
    asked: str
    figure: Callable[[Candidate], float | None]
    sign: int
    nearest: str
    unknown: str


def _limits(need: Need) -> list[_Limit]:
    limits = []
    if (dollars := need.budget_usd) is not None:
        limits.append(
            _Limit(
                Need(budget_usd=dollars), f"within {_plain(dollars)} dollars", f"{_plain(dollars)} dollars are allowed",
                lambda c: c.price_usd, -1, "the cheapest{which} is {name} at {figure} dollars", "price",
            )
        )  # fmt: skip
    if (tokens := need.min_tokens_per_s) is not None:
        limits.append(
            _Limit(
                Need(min_tokens_per_s=tokens), f"with at least {_plain(tokens)} tokens a second",
                f"{_plain(tokens)} are asked for", lambda c: c.tokens_per_s, 1,
                "the fastest{which} is {name} with {figure} tokens a second", "speed",
            )
        )  # fmt: skip
    if (images := need.min_images_per_hour) is not None:
        limits.append(
            _Limit(
                Need(min_images_per_hour=images), f"with at least {_plain(images)} pictures an hour",
                f"{_plain(images)} are asked for", lambda c: c.images_per_hour, 1,
                "the fastest{which} is {name} with {figure} pictures an hour", "speed",
            )
        )  # fmt: skip
    if (watts := need.max_watts) is not None:
        limits.append(
            _Limit(
                Need(max_watts=watts), f"with at most {_plain(watts)} W", f"{_plain(watts)} W are allowed",
                lambda c: c.device.watts, -1, "the most frugal{which} is {name} with {figure} W", "power",
            )
        )  # fmt: skip
    return limits


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _meeting(candidates: Sequence[Candidate], limits: Iterable[_Limit]) -> list[Candidate]:
    found = list(candidates)
    for limit in limits:
        found = filter_candidates(found, limit.need)
    return found


def _nearest(limit: _Limit, candidates: Sequence[Candidate], which: str) -> str:
    """Say which device comes nearest to a limit that none of them meets."""
    known = [(figure, c) for c in candidates if (figure := limit.figure(c)) is not None]
    if not known:
        hint = "; say what one costs with --price" if limit.need.budget_usd is not None else ""
        return f"no {limit.unknown} is known of any device that runs it{hint}"
    unpriced = float("inf")
    figure, best = max(known, key=lambda pair: (limit.sign * pair[0], -(pair[1].price_usd or unpriced)))
    # Rounded down, so that a speed just under what was asked for does not look like it.
    shown = math.floor(10 * figure) / 10 if limit.sign > 0 else figure
    text = limit.nearest.format(which=which, name=best.device.name, figure=_plain(shown))
    missing = len(candidates) - len(known)
    return f"{text} (no {limit.unknown} is known of {missing} others)" if missing else text


def _explain_limits(candidates: Sequence[Candidate], need: Need, *, has_servers: bool) -> str:
    """Say which limits no device meets, alone or at once, and for each what is nearest where the others are kept."""
    limits = _limits(need)
    groups = [group for count in range(1, len(limits) + 1) for group in combinations(limits, count)]
    failing = [group for group in groups if not _meeting(candidates, group)]
    which = f" device of {'this kind' if need.kinds or need.vendors else 'the table'} for it"
    which += "" if has_servers else ", servers' cards left out,"
    sentences = []
    for group in (group for group in failing if len(group) == len(failing[0])):
        if len(group) == 1:
            sentences.append(f"{_nearest(group[0], candidates, which)}, and {group[0].asked}")
            continue
        for limit in reversed(group):
            kept = [other for other in group if other is not limit]
            conditions = " and ".join(other.words for other in kept)
            sentences.append(f"{conditions} {_nearest(limit, _meeting(candidates, kept), '')}")
    return f"{'; '.join(sentences)}."


def explain_nothing(candidates: Sequence[Candidate], need: Need, *, has_servers: bool = True) -> str:
    """Say why none of the devices that run a model meets a need, and what would help.

    Parameters
    ----------
    candidates : sequence of Candidate
    need : Need
    has_servers : bool, default True
        Whether servers' cards are among the candidates; where they were left out, sentences about the table say so.
    """
    if not candidates:
        return "no single device holds it as asked. A smaller quantization or context, or several devices, will."
    of_kind = filter_candidates(candidates, Need(kinds=need.kinds, vendors=need.vendors))
    if not of_kind:
        wanted = " ".join((*need.kinds, *need.vendors))
        return f"{len(candidates)} devices of the table run it, and none of them is what was asked for: {wanted}."
    if need.budget_usd is not None and not any(c.price_usd for c in of_kind):
        return "no device of this kind has a list price; say what one costs with --price, or leave --budget out."
    has_speeds = any(c.plan.speed is not None for c in of_kind)
    wants_speed = need.min_tokens_per_s is not None or need.min_images_per_hour is not None
    if wants_speed and not has_speeds:
        return (
            f"no speeds are known of {of_kind[0].plan.setting.engine}, so none can be asked for; leave out "
            "--min-tokens-per-s and --min-images-per-hour."
        )
    return _explain_limits(of_kind, need, has_servers=has_servers)
