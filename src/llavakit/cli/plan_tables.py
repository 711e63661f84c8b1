"""What the planner's commands print: tables, and one plain sentence that says what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llavakit.cli.console import Console
from llavakit.cli.progress import human_bytes
from llavakit.cli.tables import print_pairs, print_table

if TYPE_CHECKING:
    from llavakit.diagnostics.plan_check import PlanCheck
    from llavakit.planner.builds import Build
    from llavakit.planner.candidates import Candidate
    from llavakit.planner.card import Card
    from llavakit.planner.choose import Choice
    from llavakit.planner.plans import Plan, Range, Speed
    from llavakit.planner.records import Setting

__all__ = [
    "print_build", "print_candidates", "print_card", "print_choice", "print_listed", "print_plan", "print_verification",
    "print_warnings",
]  # fmt: skip

_BASIS = {
    "exact": "from shapes",
    "logged": "formula of logged sizes",
    "fitted": "fitted",
    "measured": "measured",
    "assumed": "assumed",
}
_STARS = {"high": "", "medium": " *", "low": " **"}


def _speed(found: Range) -> str:
    digits = 1 if found.value < 20 else 0
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def print_plan(plan: Plan, console: Console, *, kwh_price: float) -> None:
    """Print a verdict, what is behind it, and what to do."""
    console.line(_sentence(plan))
    console.line()
    places = [device.name for device in plan.devices[: len(plan.totals) - 1]]
    if len(plan.totals) > len(places) + 1:
        places.append(plan.host.name)
    rows = []
    for place, name in [*enumerate(places), (-1, f"host: {plan.host.name}")]:
        found = [part for part in plan.parts if part.place == place]
        if not found:
            continue
        rows += [
            (name if idx == 0 else "", part.name, human_bytes(part.bytes), _BASIS[part.basis])
            for idx, part in enumerate(found)
        ]
        total, usable = plan.totals[place], plan.usable[place]
        rows.append(("", "all of it", human_bytes(total), f"of {human_bytes(usable)} to be had"))
    print_table(console, [("where", "left"), ("what", "left"), ("bytes", "right"), ("how it is known", "left")], rows)
    console.line()
    print_pairs(console, _plan_pairs(plan, kwh_price))
    print_warnings([plan], console)


def _plan_pairs(plan: Plan, kwh_price: float) -> list[tuple[str, str]]:
    setting = plan.setting
    flash = ""
    if setting.engine in ("llama.cpp", "ollama"):
        flash = f", flash attention {'on' if setting.has_flash_attention else 'off'}"
    pairs = [
        (
            "setting",
            f"{plan.quant.name.upper()}, {setting.engine}, context {setting.num_context_tokens:,}, "
            f"{setting.num_parallel} at a time{flash}",
        ),
        ("largest context", _largest_context(plan)),
    ]
    if plan.devices and setting.engine in ("llama.cpp", "ollama"):
        pairs.append(("layers on devices", f"up to {plan.device_layers} of {plan.model.sizes.num_layers + 1}"))
    if plan.speed is not None:
        pairs += _speed_pairs(plan.speed, setting, kwh_price)
    return pairs


def _largest_context(plan: Plan) -> str:
    if not plan.largest_context:
        return "none that holds the prompt fits"
    is_own = plan.largest_context == plan.model.sizes.max_context_tokens
    return f"{plan.largest_context:,} tokens" + (
        ", as many as the model was trained for; more is not tried" if is_own else ""
    )


def _speed_pairs(speed: Speed, setting: Setting, kwh_price: float) -> list[tuple[str, str]]:
    first = _seconds(speed.first_token_s)
    if setting.num_images:
        first += f": picture {_seconds(speed.image_s)}, vision tower {_seconds(speed.vision_s)}, the rest is the prompt"
    if setting.num_parallel > 1:
        first += f"; of {setting.num_parallel} prompts that come at once, the last waits for all"
    pairs = [
        ("answers", f"{_speed(speed.decode)} tokens a second; {_speed(speed.decode_full)} at the full context"),
        ("prompts", f"{_speed(speed.prompt)} tokens a second"),
        ("first token", first),
    ]
    if speed.images_per_hour is not None and speed.joules_per_image is not None:
        pairs.append(
            (
                "pictures",
                f"{speed.images_per_hour:,.0f} an hour, {speed.joules_per_image:.0f} J each; "
                f"{_energy(speed, kwh_price)} for 1,000, at {kwh_price:.2f} a kWh",
            )
        )
    return [*pairs, ("how sure", f"nine in ten lie in the brackets; builds of {speed.era} and later")]


def _energy(speed: Speed | None, kwh_price: float) -> str:
    """Energy of a thousand pictures, and its cost; two figures that count of each."""
    from llavakit.planner.energy import energy_of

    found = energy_of(speed, kwh_price)
    if found.kwh_per_1000_images is None or found.cost_per_1000_images is None:
        return "-"
    return f"{_two_figures(found.kwh_per_1000_images)} kWh, {_two_figures(found.cost_per_1000_images)}"


def _two_figures(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _size(num_bytes: float) -> str:
    """Two decimals of a GB, as models' sizes are compared; of a small model what there is."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else human_bytes(num_bytes)


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.3g} million"


