"""The planner as pages: written once, opened from the disk, no server and nothing from elsewhere.

``index.html`` computes in the browser with `formulas.js`, which is `llavakit.planner.formulas` translated; one page per
model and device is plain HTML made here, and `llavakit.planner.method` makes the method page.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from llavakit.core.errors import ConfigError, StoreError
from llavakit.core.version import __version__
from llavakit.planner.builds import plan_build
from llavakit.planner.card import make_card
from llavakit.planner.cases import ENGINES, PROGRAM_BYTES
from llavakit.planner.devices import Device, list_sold_devices
from llavakit.planner.javascript import formulas_source, translate
from llavakit.planner.machine import assumed_host, generic_host
from llavakit.planner.markup import document, gigabytes, make_table
from llavakit.planner.method import make_method_page
from llavakit.planner.models import PUBLISHED, PlannedModel, find_model
from llavakit.planner.plans import (
    INTERVAL,
    OWN_KV_TYPES,
    SECONDS_PER_MEGAPIXEL,
    Plan,
    make_plan,
    why_unplanned,
)
from llavakit.planner.records import KV_BLOCK_BYTES, EngineFit, Setting, SpeedFit
from llavakit.planner.speed import MIN_OTHER_DEVICES, fit_for, processor_fit

__all__ = ["site_data", "write_site"]

_BUDGETS = (800, 1500, 3000)
_PAIR_QUANTS = ("q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")
_STATIC = ("index.html", "style.css", "state.js", "plans.js", "devices.js", "planner.js")
_MARK = "made by llavakit plan --html"


def slug_of(name: str) -> str:
    """Turn a device's name into a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def site_data() -> dict[str, Any]:
    """Return the records the page computes with."""
    models = {name: find_model(name) for name in PUBLISHED}
    fits: list[dict[str, Any]] = []
    return {
        "version": __version__,
        "models": {name: _model_data(model) for name, model in models.items()},
        "devices": [_device_data(device, fits) for device in list_sold_devices()],
        "fits": fits,
        "host": asdict(generic_host().numbers),
        "hostFit": _fit_data(fit_for(generic_host())),
        "kv": KV_BLOCK_BYTES,
        "ownKv": OWN_KV_TYPES,
        "minOtherDevices": MIN_OTHER_DEVICES,
        "programBytes": PROGRAM_BYTES,
        "secondsPerMegapixel": SECONDS_PER_MEGAPIXEL,
        "builds": {name: [_build_data(model, budget) for budget in _BUDGETS] for name, model in models.items()},
    }


def _fit_data(fit: SpeedFit | EngineFit) -> dict[str, Any]:
    return {**asdict(fit), "decode_factor": math.exp(INTERVAL * fit.decode_spread)}


def _index_of(fit: dict[str, Any], fits: list[dict[str, Any]]) -> int:
    """Where a fit is in a list, which gets it if it is new: devices of a family share one."""
    if fit not in fits:
        fits.append(fit)
    return fits.index(fit)


def _device_data(device: Device, fits: list[dict[str, Any]]) -> dict[str, Any]:
    desktop = asdict(generic_host().numbers)
    host = asdict(assumed_host([device]).numbers)
    return {
        "name": device.name,
        "slug": slug_of(device.name),
        "kind": device.kind,
        "memory_gib": device.memory_gib,
        "price": device.price_usd,
        "price_year": device.price_year,
        "confidence": device.confidence,
        "unplanned": {engine: reason for engine in ENGINES if (reason := why_unplanned(engine, device))},
        "numbers": asdict(device.numbers),
        # In what the computer around it differs from the ordinary desktop.
        "host": {} if device.backend == "cpu" else {name: host[name] for name in host if host[name] != desktop[name]},
        "fit": _index_of(_fit_data(fit_for(device)), fits),
        # A processor as this package's own engine sees it.
        "own": {"numbers": asdict(device.engine_numbers), "fit": _index_of(_fit_data(processor_fit(device)), fits)}
        if device.backend == "cpu"
        else None,
    }


