"""Which device: all that can run a model, and the best one for a budget and a need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from llavakit.core.errors import ConfigError
from llavakit.planner.devices import Device, find_device, list_sold_devices
from llavakit.planner.machine import assumed_host
from llavakit.planner.models import PlannedModel
from llavakit.planner.plans import Plan, make_plan, why_unplanned
from llavakit.planner.records import Setting

__all__ = [
    "Candidate",
    "Choice",
    "Need",
    "choose_best",
    "explain_nothing",
    "frontier",
    "list_candidates",
    "sort_candidates",
]

SortKey = Literal["memory", "price", "speed", "value"]
_RUNNING = ("fits", "tight")


@dataclass(frozen=True)
class Candidate:
    """A device with its plan and its price.

    Attributes
    ----------
    device : Device
    plan : Plan
    price_usd : float or None
        The list price unless the user gave another.
    price_year : int or None
        Of a list price; None of one that the user gave.
    """

    device: Device
    plan: Plan
    price_usd: float | None
    price_year: int | None

    @property
    def tokens_per_s(self) -> float:
        """Estimated speed of answers."""
        return 0.0 if self.plan.speed is None else self.plan.speed.decode.value

    @property
    def images_per_hour(self) -> float | None:
        """Estimated number of pictures that are asked about in an hour, one after another."""
        return None if self.plan.speed is None else self.plan.speed.images_per_hour

    @property
    def value(self) -> float:
        """Tokens per second for a thousand dollars; 0 without a price."""
        return 1000 * self.tokens_per_s / self.price_usd if self.price_usd else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what a table row needs, as JSON's types."""
        speed = self.plan.speed
        return {
            "device": self.device.name, "class": self.device.kind, "memory_gib": self.device.memory_gib,
            "quant": self.plan.quant.name,
            "verdict": self.plan.verdict, "needed_bytes": self.plan.needed_bytes,
            "headroom_bytes": self.plan.headroom_bytes, "largest_context": self.plan.largest_context,
            "tokens_per_s": None if speed is None else speed.decode.value,
            "tokens_per_s_low": None if speed is None else speed.decode.low,
            "tokens_per_s_high": None if speed is None else speed.decode.high,
            "first_token_s": None if speed is None else speed.first_token_s,
            "images_per_hour": self.images_per_hour,
            "price_usd": self.price_usd, "price_year": self.price_year, "watts": self.device.watts,
            "year": self.device.year, "confidence": self.device.confidence, "source": self.device.source,
            "warnings": list(self.plan.warnings),
        }  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What a device must do.

    Attributes
    ----------
    budget_usd, min_tokens_per_s, min_images_per_hour, max_watts : float or None
    kinds : tuple of str
        Classes of devices; empty for all.
    vendors : tuple of str
    """

    budget_usd: float | None = None
    min_tokens_per_s: float | None = None
    min_images_per_hour: float | None = None
    max_watts: float | None = None
    kinds: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The best device, those after it, and why; ``best`` is None where nothing meets the need."""

    best: Candidate | None
    runners_up: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    advice: str | None


def list_candidates(
    model: PlannedModel,
    quant: str,
    setting: Setting,
    *,
    prices: dict[str, float] | None = None,
    has_partial: bool = False,
) -> list[Candidate]:
    """Plan for every device of the table, in every size that was sold, and keep those that run the model.

    Parameters
    ----------
    model : PlannedModel
    quant : str
    setting : Setting
    prices : mapping from device name to dollars, optional
        What devices cost today, with the memory size of those that were sold in several; list prices are used for the
        others.
    has_partial : bool, default False
        Keep devices that hold only some layers, too.

    Raises
    ------
    ConfigError
        If a price is of no device of the table, or does not say of which size.
    """
    kept = (*_RUNNING, "partly") if has_partial else _RUNNING
    priced = [(_find_sized(name), price) for name, price in (prices or {}).items()]
    own = {device.name: price for device, price in priced}
    found = []
    # A processor's sizes are listed only where one is priced.
    for device in {
        device.name: device for device in (*list_sold_devices(), *(device for device, _ in priced))
    }.values():
        if why_unplanned(setting.engine, device):
            continue
        devices = [] if device.backend == "cpu" else [device]
        plan = make_plan(model, quant, setting, devices, assumed_host([device]), has_advice=False)
        if plan.verdict in kept and len(plan.devices) == len(devices):
            is_own = device.name in own
            price, year = (own[device.name], None) if is_own else (device.price_usd, device.price_year)
            found.append(Candidate(device, plan, price, year))
    return found


def _find_sized(name: str) -> Device:
    device = find_device(name)
    if device.is_size_open:
        sizes = ", ".join(f"{size:g}" for size in device.sizes_gib)
        raise ConfigError(
            f"the price of {name[:60]!r} does not say of which memory size: {device.name} was sold with {sizes} GB. "
            f"Name one, as in '{name[:60]} {device.sizes_gib[0]:g}GB'."
        )
    return device


def _within(value: float | None, limit: float | None) -> bool:
    return limit is None or (value is not None and value <= limit)


