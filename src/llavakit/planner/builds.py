"""Whole machines: a GPU and the cheapest parts that carry it, each with its reason.

Rules: the power supply gives 1.3 times the rated power of GPU and processor and 75 W more; the memory holds the model's
file and 8 GB, and no less than the GPU; the drive holds the file twice and 60 GB; the case is as deep as the card is
long and has as many slots as it takes. Parts are in ``data/parts.csv``, at list prices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llavakit.planner.candidates import Candidate, Need, filter_candidates, list_candidates, sort_candidates
from llavakit.planner.devices import Device, read_rows
from llavakit.planner.limits import explain_nothing
from llavakit.planner.models import PlannedModel
from llavakit.planner.records import Setting

__all__ = ["Build", "BuildPart", "plan_build"]

_GB = 1e9
_CARD_KINDS = ("consumer", "workstation")
_HOURS_A_MONTH = 730
_POWER_FACTOR, _BOARD_WATTS = 1.3, 75
_SYSTEM_GB, _SPARE_MEMORY_GB = 60, 8
_WORTH_IT = 1.15  # a gain in speed that is worth changing a card for
# Of a card whose length, or whose number of slots, is not known: coolers of large ones take three.
_CARD_LENGTH_MM = 300.0
_CARD_SLOTS, _LARGE_CARD_SLOTS = 2.0, 3.0
_LARGE_CARD_WATTS = 250


@dataclass(frozen=True)
class BuildPart:
    """One part and why it is there.

    Attributes
    ----------
    price_year : int or None
        Of a list price; None of one that the user gave.
    """

    kind: str
    name: str
    price_usd: float
    price_year: int | None
    reason: str
    source: str


@dataclass(frozen=True)
class Build:
    """A machine.

    Attributes
    ----------
    load_watts, idle_watts : float
        Of the whole machine.
    monthly_kwh : float
        With the hours of work a day that were asked for, idle otherwise.
    noise : str
        Of its loudest part.
    upgrade_first : str
    """

    candidate: Candidate
    parts: tuple[BuildPart, ...]
    price_usd: float
    load_watts: float
    idle_watts: float
    monthly_kwh: float
    noise: str
    upgrade_first: str

    def to_dict(self) -> dict[str, Any]:
        """Return the build as JSON's types."""
        return {
            "device": self.candidate.to_dict(),
            "parts": [vars(part) for part in self.parts],
            "price_usd": self.price_usd,
            "load_watts": self.load_watts,
            "idle_watts": self.idle_watts,
            "monthly_kwh": self.monthly_kwh,
            "noise": self.noise,
            "upgrade_first": self.upgrade_first,
        }


_Row = dict[str, str]
# A card, its parts with the reason of each, and what all of it costs.
_Machine = tuple[Candidate, list[tuple[_Row, str]], float]


def _price(row: _Row) -> float:
    return float(row["price_usd"])


def _cheapest(rows: Iterable[_Row], keep: Callable[[_Row], bool]) -> _Row | None:
    return min((row for row in rows if keep(row)), key=_price, default=None)


def _suits(row: _Row, socket: str) -> bool:
    return row["socket"] in ("", "any") or socket in row["socket"].split("|")


def _compose(candidate: Candidate, file_bytes: int, rows: list[_Row]) -> list[tuple[_Row, str]] | None:
    """Find the cheapest machine around a card, over all processors; None if no parts carry it."""
    best: list[tuple[_Row, str]] | None = None
    for cpu in (row for row in rows if row["kind"] == "cpu"):
        parts = _around(cpu, candidate.device, file_bytes, rows)
        if parts is not None and (best is None or _sum(parts) < _sum(best)):
            best = parts
    return best


def _sum(parts: list[tuple[_Row, str]]) -> float:
    return sum(_price(row) for row, _ in parts)