def _sentence(plan: Plan) -> str:
    where = " + ".join(dict.fromkeys(device.name for device in plan.devices)) or plan.host.name
    if len(plan.devices) > 1 and len({device.name for device in plan.devices}) == 1:
        where = f"{len(plan.devices)} x {where}"
    layers = plan.model.sizes.num_layers + 1
    if plan.devices and plan.setting.num_device_layers < layers:
        where += f" with {plan.setting.num_device_layers} of {layers} layers there"
    what = f"{plan.model.name} at {plan.quant.name.upper()}"
    context = f"at {plan.cached_tokens:,} tokens of context"
    if plan.cached_tokens < plan.setting.num_context_tokens:
        context = f"for a prompt and answer of {plan.cached_tokens:,} tokens"
    guess = ", a guess" if plan.speed and plan.speed.is_guess else ""
    speed = f" Expect {_speed(plan.speed.decode)} tokens a second{guess}." if plan.speed else ""
    if plan.verdict == "fits":
        return f"Yes: {what} fits {where} with {human_bytes(plan.headroom_bytes)} to spare, {context}.{speed}"
    if plan.verdict == "tight":
        left, place = (plan.headroom_bytes, "the same device")
        if plan.left_bytes[-1] < left:
            left, place = plan.left_bytes[-1], "the computer around it"
        return (
            f"Barely: {what} fits {where} {context}, but only {human_bytes(left)} are left. A desktop on {place} "
            f"may take them.{speed}"
        )
    if plan.devices and plan.headroom_bytes >= 0:
        lacking = (
            f"{what} fits {where}, but the computer around it has {human_bytes(plan.usable[-1])} of memory to be had "
            f"and {human_bytes(plan.totals[-1])} are needed there."
        )
        if plan.verdict == "partly":
            more = f"It fits with more layers on the device: --gpu-layers {plan.device_layers}."
            return f"Not so: {lacking} {more}{speed}"
        advice = "Free some, or say how much there is: --host-memory-gb."
        if plan.change is not None:
            advice = f"It fits if you {plan.change.text}: {plan.change.options}."
        return f"No: {lacking} {advice}"
    missing = f"{human_bytes(-plan.headroom_bytes)} are missing {context}"
    fewer = ", fewer sequences at a time (--parallel)" if plan.setting.num_parallel > 1 else ""
    advice = (
        "Neither the smallest type nor the shortest context that holds the prompt and its answer makes it fit; take a "
        f"larger device{fewer} or a smaller model."
    )
    if plan.change is not None:
        advice = f"It fits if you {plan.change.text}: {plan.change.options}."
    if plan.verdict == "partly":
        return (
            f"Not all of it: {what} does not fit {where}, {missing}. {plan.device_layers} of {layers} layers do, and "
            f"the rest runs on the processor.{speed} {advice}"
        )
    return f"No: {what} does not fit {where}, {missing}. {advice}"


def print_listed(candidates: Sequence[Candidate], console: Console) -> None:
    """Print how many devices there are, the cheapest and the fastest of them, and what to do."""
    plan = candidates[0].plan
    verb = "hold at least some of" if any(c.plan.verdict == "partly" for c in candidates) else "hold"
    text = f"{len(candidates)} devices {verb} {plan.model.name} at {plan.quant.name.upper()}"
    if priced := [(c.price_usd or 0.0, c.device.name) for c in candidates if c.price_usd]:
        price, name = min(priced)
        text += f"; the cheapest is {name} at {price:,.0f} dollars"
    if known := [(c.tokens_per_s, c.device.name) for c in candidates if c.tokens_per_s and not c.is_guess]:
        speed, name = max(known)
        text += f", the fastest {name} with {speed:.0f} tokens a second"
    console.line(f"{text}. `llavakit best` chooses one for a budget and a need.\n")


