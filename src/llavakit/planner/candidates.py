"""Devices that can run a model, each with its plan and its price; what is asked of them, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llavakit.core.errors import ConfigError
from llavakit.planner.devices import Device, find_device, list_sold_devices
from llavakit.planner.machine import assumed_host
from llavakit.planner.models import PlannedModel
from llavakit.planner.plans import Plan, make_plan, why_unplanned
from llavakit.planner.records import Setting

__all__ = ["Candidate", "Need", "filter_candidates", "frontier", "list_candidates", "sort_candidates"]

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
    def is_guess(self) -> bool:
        """Whether its speed is one: too few devices of its kind were measured."""
        return self.plan.speed is not None and self.plan.speed.is_guess

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
            "usable_bytes": self.plan.room_bytes, "headroom_bytes": self.plan.headroom_bytes,
            "largest_context": self.plan.largest_context,
            "tokens_per_s": None if speed is None else speed.decode.value,
            "tokens_per_s_low": None if speed is None else speed.decode.low,
            "tokens_per_s_high": None if speed is None else speed.decode.high,
            "is_guess": self.is_guess,
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