def _around(cpu: _Row, device: Device, file_bytes: int, rows: list[_Row]) -> list[tuple[_Row, str]] | None:
    file_gb = file_bytes / _GB
    memory_gb = max(file_gb + _SPARE_MEMORY_GB, device.memory_gib)
    drive_gb = 2 * file_gb + _SYSTEM_GB
    watts = _POWER_FACTOR * ((device.watts or 0) + float(cpu["load_w"] or 0) + _BOARD_WATTS)
    length, slots, size = _room(device)

    def of(kind: str) -> list[_Row]:
        return [row for row in rows if row["kind"] == kind]

    board = _cheapest(of("board"), lambda row: _suits(row, cpu["socket"]) and float(row["capacity"] or 0) >= memory_gb)
    if board is None:
        return None
    found = [
        (cpu, "feeds the GPU; answers do not wait for it"),
        (board, f"takes the processor and one card, up to {board['capacity']} GB"),
        (
            _cheapest(
                of("memory"), lambda r: r["memory_kind"] == board["memory_kind"] and float(r["capacity"]) >= memory_gb
            ),
            f"the model's file of {file_gb:.1f} GB and 8 GB beside it, and no less than the card has",
        ),
        (
            _cheapest(of("storage"), lambda r: float(r["capacity"]) >= drive_gb),
            f"the file twice, for an update beside the old one, and {_SYSTEM_GB} GB",
        ),
        (
            _cheapest(of("psu"), lambda r: float(r["capacity"]) >= watts),
            f"{device.watts or 0:.0f} W of the card and {cpu['load_w']} W of the processor, with 30 % to spare",
        ),
        (
            _cheapest(
                of("case"), lambda r: float(r["max_gpu_length_mm"]) >= length and float(r["num_gpu_slots"]) >= slots
            ),
            f"holds a card of {size}",
        ),
        (
            _cheapest(
                of("cooler"), lambda r: _suits(r, cpu["socket"]) and float(r["capacity"]) >= float(cpu["load_w"] or 0)
            ),
            f"cools {cpu['load_w']} W",
        ),
    ]
    return [(row, reason) for row, reason in found if row is not None] if all(row for row, _ in found) else None


def _room(device: Device) -> tuple[float, float, str]:
    """Return a card's length in millimetres, the slots that it takes, and both in words, with what is assumed."""
    length = device.length_mm or _CARD_LENGTH_MM
    slots = device.slots or (_LARGE_CARD_SLOTS if (device.watts or 0) >= _LARGE_CARD_WATTS else _CARD_SLOTS)
    assumed = [name for name, known in (("length", device.length_mm), ("slots", device.slots)) if not known]
    words = f"{length:.0f} mm and {slots:g} slots"
    return length, slots, f"{words}, {' and '.join(assumed)} assumed" if assumed else words


def _explain_no_card(running: Sequence[Candidate], cards: Sequence[Candidate], need: Need) -> str:
    """Say why there is no card to put a machine around."""
    if need.kinds and not set(need.kinds) & set(_CARD_KINDS):
        return (
            f"machines are put together around {' and '.join(_CARD_KINDS)} cards alone, and {', '.join(need.kinds)} "
            "was asked for; `llavakit best` and `gpus` know such devices."
        )
    if not cards:
        others = f", though {len(running)} devices of other kinds do (`llavakit gpus`)" if running else ""
        return (
            f"no single {' or '.join(_CARD_KINDS)} card holds the model as asked{others}; take a smaller quantization "
            "or context."
        )
    return explain_nothing(cards, need)


def plan_build(
    model: PlannedModel,
    quant: str,
    setting: Setting,
    *,
    budget_usd: float,
    need: Need | None = None,
    hours_a_day: float = 2.0,
    prices: dict[str, float] | None = None,
) -> tuple[Build | None, str | None]:
    """Choose the fastest machine within a budget; cards whose speed is a guess come after all others.

    Returns
    -------
    (Build or None, str or None)
        The machine; or None, and what would help.
    """
    need = need or Need()
    running = list_candidates(model, quant, setting, prices=prices)
    cards = [candidate for candidate in running if candidate.device.kind in _CARD_KINDS]
    meeting = filter_candidates(cards, need)
    if not meeting:
        return None, _explain_no_card(running, cards, need)
    priced = [candidate for candidate in meeting if candidate.price_usd]
    if not priced:
        return None, f"none of the {len(meeting)} cards for it has a list price; say what one costs with --price."
    machines = _machines([candidate for candidate in cards if candidate.price_usd])
    names = {candidate.device.name for candidate in priced}
    composed = [entry for entry in machines if entry[0].device.name in names]
    affordable = [entry for entry in composed if entry[2] <= budget_usd]
    if not affordable:
        if not composed:
            return None, f"no parts of the table carry any of the {len(priced)} cards for it."
        cheapest = min(composed, key=lambda entry: entry[2])
        which = "for it" if need == Need() else "that meets the rest"
        return (
            None,
            f"the cheapest machine with a graphics card {which} costs {cheapest[2]:.0f} dollars, with "
            f"{cheapest[0].device.name}. `llavakit fits` says whether this machine runs it without one.",
        )
    ranked = [entry for entry in affordable if not entry[0].is_guess] or affordable
    fastest = ranked[0][0].tokens_per_s
    near = [entry for entry in ranked if entry[0].tokens_per_s >= 0.95 * fastest]
    candidate, parts, price = min(near, key=lambda entry: entry[2])
    return _finish(candidate, parts, price, hours_a_day, _upgrade(candidate, composed, machines)), None