def print_choice(best: Candidate, choice: Choice, console: Console, *, kwh_price: float) -> None:
    """Print the best device, why, and those after it."""
    name = console.styled(best.device.name, "bold", on_output=True)
    console.line(f"{name} for {best.plan.model.name} at {best.plan.quant.name.upper()}")
    for reason in choice.reasons:
        console.line(f"  - {reason}")
    if best.plan.speed is not None and best.plan.speed.joules_per_image is not None:
        console.line(f"  - 1,000 pictures take {_energy(best.plan.speed, kwh_price)} at {kwh_price:.2f} a kWh")
    if choice.runners_up:
        console.line("\nAfter it:")
        print_candidates(choice.runners_up, console, kwh_price=kwh_price)
    print_warnings([candidate.plan for candidate in (best, *choice.runners_up)], console)


def print_candidates(candidates: Sequence[Candidate], console: Console, *, kwh_price: float) -> None:
    """Print a table of devices."""
    rows = []
    for candidate in candidates:
        device, speed = candidate.device, candidate.plan.speed
        price = "-" if candidate.price_usd is None else f"{candidate.price_usd:,.0f}"
        if candidate.price_year is not None:
            price += f" ({candidate.price_year})"
        rows.append(
            (
                device.name + _STARS[device.confidence],
                f"{device.memory_gib:g}",
                f"{human_bytes(candidate.plan.needed_bytes)} of {human_bytes(candidate.plan.room_bytes)}",
                candidate.plan.verdict,
                "-" if speed is None else _speed(speed.decode) + ("?" if speed.is_guess else ""),
                "-" if speed is None else _seconds(speed.first_token_s),
                price,
                f"{candidate.value:.0f}" if candidate.value else "-",
                "-" if device.watts is None else f"{device.watts:.0f}",
                _energy(speed, kwh_price),
            )
        )
    print_table(
        console,
        [
            ("device", "left"),
            ("GiB", "right"),
            ("needed", "right"),
            ("verdict", "left"),
            ("tokens/s", "right"),
            ("first token", "right"),
            ("price $", "right"),
            ("tokens/s for $1,000", "right"),
            ("watts", "right"),
            ("1,000 pictures", "right"),
        ],
        rows,
        optional=("1,000 pictures", "tokens/s for $1,000", "watts", "first token"),
    )
    if any(candidate.is_guess for candidate in candidates):
        console.note("? the speed is a guess; the notes below say why.", style="dim")
    if any(candidate.device.confidence != "high" for candidate in candidates):
        console.note("* some figures of the device are from secondary sources; ** most are.", style="dim")


def print_warnings(plans: Sequence[Plan], console: Console) -> None:
    """Print what plans warn of, each once; of several plans, how many it is about."""
    counts = Counter(warning for plan in plans for warning in plan.warnings)
    for warning, count in counts.items():
        about = "" if count == len(plans) else f" ({count} of these {len(plans)})"
        console.note(f"note: {warning}{about}.", style="yellow")


def _what_to_take(card: Card, cheapest: Candidate | None, kwh_price: float) -> str:
    """Say what to run a model on."""
    what = f"{card.model.name} at {card.quant.upper()}"
    own = f"`llavakit fits {card.model.name}` says whether this machine runs it."
    if cheapest is None:
        return f"No device of the table with a list price and a measured kind holds {what} with room to spare. {own}"
    text = f"The cheapest device that holds {what} with room to spare is {cheapest.device.name}"
    text += f" at {cheapest.price_usd:,.0f} dollars"
    if (speed := cheapest.plan.speed) is not None:
        text += f", with {_speed(speed.decode)} tokens a second"
        if speed.joules_per_image is not None:
            text += f"; 1,000 pictures take {_energy(speed, kwh_price)} at {kwh_price:.2f} a kWh"
    return f"{text}. {own}"


