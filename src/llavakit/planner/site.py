"""The planner as pages: written once, opened from the disk, no server and nothing from elsewhere.

``index.html`` computes in the browser with `formulas.js`, which is `llavakit.planner.formulas` translated; one page per
model and device, and the method page, are plain HTML made here.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from llavakit.core.errors import ConfigError, StoreError
from llavakit.core.version import __version__
from llavakit.planner.builds import plan_build
from llavakit.planner.card import make_card
from llavakit.planner.cases import ENGINES, PROGRAM_BYTES
from llavakit.planner.devices import Device, list_devices, list_sold_devices
from llavakit.planner.javascript import formulas_source, translate
from llavakit.planner.machine import assumed_host, generic_host
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
from llavakit.planner.speed import MIN_OTHER_DEVICES, engine_fit, fit_for, load_calibration, processor_fit

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
    yield "method.html", _method_page()
    for name in PUBLISHED:
        model = find_model(name)
        for device in list_sold_devices():
            yield f"pairs/{name.replace(':', '-')}-on-{slug_of(device.name)}.html", _pair_page(model, device)


def _document(title: str, body: str, *, root: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f'<link rel="stylesheet" href="{root}style.css">\n</head>\n<body>\n<header class="top">'
        f'<nav aria-label="Pages"><ul><li><a href="{root}index.html">Calculator</a></li>'
        f'<li><a href="{root}method.html">Method and errors</a></li></ul></nav></header>\n<main>\n{body}\n</main>\n'
        f"<footer>Made by llavakit {__version__}. Nothing is loaded from elsewhere.</footer>\n</body>\n</html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), label: str) -> str:
    """Build a table; cells are text, escaped here."""

    def cell(tag: str, idx: int, text: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kind = ' class="num"' if idx in numbers else ""
        return f"<{tag}{scope}{kind}>{html.escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("td", idx, text) for idx, text in enumerate(row)) + "</tr>" for row in rows]
    top = "".join(cell("th", idx, text) for idx, text in enumerate(head))
    return (
        f'<div class="wrap" tabindex="0" role="region" aria-label="{html.escape(label)}"><table><thead><tr>{top}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _list_price(device: Device) -> str:
    if device.list_price_usd is None:
        return ""
    memory = f", with {device.list_price_memory_gib:g} GB" if len(device.sizes_gib) > 1 else ""
    return f"{device.list_price_usd:,.0f} ({device.list_price_year}{memory})"


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
        (part.name, _gb(part.bytes), part.basis, "host" if part.place < 0 and devices else device.name)
        for part in main.parts
    ]
    advice = (
        ""
        if main.change is None
        else f"<p>It fits if you {html.escape(main.change.text)}: <code>{html.escape(main.change.options)}</code></p>"
    )
    memory = (
        f"{_gb(main.totals[0])} of {_gb(main.usable[0])} are needed with llama.cpp at Q4_K_M and "
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
        + _table(
            ("Type", "Needed", "Verdict", "Largest context", "Layers here", "Tokens/s, nine in ten", "First token"),
            rows,
            numbers=(1, 3, 4, 5, 6),
            label="Quantizations",
        )
        + f"</section>{own}<section><h2>Memory at Q4_K_M, llama.cpp</h2>"
        + _table(("What", "Bytes", "How it is known", "Where"), parts, numbers=(1,), label="Memory")
        + f"</section><section><h2>The device</h2><p>{device.memory_gib:g} GiB of {html.escape(device.memory_kind)}, "
        f"{device.bandwidth_gb_s:g} GB/s, {device.watts or 0:g} W, {device.year}{price}. Source: "
        f"{html.escape(device.source)} ({device.source_date}), confidence {device.confidence}."
        f"{html.escape(note)}</p></section>"
    )
    return _document(title, body, root="../")


def _own_section(model: PlannedModel, setting: Setting, host: Device) -> str:
    """Say what llavakit's own engine makes of a processor."""
    own = replace(setting, engine="llavakit")
    rows = [_pair_row(make_plan(model, quant, own, [], host, has_advice=False)) for quant in _PAIR_QUANTS]
    shown = [(*row[:4], *row[5:]) for row in rows]
    return (
        "<section><h2>Quantizations, with llavakit</h2><p>A guess, made of the makers' bandwidth, cores and clocks; "
        "<code>llavakit fits</code> on the machine itself measures first.</p>"
        + _table(
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
        _gb(plan.needed_bytes),
        plan.verdict,
        f"{plan.largest_context:,}" if plan.largest_context else "-",
        f"{plan.device_layers} of {plan.model.sizes.num_layers + 1}" if plan.devices else "-",
        "-" if speed is None else f"{speed.decode.value:.1f} ({speed.decode.low:.1f} to {speed.decode.high:.1f})",
        "-" if speed is None else f"{speed.first_token_s:.2f} s",
    )


def _engine_section() -> str:
    """Say what llavakit's own engine on a processor is planned with."""
    fits = (engine_fit("avx512_bf16"), engine_fit("avx2"))
    rows = [
        (
            fit.family.removeprefix("llavakit, "),
            f"{fit.read_efficiency:.2f}",
            f"{fit.half_cache_operations:.1f}, {fit.small_cache_operations:.1f}",
            f"{fit.quant_prompt_efficiency:.2f}, {fit.half_prompt_efficiency:.2f}",
            f"{fit.vision_efficiency:.2f}",
            f"{fit.attention_efficiency:.2f}",
            f"{fit.decode_layer_s * 1e6:.0f} us, {fit.prompt_layer_s * 1e6:.0f} us",
        )
        for fit in fits
    ]
    head = (
        "Instructions",
        "Bandwidth reached",
        "Operations per cached number: 16 bits, 8 bits",
        "Rate reached: 8 bits, 16 bits",
        "Tower",
        "Attention",
        "Time per layer: token, prompt",
    )
    types = [
        (
            name,
            *(
                text
                for fit in fits
                for text in (
                    f"{fit.row_operations[name]:.1f}",
                    f"{fit.pass_operations[name]:.1f}",
                    f"{fit.pass_rates[name]:.2f}",
                )
            ),
        )
        for name in sorted(fits[0].row_operations)
    ]
    of = ("Type", "AVX-512: one row", "a prompt", "rate", "AVX2: one row", "a prompt", "rate")
    return (
        "<section><h2>llavakit on a processor</h2><p>Shares of what the machine was measured to do. For every type of "
        "weights, a token takes the slower of reading them and of unpacking them with plain operations; the cache "
        "likewise. A prompt takes its operations at a share of the 8-bit or 16-bit rate, one unpacking of the weights, "
        "attention at a share of the plain rate, and a time per layer. A processor of the table was not measured: its "
        "rates are cores times base clock times what its instructions do in a cycle, its bandwidth 78 % of the nominal "
        "one, and its interval is three times as wide.</p>"
        + _table(head, rows, numbers=range(1, 7), label="llavakit on a processor")
        + "<p>Plain operations to unpack and multiply a weight for one row, and to unpack it once for a prompt; and "
        "the rate that a type's prompt reaches, in units of what is reached of the 8-bit or 16-bit rate.</p>"
        + _table(of, types, numbers=range(1, 7), label="Operations of a weight")
        + "</section>"
    )


def _method_page() -> str:
    calibration = load_calibration()
    fits = [
        (
            fit["family"],
            fit["era"],
            f"{fit['decode_efficiency']:.2f}",
            f"{fit['half_decode_efficiency']:.2f}",
            f"{fit['quant_operations']:.1f}, {fit['k_operations']:.1f}, {fit['half_operations']:.1f}"
            if fit["quant_operations"]
            else "-",
            f"{fit['decode_layer_s'] * 1e6:.0f} us",
            f"{fit['half_prompt_efficiency']:.2f}",
            f"{fit['quant_prompt_efficiency']:.2f}",
            f"{fit['prompt_layer_s'] * 1e6:.0f} us",
            f"{fit['prompt_joules'] * 1e12:.2f} pJ",
            f"{fit['decode_spread']:.0%}",
            f"{fit['prompt_spread']:.0%}",
        )
        for fit in calibration["fits"]
    ]
    head = (
        "Family",
        "Era",
        "Bandwidth reached",
        "with 16 bits",
        "Operations per weight: one scale, k, 16 bits",
        "Time per layer",
        "Rate reached, 16 bits",
        "quantized",
        "Time per layer of a prompt",
        "Energy per operation",
        "Spread, answers",
        "Spread, prompts",
    )
    sections = []
    for kind, title in (("decode", "Answers"), ("prompt", "Prompts")):
        found = calibration["residuals"][kind]
        errors = [abs(r["predicted"] / r["measured"] - 1) for r in found]
        rows = [
            (
                r["device"],
                r["model"],
                r["quant"].upper(),
                r["era"],
                f"{r['measured']:.1f}",
                f"{r['predicted']:.1f}",
                f"{r['predicted'] / r['measured'] - 1:+.0%}",
                r["source"],
            )
            for r in sorted(found, key=lambda r: (r["family"], r["device"]))
        ]
        sections.append(
            f"<section><h2>{title}: every measured row, predicted without its device</h2><p>Mean error "
            f"{sum(errors) / len(errors):.1%}, worst {max(errors):.0%}, {len(errors)} rows of "
            f"{len({r['device'] for r in found})} devices.</p>"
            + _table(
                ("Device", "Model", "Type", "Era", "Measured", "Predicted", "Error", "Source"),
                rows,
                numbers=(4, 5, 6),
                label=title,
            )
            + "</section>"
        )
    devices = [
        (
            d.name,
            ", ".join(f"{size:g}" for size in d.sizes_gib),
            f"{d.bandwidth_gb_s:g}",
            _list_price(d),
            d.confidence,
            d.source,
            d.source_date,
            d.note,
        )
        for d in list_devices()
    ]
    body = (
        "<h1>Method and errors</h1><p>Sizes follow from tensor shapes and are exact. Buffers of llama.cpp follow "
        "formulas that reproduce its logged figures. The driver's share is a line through two published figures. "
        "Speeds are fitted, and their error is that of devices the fit has not seen.</p>"
        "<section><h2>What speeds are made of</h2><p>An answer's token takes the bytes of weights and cache over the "
        "bandwidth that is reached, and a time per layer. A prompt takes its operations over the rate that is reached, "
        "an energy per operation over the rated power, and a time per layer and batch. Where power is the limit, the "
        "rate itself hardly shows and its share may come out above 1.</p>"
        + _table(head, fits, numbers=range(2, 12), label="Calibration")
        + "</section>"
        + _engine_section()
        + "".join(sections)
        + "<section><h2>Every formula</h2><p>The page runs these statements, translated to JavaScript; the command "
        f"line runs them as they are.</p><pre>{html.escape(formulas_source())}</pre></section>"
        "<section><h2>Devices and their sources</h2>"
        + _table(
            ("Device", "GiB", "GB/s", "List price", "Confidence", "Source", "Date", "Note"),
            devices,
            numbers=(1, 2, 3),
            label="Devices",
        )
        + "</section>"
    )
    return _document("Method and errors of the LLaVA-1.5 planner", body, root="")
