"""Which device: the best one for a budget and a need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llavakit.planner.candidates import Candidate, Need, filter_candidates, sort_candidates
from llavakit.planner.limits import explain_nothing

__all__ = ["Choice", "choose_best"]


@dataclass(frozen=True)
class Choice:
    """The best device, those after it, and why; ``best`` is None where nothing meets the need."""

    best: Candidate | None
    runners_up: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    advice: str | None


def choose_best(candidates: Sequence[Candidate], need: Need) -> Choice:
    """Choose: among devices that meet the need, the fastest; of nearly equal ones (10 %) the cheapest.

    The cheapest of all for an engine whose speeds are not known. Devices whose speed is a guess come after all others.

    Servers' accelerators are left out unless asked for by class: nobody puts one into a desktop.
    """
    servers = [] if need.kinds else [c for c in candidates if c.device.kind == "datacentre"]
    if servers:
        candidates = [c for c in candidates if c.device.kind != "datacentre"]
    meeting = filter_candidates(candidates, need)
    if not meeting:
        advice = explain_nothing(candidates, need, has_servers=not servers)
        if count := len(filter_candidates(servers, need)):
            advice += f" {count} servers' {'card meets' if count == 1 else 'cards meet'} it: see --kind datacentre."
        return Choice(None, (), (), advice)
    has_speeds = any(candidate.plan.speed is not None for candidate in meeting)
    ranked = [candidate for candidate in meeting if not candidate.is_guess] or meeting
    fastest = max(candidate.tokens_per_s for candidate in ranked)
    near = [candidate for candidate in ranked if candidate.tokens_per_s >= 0.9 * fastest]
    best = min(near, key=lambda c: (c.price_usd or float("inf"), -c.tokens_per_s, c.device.memory_gib))
    key = "price" if not has_speeds else "value" if need.budget_usd else "speed"
    # More memory makes a chip no faster: one size of each is enough beside the best.
    others: dict[str, Candidate] = {}
    for candidate in sorted(sort_candidates(meeting, key), key=lambda c: c.is_guess):
        if candidate.device.row_name != best.device.row_name:
            others.setdefault(candidate.device.row_name, candidate)
    return Choice(best, tuple(others.values())[:4], tuple(_reasons(best, meeting, need)), None)


def _reasons(best: Candidate, meeting: Sequence[Candidate], need: Need) -> list[str]:
    speed = best.plan.speed
    reasons = []
    if speed is not None:
        guess = ", a guess" if speed.is_guess else ""
        reasons.append(
            f"{speed.decode.value:.0f} tokens a second ({speed.decode.low:.0f} to {speed.decode.high:.0f}{guess}): "
            f"{best.device.bandwidth_gb_s:.0f} GB/s of memory bandwidth, and answers are bound by that"
        )
    reasons.append(
        f"{best.plan.needed_bytes / 1e9:.1f} GB are needed of the {best.plan.room_bytes / 1e9:.1f} GB to be had on it; "
        f"the largest context that fits is {best.plan.largest_context}"
    )
    if best.plan.verdict == "tight":
        reasons.append("that is tight: a desktop on the same device may take what is left")
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
    faster = [c for c in meeting if c.is_guess and not best.is_guess and c.tokens_per_s > best.tokens_per_s]
    if faster:
        most = max(faster, key=lambda c: c.tokens_per_s)
        reasons.append(
            f"{most.device.name} may be faster, but its speed is a guess, and guesses come after what was measured"
        )
    return reasons
