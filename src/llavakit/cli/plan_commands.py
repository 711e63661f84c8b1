"""``llavakit plan``, ``fits``, ``gpus``, ``best`` and ``build``: ask the planner and print what it says."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from llavakit.cli.console import Console
from llavakit.cli.plan_arguments import DEFAULT_MODEL, PLAN_BUILDERS
from llavakit.cli.plan_tables import (
    print_build,
    print_candidates,
    print_card,
    print_choice,
    print_listed,
    print_plan,
    print_warnings,
)
from llavakit.core.errors import ConfigError, LlavakitError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from llavakit.planner.candidates import Candidate, Need
    from llavakit.planner.devices import Device
    from llavakit.planner.models import PlannedModel
    from llavakit.planner.plans import Plan
    from llavakit.planner.records import Setting

__all__ = ["COMMANDS"]

_EXIT_DOES_NOT_FIT = 1
_MAX_MEMORY_GB = 1 << 20
_MEASURING_SECONDS = 1.0
# Options that measuring on a processor has no use for.
_NOT_VERIFIED = ("overwrite", "flash_attention", "gpu_layers", "vision_on_cpu", "kwh_price")


def plan(options: argparse.Namespace, console: Console) -> int:
    """Print the model's card, write the pages, or measure."""
    from llavakit.planner.card import make_card
    from llavakit.planner.models import find_model

    _refuse_without_effect(options)
    if options.html is not None:
        return _write_pages(options, console)
    model = find_model(options.model or DEFAULT_MODEL)
    setting = make_setting(options, model)
    if options.verify:
        return _verify(options, console, model, setting)
    kwh_price = _kwh_price(options)
    if not options.offline:
        console.status("asking the Hub")
    try:
        card = make_card(model, setting, quant=options.quant, is_online=not options.offline)
    finally:
        console.status("")
    cheapest = _cheapest(model, options.quant, setting)
    if options.json:
        example = None if cheapest is None else _with_energy(cheapest.to_dict(), cheapest.plan, kwh_price)
        console.line(json.dumps({**card.to_dict(), "cheapest_device": example}, ensure_ascii=False))
    else:
        print_card(card, console, cheapest=cheapest, kwh_price=kwh_price)
    return 0


def _cheapest(model: PlannedModel, quant: str, setting: Setting) -> Candidate | None:
    """Return the cheapest device that holds a model with room to spare and whose speed is no guess."""
    from llavakit.planner.candidates import list_candidates, sort_candidates

    holding = [
        candidate
        for candidate in list_candidates(model, quant, setting)
        if candidate.price_usd and candidate.plan.verdict == "fits" and not candidate.is_guess
    ]
    return sort_candidates(holding, "price")[0] if holding else None


def _kwh_price(options: argparse.Namespace) -> float:
    _positive(options.kwh_price, "kwh-price")
    return float(options.kwh_price)