def _machines(cards: Sequence[Candidate]) -> list[_Machine]:
    """Put the cheapest machine around every card that parts carry, the fastest card first."""
    rows = read_rows("parts.csv")
    found = []
    for card in sort_candidates(cards, "speed"):
        sizes = card.plan.quant
        parts = _compose(card, sizes.language_bytes + sizes.vision_bytes, rows)
        if parts is not None:
            found.append((card, parts, (card.price_usd or 0) + _sum(parts)))
    return found


def _upgrade(card: Candidate, meeting: Sequence[_Machine], machines: Sequence[_Machine]) -> str:
    """Say which card is worth changing to: one that meets the need, or else one that there is."""
    if card.plan.speed is None:
        return f"no speeds are known of {card.plan.setting.engine}, so nothing can be said of faster cards"

    def cheapest_faster(machines: Sequence[_Machine]) -> str | None:
        faster = [
            (price, other.device.name, other.tokens_per_s / card.tokens_per_s)
            for other, _, price in machines
            if other.tokens_per_s > _WORTH_IT * card.tokens_per_s and other.is_guess <= card.is_guess
        ]
        if not faster:
            return None
        price, name, ratio = min(faster)
        return f"{name} answers {ratio - 1:.0%} faster, in a machine for {price:.0f} dollars"

    if text := cheapest_faster(meeting):
        return f"the card: {text}"
    if text := cheapest_faster(machines):
        return f"no card that meets what was asked is faster by more than 15 %; of the others, {text}"
    return "no desktop card with a price is faster by more than 15 %"


def _part(row: _Row, reason: str) -> BuildPart:
    why = f"{reason}; {row['note']}" if row["note"] else reason
    return BuildPart(row["kind"], row["name"], _price(row), int(row["price_year"]), why, row["source"])


def _finish(
    candidate: Candidate,
    parts: list[tuple[_Row, str]],
    price: float,
    hours_a_day: float,
    upgrade: str,
) -> Build:
    device = candidate.device
    load = (device.watts or 0) + sum(float(row["load_w"] or 0) for row, _ in parts)
    idle = device.numbers.idle_watts + sum(float(row["idle_w"] or 0) for row, _ in parts)
    share = hours_a_day / 24
    levels = ("silent", "quiet", "audible")
    noise = max((row["noise_class"] for row, _ in parts if row["noise_class"]), key=levels.index, default="audible")
    if (device.watts or 0) >= 250:
        noise = "audible"
    speed = candidate.plan.speed
    plan = candidate.plan
    reason = f"{plan.needed_bytes / _GB:.1f} GB are needed of the {plan.room_bytes / _GB:.1f} GB to be had on it"
    if plan.verdict == "tight":
        reason += ", which is tight: a desktop on it may take the rest"
    if speed is not None:
        reason += f"; about {speed.decode.value:.0f} tokens a second"
    card = BuildPart("gpu", device.name, candidate.price_usd or 0, candidate.price_year, reason, device.source)
    return Build(
        candidate=candidate,
        parts=(card, *(_part(row, why) for row, why in parts)),
        price_usd=price,
        load_watts=load,
        idle_watts=idle,
        monthly_kwh=_HOURS_A_MONTH * (load * share + idle * (1 - share)) / 1000,
        noise=noise,
        upgrade_first=upgrade,
    )