def _model_data(model: PlannedModel) -> dict[str, Any]:
    card = make_card(model, Setting(num_context_tokens=model.sizes.max_context_tokens), is_online=False)
    text, facts = model.config.text_config, model.facts
    pairs = [
        ("Parameters", ", ".join(f"{name} {count:,}" for name, count in card.parameters.items())),
        (
            "Language model",
            f"{text.num_hidden_layers} layers, {text.num_attention_heads} heads of {text.head_dim}, width "
            f"{text.hidden_size}, vocabulary {text.vocab_size:,}, context {text.max_position_embeddings:,}",
        ),
        ("Architecture", facts["architecture"]),
        ("Training", facts["training"]),
        ("Released", facts["released"]),
        ("Licence", facts["licence"]),
        ("On the Hub", facts["hub_id"]),
        (
            "Papers",
            "; ".join(f"{paper['title']}, arXiv {paper['arxiv']} ({paper['year']})" for paper in facts["papers"]),
        ),
    ]
    if "downloads_seen" in facts:
        pairs.append(("Downloads", facts["downloads_seen"]["statement"]))
    return {
        "title": facts["title"],
        "sizes": asdict(model.sizes),
        "quants": {quant.name: asdict(quant) for quant in model.quantizations()},
        "quality": {entry["quant"]: entry["statement"] for entry in facts["quality"]},
        "facts": {
            "pairs": pairs,
            "benchmarks": facts["benchmarks"],
            "commands": list(card.commands),
            "warning": facts["ollama"]["warning"],
        },
    }


def _build_data(model: PlannedModel, budget: int) -> dict[str, Any]:
    setting = Setting(num_context_tokens=model.sizes.max_context_tokens)
    build, advice = plan_build(model, "q4_k_m", setting, budget_usd=budget)
    return {"budget": budget, **({"advice": advice} if build is None else build.to_dict())}


def write_site(folder: Path, *, is_overwrite_allowed: bool = False) -> list[Path]:
    """Write all pages.

    Returns
    -------
    list of Path
        The index first.

    Raises
    ------
    ConfigError
        If the folder holds something else.
    StoreError
        If it cannot be written.
    """
    index = folder / "index.html"
    try:
        is_ours = (folder / "data.js").is_file() and _MARK in (folder / "data.js").read_text(encoding="utf-8")[:200]
        if folder.exists() and not is_ours and not is_overwrite_allowed and any(folder.iterdir()):
            raise ConfigError(
                f"{str(folder)!r} holds other files. Name another folder, or allow writing into it with --overwrite."
            )
        (folder / "pairs").mkdir(parents=True, exist_ok=True)
        written = [index]
        for path, content in _pages():
            (folder / path).write_text(content, encoding="utf-8")
            if folder / path != index:
                written.append(folder / path)
    except OSError as error:
        raise StoreError(f"{str(folder)!r} cannot be written: {error}.") from error
    return written


def _pages() -> Iterator[tuple[str, str]]:
    for name in _STATIC:
        yield name, (resources.files("llavakit.planner") / "page" / name).read_text(encoding="utf-8")
    yield "formulas.js", translate(formulas_source())
    data = json.dumps(site_data(), ensure_ascii=False, separators=(",", ":"))
    yield "data.js", f"/* {_MARK} {__version__} */\nwindow.PLANNER = {data};\n"
    yield "method.html", make_method_page()
    for name in PUBLISHED:
        model = find_model(name)
        for device in list_sold_devices():
            yield f"pairs/{name.replace(':', '-')}-on-{slug_of(device.name)}.html", _pair_page(model, device)