def _with_energy(row: dict[str, Any], found: Plan, kwh_price: float) -> dict[str, Any]:
    """Return a row of JSON with the energy of a thousand pictures and what it costs."""
    from llavakit.planner.energy import energy_of

    return {**row, **asdict(energy_of(found.speed, kwh_price))}


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """Refuse options of another of the command's three uses than is asked for."""
    parser = PLAN_BUILDERS["plan"]()
    given = sorted(name for name, value in vars(options).items() if value != parser.get_default(name))
    if options.html is not None:
        ignored = [name for name in given if name not in ("html", "overwrite", "json", "debug")]
        what, hint = "--html writes pages of all models and settings", "; the page has fields for what is to be planned"
    elif options.verify:
        ignored = [name for name in given if name in _NOT_VERIFIED]
        what, hint = "--verify measures llavakit on this processor", ""
    else:
        ignored = [name for name in given if name in ("overwrite", "threads")]
        what, hint = (
            "the card is neither measured nor written",
            "; --threads is for --verify and --overwrite for --html",
        )
    if ignored:
        words = ["MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in ignored]
        them = "it" if len(words) == 1 else "them"
        raise ConfigError(f"{what}, and {', '.join(words)} would have no effect. Leave {them} out{hint}.")


def _write_pages(options: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from llavakit.planner.site import write_site

    folder = Path(options.html)
    written = write_site(folder, is_overwrite_allowed=options.overwrite)
    if options.json:
        console.line(json.dumps({"folder": str(folder), "num_files": len(written), "index": str(written[0])}))
    else:
        console.line(f"{len(written)} files are in {folder}. Open {written[0]} in a browser.")
    return 0


def _verify(options: argparse.Namespace, console: Console, model: PlannedModel, setting: Setting) -> int:
    from llavakit.cli.loading import set_threads
    from llavakit.cli.plan_tables import print_verification
    from llavakit.cli.progress import show_stage
    from llavakit.diagnostics.plan_check import check_plan

    set_threads(options.threads)
    setting = setting if options.engine else replace(setting, engine="llavakit")
    try:
        report = check_plan(model, options.quant, setting, num_threads=options.threads, on_progress=show_stage(console))
    finally:
        console.status("")
    if options.json:
        console.line(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        print_verification(report, console)
    return 0


def fits(options: argparse.Namespace, console: Console) -> int:
    """Print a verdict; the exit status is 1 where it does not fit."""
    from llavakit.planner.machine import assumed_host, detect_machine
    from llavakit.planner.models import find_model
    from llavakit.planner.plans import make_plan

    model = find_model(options.model)
    setting = make_setting(options, model)
    kwh_price = _kwh_price(options)
    devices, notes = _devices(options)
    is_here = devices is None
    memory_gib = _positive(options.host_memory_gb, "host-memory-gb")
    if devices is None:
        machine = detect_machine()
        devices, host, notes = list(machine.gpus), machine.host, list(machine.notes)
        if not devices:
            host = _measure_host(host, console, notes)
            setting = setting if options.engine else replace(setting, engine="llavakit")
        if machine.available_bytes is not None and machine.available_bytes < 0.5 * machine.host.numbers.memory_bytes:
            notes.append(f"only {machine.available_bytes / 1e9:.1f} GB of memory are free just now")
    else:
        host = assumed_host(devices)
        if devices[0].backend == "cpu":  # a processor is the host, and has no device beside it
            devices = []
            setting = setting if options.engine else replace(setting, engine="llavakit")
    if memory_gib is not None:
        host = _resized(host, devices, memory_gib)
    found = make_plan(model, options.quant, setting, devices, host)
    notes += _power_notes(found) if is_here else []
    found = replace(found, warnings=(*found.warnings, *notes))
    if options.json:
        console.line(json.dumps(_with_energy(found.to_dict(), found, kwh_price), ensure_ascii=False))
    else:
        print_plan(found, console, kwh_price=kwh_price)
    return 0 if found.verdict in ("fits", "tight") else _EXIT_DOES_NOT_FIT


def _power_notes(found: Plan) -> list[str]:
    """Say that a desktop's power stands for this machine's, which nothing tells."""
    if found.speed is None or found.speed.joules_per_image is None or any(d.is_shared for d in found.devices):
        return []
    power = found.host.numbers
    watts = f"{power.idle_watts:.0f} W beside the GPU" if found.devices else f"{power.watts:.0f} W"
    return [f"energy is counted with the {watts} of an ordinary desktop; what this machine takes is not known"]


def _resized(host: Device, devices: list[Device], memory_gib: float) -> Device:
    """Return the computer around devices with another memory; a chip's own cannot be told apart from it."""
    if chip := next((device for device in devices if device.is_shared), None):
        raise ConfigError(
            f"--host-memory-gb is {memory_gib:g}, but {chip.name} has one memory for itself and its processor. Leave "
            "the option out; a size that was sold can be named with the device, as in 'M2 16GB'."
        )
    return replace(host, memory_gib=memory_gib)


def _measure_host(host: Device, console: Console, notes: list[str]) -> Device:
    from llavakit.kernels.machine import measure_machine
    from llavakit.planner.machine import measured_host

    console.status("measuring this machine")
    try:
        return measured_host(host, measure_machine(_MEASURING_SECONDS))
    except LlavakitError as error:  # no native library, or no memory for it
        notes.append(f"bandwidth and arithmetic are assumed, since they could not be measured: {error}")
        return host
    finally:
        console.status("")


def _positive(value: float | None, name: str) -> float | None:
    if value is not None and not (math.isfinite(value) and 0 < value <= _MAX_MEMORY_GB):
        raise ConfigError(f"{name} is {value}; it must be above 0 and at most {_MAX_MEMORY_GB}.")
    return value


def _devices(options: argparse.Namespace) -> tuple[list[Device] | None, list[str]]:
    """Devices that are named or described; None for this machine's own."""
    from llavakit.planner.devices import describe_device, find_devices

    memory, bandwidth = options.memory_gb, options.bandwidth_gb_s
    if options.gpu is not None:
        if memory is not None or bandwidth is not None:
            raise ConfigError(
                "--gpu names a device and --memory-gb or --bandwidth-gb-s describes one; give one of them."
            )
        found = find_devices(" + ".join(options.gpu))
        return _sized(found, options)
    if memory is None and bandwidth is None:
        return None, []
    if memory is None or bandwidth is None:
        raise ConfigError("a device that is described needs both --memory-gb and --bandwidth-gb-s.")
    return [describe_device(memory, bandwidth)], [
        "arithmetic and power of the described GPU are assumed to be those of an RTX 3060, the one scaled with the "
        "bandwidth, the other with its square root"
    ]


def _sized(devices: list[Device], options: argparse.Namespace) -> tuple[list[Device], list[str]]:
    """Devices with a size each, and of every one whose size was left open which one was taken."""
    notes = {}
    for device in devices:
        if not device.is_size_open:
            continue
        sizes, taken = ", ".join(f"{size:g}" for size in device.sizes_gib), f"{device.memory_gib:g}"
        if device.backend != "cpu":
            notes[device.name] = (
                f"{device.name} was sold with {sizes} GB, and {taken} GB are assumed; a size can be named, as in "
                f"'{device.name} {device.sizes_gib[0]:g}GB'"
            )
        elif options.host_memory_gb is None:
            notes[device.name] = f"{taken} GB of memory are assumed, the most that is usual; see --host-memory-gb"
    named = [d.with_size(d.memory_gib) if d.is_size_open and d.backend != "cpu" else d for d in devices]
    return named, list(notes.values())


def gpus(options: argparse.Namespace, console: Console) -> int:
    """Print all devices that run a model."""
    from llavakit.planner.candidates import filter_candidates, sort_candidates
    from llavakit.planner.limits import explain_nothing

    running, need = _candidates(options, has_partial=options.partly), _need(options)
    ordered, kwh_price = sort_candidates(filter_candidates(running, need), options.sort), _kwh_price(options)
    if options.json:
        for candidate in ordered:
            row = _with_energy(candidate.to_dict(), candidate.plan, kwh_price)
            console.line(json.dumps(row, ensure_ascii=False))
        if not ordered:
            console.note(f"No device is listed: {explain_nothing(running, need)}")
        return 0
    if not ordered:
        console.line(f"No device is listed: {explain_nothing(running, need)}")
    else:
        print_listed(ordered, console)
        print_candidates(ordered, console, kwh_price=kwh_price)
        print_warnings([candidate.plan for candidate in ordered], console)
    _note_left_out(options, need, console)
    return 0


def _note_left_out(options: argparse.Namespace, need: Need, console: Console) -> None:
    """Say which devices of what is wanted the engine is not planned on, and why."""
    from llavakit.planner.devices import list_devices
    from llavakit.planner.plans import why_unplanned

    reasons = [
        reason
        for device in list_devices()
        if (not need.kinds or device.kind in need.kinds)
        and (not need.vendors or device.vendor.lower() in need.vendors)
        and (reason := why_unplanned(_engine(options), device))
    ]
    if reasons:
        console.note(f"note: left out ({len(reasons)} in all): {reasons[0]}", style="yellow")


def best(options: argparse.Namespace, console: Console) -> int:
    """Print the best device; the exit status is 1 where there is none."""
    from llavakit.planner.choose import choose_best

    need, kwh_price = _need(options), _kwh_price(options)
    choice = choose_best(_candidates(options, has_partial=False), need)
    if options.json:
        content = {
            "best": None if choice.best is None else _with_energy(choice.best.to_dict(), choice.best.plan, kwh_price),
            "runners_up": [_with_energy(c.to_dict(), c.plan, kwh_price) for c in choice.runners_up],
            "reasons": list(choice.reasons),
            "advice": choice.advice,
        }
        console.line(json.dumps(content, ensure_ascii=False))
    elif choice.best is None:
        console.line(f"Nothing meets this: {choice.advice}")
    else:
        print_choice(choice.best, choice, console, kwh_price=kwh_price)
    if not options.json:
        _note_left_out(options, need, console)
    return 0 if choice.best is not None else _EXIT_DOES_NOT_FIT


def build(options: argparse.Namespace, console: Console) -> int:
    """Print a machine; the exit status is 1 where the budget holds none."""
    from llavakit.planner.builds import plan_build
    from llavakit.planner.models import find_model

    if not 0 < options.hours_a_day <= 24:
        raise ConfigError(f"hours-a-day is {options.hours_a_day}; it must be above 0 and at most 24.")
    _positive(options.budget, "budget")
    kwh_price = _kwh_price(options)
    model = find_model(options.model)
    found, advice = plan_build(
        model,
        options.quant,
        make_setting(options, model),
        budget_usd=options.budget,
        need=replace(_need(options), budget_usd=None),
        hours_a_day=options.hours_a_day,
        prices=_prices(options),
    )
    if options.json:
        console.line(
            json.dumps({"build": None if found is None else found.to_dict(), "advice": advice}, ensure_ascii=False)
        )
    elif found is None:
        console.line(f"Not for {options.budget:.0f} dollars: {advice}")
    else:
        print_build(found, console, kwh_price=kwh_price)
        print_warnings([found.candidate.plan], console)
    return 0 if found is not None else _EXIT_DOES_NOT_FIT


def _candidates(options: argparse.Namespace, *, has_partial: bool) -> list[Candidate]:
    from llavakit.planner.candidates import list_candidates
    from llavakit.planner.models import find_model

    model = find_model(options.model)
    setting = make_setting(options, model)
    return list_candidates(model, options.quant, setting, prices=_prices(options), has_partial=has_partial)


def _need(options: argparse.Namespace) -> Need:
    from llavakit.planner.candidates import Need
    from llavakit.planner.devices import list_devices

    limits = {
        name: _positive(getattr(options, name), name.replace("_", "-"))
        for name in ("budget", "min_tokens_per_s", "min_images_per_hour", "max_watts")
    }
    if limits["min_images_per_hour"] is not None and options.images == 0:
        raise ConfigError(
            f"--min-images-per-hour is {limits['min_images_per_hour']:g}, but no pictures are planned: --images is 0. "
            "Leave one of them out."
        )
    vendors = {device.vendor.lower() for device in list_devices()}
    asked = tuple(name.lower() for name in options.vendor or ())
    if unknown := [name for name in asked if name not in vendors]:
        raise ConfigError(f"vendor {unknown[0]!r} is not known; the vendors are {', '.join(sorted(vendors))}.")
    return Need(
        budget_usd=limits["budget"],
        min_tokens_per_s=limits["min_tokens_per_s"],
        min_images_per_hour=limits["min_images_per_hour"],
        max_watts=limits["max_watts"],
        kinds=tuple(options.kind or ()),
        vendors=asked,
    )


def _prices(options: argparse.Namespace) -> dict[str, float]:
    prices = {}
    for text in options.price or ():
        name, _, dollars = text.rpartition("=")
        try:
            price = float(dollars)
        except ValueError:
            price = math.nan
        if not name or not (math.isfinite(price) and price > 0):
            raise ConfigError(f"--price {text[:60]!r} is not DEVICE=DOLLARS, such as 'RTX 3090=700'.")
        prices[name] = price
    return prices


def _engine(options: argparse.Namespace) -> str:
    return (options.engine or "llama.cpp").lower()


def make_setting(options: argparse.Namespace, model: PlannedModel) -> Setting:
    """Turn a command's options into a setting."""
    from llavakit.planner.records import KV_BLOCK_BYTES, Setting

    sizes = model.sizes
    return Setting(
        engine=_engine(options),
        num_context_tokens=sizes.max_context_tokens if options.context is None else options.context,
        num_parallel=options.parallel,
        num_images=options.images,
        num_visual_tokens=sizes.num_image_tokens if options.visual_tokens is None else options.visual_tokens,
        num_text_tokens=options.text_tokens,
        num_new_tokens=options.new_tokens,
        kv_block_bytes=KV_BLOCK_BYTES[options.kv_type],
        has_flash_attention=options.flash_attention,
        num_device_layers=sizes.num_layers + 1 if options.gpu_layers is None else options.gpu_layers,
        is_vision_on_device=not options.vision_on_cpu,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "plan": plan,
    "fits": fits,
    "gpus": gpus,
    "best": best,
    "build": build,
}