def filter_candidates(candidates: Iterable[Candidate], need: Need) -> list[Candidate]:
    """Keep what meets a need; a device without a price meets no budget, and one of unknown power no limit of it."""

    def meets(candidate: Candidate) -> bool:
        return (
            _within(candidate.price_usd, need.budget_usd)
            and (need.min_tokens_per_s is None or candidate.tokens_per_s >= need.min_tokens_per_s)
            and (need.min_images_per_hour is None or (candidate.images_per_hour or 0.0) >= need.min_images_per_hour)
            and _within(candidate.device.watts, need.max_watts)
            and (not need.kinds or candidate.device.kind in need.kinds)
            and (not need.vendors or candidate.device.vendor.lower() in need.vendors)
        )

    return [candidate for candidate in candidates if meets(candidate)]


def sort_candidates(candidates: Sequence[Candidate], key: str) -> list[Candidate]:
    """Order by least memory, lowest price, highest speed, or most speed for the price.

    Raises
    ------
    ConfigError
        If the key is none of these.
    """
    unpriced = float("inf")
    orders = {
        "memory": lambda c: (c.device.memory_gib, -c.tokens_per_s),
        "price": lambda c: (c.price_usd or unpriced, -c.tokens_per_s),
        "speed": lambda c: (-c.tokens_per_s, c.price_usd or unpriced),
        "value": lambda c: (-c.value, c.price_usd or unpriced),
    }
    if key not in orders:
        raise ConfigError(f"sorting by {key[:30]!r} is not known; use {', '.join(orders)}.")
    return sorted(candidates, key=orders[key])


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return devices that no other beats in both price and speed, the cheapest first."""
    best: list[Candidate] = []
    for candidate in sort_candidates([c for c in candidates if c.price_usd], "price"):
        if not best or candidate.tokens_per_s > best[-1].tokens_per_s:
            best.append(candidate)
    return best


def choose_best(candidates: Sequence[Candidate], need: Need) -> Choice:
    """Choose: among devices that meet the need, the fastest; of nearly equal ones (10 %) the cheapest.

    The cheapest of all for an engine whose speeds are not known.

    Servers' accelerators are left out unless asked for by class: nobody puts one into a desktop.
    """
    if not need.kinds:
        candidates = [c for c in candidates if c.device.kind != "datacentre"]
    meeting = filter_candidates(candidates, need)
    if not meeting:
        return Choice(None, (), (), explain_nothing(candidates, need))
    has_speeds = any(candidate.plan.speed is not None for candidate in meeting)
    fastest = max(candidate.tokens_per_s for candidate in meeting)
    near = [candidate for candidate in meeting if candidate.tokens_per_s >= 0.9 * fastest]
    best = min(near, key=lambda c: (c.price_usd or float("inf"), -c.tokens_per_s, c.device.memory_gib))
    key = "price" if not has_speeds else "value" if need.budget_usd else "speed"
    # More memory makes a chip no faster: one size of each is enough beside the best.
    others: dict[str, Candidate] = {}
    for candidate in sort_candidates(meeting, key):
        if candidate.device.row_name != best.device.row_name:
            others.setdefault(candidate.device.row_name, candidate)
    return Choice(best, tuple(others.values())[:4], tuple(_reasons(best, meeting, need)), None)


def _reasons(best: Candidate, meeting: Sequence[Candidate], need: Need) -> list[str]:
    speed = best.plan.speed
    reasons = []
    if speed is not None:
        reasons.append(
            f"{speed.decode.value:.0f} tokens a second ({speed.decode.low:.0f} to {speed.decode.high:.0f}): "
            f"{best.device.bandwidth_gb_s:.0f} GB/s of memory bandwidth, and answers are bound by that"
        )
    reasons.append(
        f"{best.plan.needed_bytes / 1e9:.1f} GB of its {best.device.memory_gib:g} GiB are needed; the largest context "
        f"that fits is {best.plan.largest_context}"
    )
    if best.price_usd is not None:
        year = f" (list price of {best.price_year})" if best.price_year is not None else ""
        reasons.append(f"{best.price_usd:.0f} dollars{year}")
    if speed is None:
        reasons.append(
            f"no speeds are known of {best.plan.setting.engine}: of the {len(meeting)} devices that hold it and meet "
            "the need, this is the cheapest"
        )
    elif len(meeting) > 1 and need.budget_usd is not None:
        reasons.append(
            f"{len(meeting)} devices meet the need; this is the cheapest of those within 10 % of the fastest"
        )
    return reasons


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


def _explain_limits(candidates: Sequence[Candidate], need: Need) -> str:
    """Say which limits no device meets, alone or at once, and for each what is nearest where the others are kept."""
    limits = _limits(need)
    groups = [group for count in range(1, len(limits) + 1) for group in combinations(limits, count)]
    failing = [group for group in groups if not _meeting(candidates, group)]
    which = f" device of {'this kind' if need.kinds or need.vendors else 'the table'} for it"
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


def explain_nothing(candidates: Sequence[Candidate], need: Need) -> str:
    """Say why none of the devices that run a model meets a need, and what would help."""
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
    return _explain_limits(of_kind, need)