def print_card(card: Card, console: Console, *, cheapest: Candidate | None, kwh_price: float) -> None:
    """Print a model's card, and what to run it on."""
    facts, sizes, text = card.model.facts, card.model.sizes, card.model.config.text_config
    console.line(console.styled(facts.get("title", card.model.name), "bold", on_output=True))
    console.line(f"{_what_to_take(card, cheapest, kwh_price)}\n")
    count = card.parameters
    pairs = [
        (
            "parameters",
            f"{_count(count['all'])}: language model {_count(count['language model'])}, vision tower "
            f"{_count(count['vision tower'])} (without the block that is not used), projector "
            f"{_count(count['projector'])}",
        ),
        (
            "language model",
            f"{sizes.num_layers} layers, {sizes.num_heads} heads of {text.head_dim}, width "
            f"{sizes.hidden_size}, vocabulary {sizes.vocab_size:,}, context {sizes.max_context_tokens:,}",
        ),
        ("picture", f"{sizes.num_image_tokens} tokens"),
    ]
    pairs += [(name, facts[name]) for name in ("architecture", "training", "licence", "released") if name in facts]
    if "papers" in facts:
        papers = (f"{paper['title']}, arXiv {paper['arxiv']} ({paper['year']})" for paper in facts["papers"])
        pairs.append(("papers", "; ".join(papers)))
    if "hub_id" in facts:
        pairs.append(("on the Hub", facts["hub_id"]))
    if card.downloads is not None:
        pairs.append(("downloads", f"{card.downloads:,} in the last month"))
    elif "downloads_seen" in facts:
        pairs.append(("downloads", f"{facts['downloads_seen']['statement']}; the Hub was not asked or did not answer"))
    print_pairs(console, pairs)
    setting = card.setting
    where = "on a processor"
    if card.is_on_device:
        held_back = " and a tenth of the card" if setting.engine == "vllm" else ""
        where = f"the driver's 0.1 to 0.6 GB{held_back} come on top"
    console.line(f"\nMemory with a context of {setting.num_context_tokens:,} ({setting.engine}; {where})")
    rows = [
        (
            f"{row.name.upper()}{' <' if row.name == card.quant else ''}",
            f"{row.bits_per_weight:.2f}",
            _size(row.language_bytes),
            _size(row.vision_bytes),
            _size(row.memory_bytes),
            row.quality,
        )
        for row in card.quants
    ]
    print_table(
        console,
        [
            ("type", "left"),
            ("bits", "right"),
            ("file", "right"),
            ("vision file", "right"),
            ("memory", "right"),
            ("published quality", "left"),
        ],
        rows,
    )
    if benchmarks := facts.get("benchmarks"):
        console.line("\nPublished scores")
        print_table(
            console,
            [("benchmark", "left"), ("score", "right"), ("measures", "left"), ("source", "left")],
            [
                (str(b["name"]), f"{b['score']}", str(b.get("what_it_measures", "")), str(b.get("source", "")))
                for b in benchmarks
            ],
        )
    console.line("\nTo run it")
    print_pairs(console, list(card.commands))
    for warning in card.warnings:
        console.note(f"note: {warning}", style="yellow")


def print_build(build: Build, console: Console, *, kwh_price: float) -> None:
    """Print a machine, and what it does."""
    plan = build.candidate.plan
    speed = "" if plan.speed is None else f" with {_speed(plan.speed.decode)} tokens a second"
    console.line(
        f"Buy these parts for {build.price_usd:,.0f} dollars: with {build.candidate.device.name} the machine runs "
        f"{plan.model.name} at {plan.quant.name.upper()}{speed}.\n"
    )
    rows = [
        (
            part.kind,
            part.name,
            f"{part.price_usd:,.0f}" + (f" ({part.price_year})" if part.price_year else ""),
            part.reason,
        )
        for part in build.parts
    ]
    rows.append(("", "all of it", f"{build.price_usd:,.0f}", "list prices of the years in brackets; shops differ"))
    print_table(console, [("part", "left"), ("what", "left"), ("$", "right"), ("why", "left")], rows)
    console.line()
    print_pairs(
        console,
        [
            ("power", f"{build.load_watts:.0f} W at work, {build.idle_watts:.0f} W idle"),
            (
                "energy",
                f"{build.monthly_kwh:.0f} kWh a month, {build.monthly_kwh * kwh_price:.2f} at {kwh_price:.2f} a kWh",
            ),
            ("noise", build.noise),
            ("upgrade first", build.upgrade_first),
        ],
    )


def print_verification(check: PlanCheck, console: Console) -> None:
    """Print what was planned beside what was measured."""
    console.line(check.summary)
    console.line()
    rows = [
        (row.name, row.format(row.predicted), row.format(row.measured), f"{row.error:+.1%}", row.note)
        for row in check.rows
    ]
    print_table(
        console, [("what", "left"), ("planned", "right"), ("measured", "right"), ("error", "right"), ("", "left")], rows
    )