def _pair_page(model: PlannedModel, device: Device) -> str:
    is_processor = device.backend == "cpu"
    setting = Setting(num_context_tokens=model.sizes.max_context_tokens)
    host = assumed_host([device])
    devices = [] if is_processor else [device]
    plans = [make_plan(model, quant, setting, devices, host, has_advice=quant == "q4_k_m") for quant in _PAIR_QUANTS]
    main = plans[_PAIR_QUANTS.index("q4_k_m")]
    title = f"{model.facts['title']} on {device.name}"
    words = {"fits": "It fits.", "tight": "Barely.", "partly": "Only partly.", "no": "It does not fit."}
    rows = [_pair_row(plan) for plan in plans]
    own = _own_section(model, setting, device) if is_processor else ""
    parts = [
        (part.name, gigabytes(part.bytes), part.basis, "host" if part.place < 0 and devices else device.name)
        for part in main.parts
    ]
    advice = (
        ""
        if main.change is None
        else f"<p>It fits if you {html.escape(main.change.text)}: <code>{html.escape(main.change.options)}</code></p>"
    )
    memory = (
        f"{gigabytes(main.totals[0])} of {gigabytes(main.usable[0])} are needed with llama.cpp at Q4_K_M and "
        f"{setting.num_context_tokens:,} tokens of context"
    )
    price = "" if device.price_usd is None else f", list price {device.price_usd:,.0f} dollars ({device.price_year})"
    note = f" {device.note}." if device.note else ""
    body = (
        f"<h1>{html.escape(title)}</h1>\n"
        f'<div class="verdict {main.verdict}"><span class="word {main.verdict}">'
        f"{words[main.verdict]}</span> {memory}.</div>\n"
        f"{advice}"
        f'<p><a href="../index.html#?{_query(model, device)}">Try other settings</a></p>'
        f"<section><h2>Quantizations, with llama.cpp</h2>"
        + make_table(
            ("Type", "Needed", "Verdict", "Largest context", "Layers here", "Tokens/s, nine in ten", "First token"),
            rows,
            numbers=(1, 3, 4, 5, 6),
            label="Quantizations",
        )
        + f"</section>{own}<section><h2>Memory at Q4_K_M, llama.cpp</h2>"
        + make_table(("What", "Bytes", "How it is known", "Where"), parts, numbers=(1,), label="Memory")
        + f"</section><section><h2>The device</h2><p>{device.memory_gib:g} GiB of {html.escape(device.memory_kind)}, "
        f"{device.bandwidth_gb_s:g} GB/s, {device.watts or 0:g} W, {device.year}{price}. Source: "
        f"{html.escape(device.source)} ({device.source_date}), confidence {device.confidence}."
        f"{html.escape(note)}</p></section>"
    )
    return document(title, body, root="../")


def _own_section(model: PlannedModel, setting: Setting, host: Device) -> str:
    """Say what llavakit's own engine makes of a processor."""
    own = replace(setting, engine="llavakit")
    rows = [_pair_row(make_plan(model, quant, own, [], host, has_advice=False)) for quant in _PAIR_QUANTS]
    shown = [(*row[:4], *row[5:]) for row in rows]
    return (
        "<section><h2>Quantizations, with llavakit</h2><p>A guess, made of the makers' bandwidth, cores and clocks; "
        "<code>llavakit fits</code> on the machine itself measures first.</p>"
        + make_table(
            ("Type", "Needed", "Verdict", "Largest context", "Tokens/s, nine in ten", "First token"),
            shown,
            numbers=(1, 3, 4, 5),
            label="Quantizations, with llavakit",
        )
        + "</section>"
    )


def _query(model: PlannedModel, device: Device) -> str:
    from urllib.parse import urlencode

    return html.escape(urlencode({"model": model.name, "device": device.name}))


def _pair_row(plan: Plan) -> tuple[str, ...]:
    speed = plan.speed
    return (
        plan.quant.name.upper(),
        gigabytes(plan.needed_bytes),
        plan.verdict,
        f"{plan.largest_context:,}" if plan.largest_context else "-",
        f"{plan.device_layers} of {plan.model.sizes.num_layers + 1}" if plan.devices else "-",
        "-" if speed is None else f"{speed.decode.value:.1f} ({speed.decode.low:.1f} to {speed.decode.high:.1f})",
        "-" if speed is None else f"{speed.first_token_s:.2f} s",
    )
