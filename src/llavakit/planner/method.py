"""The method page: every formula, what it was fitted to, and how far it is from everything that was measured.

Plain HTML, made of the package's data: parameters and residuals of other programs' speeds (``calibration.json``), runs
of this package's own engine (`llavakit.planner.runs`), rows that are not used, other rules, the table of devices.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from llavakit.planner.devices import Device, list_devices, read_rows
from llavakit.planner.javascript import formulas_source
from llavakit.planner.markup import document, gigabytes, make_table
from llavakit.planner.runs import MeasuredRun, Residual, compare_run, list_runs, load_proof
from llavakit.planner.speed import MIN_OTHER_DEVICES, engine_fit, load_calibration

__all__ = ["make_method_page"]

_QUANTITIES = ("memory", "picture", "prompt", "token")


def _list_price(device: Device) -> str:
    if device.list_price_usd is None:
        return ""
    memory = f", with {device.list_price_memory_gib:g} GB" if len(device.sizes_gib) > 1 else ""
    return f"{device.list_price_usd:,.0f} ({device.list_price_year}{memory})"


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
        + make_table(head, rows, numbers=range(1, 7), label="llavakit on a processor")
        + "<p>Plain operations to unpack and multiply a weight for one row, and to unpack it once for a prompt; and "
        "the rate that a type's prompt reaches, in units of what is reached of the 8-bit or 16-bit rate.</p>"
        + make_table(of, types, numbers=range(1, 7), label="Operations of a weight")
        + "</section>"
    )


def _runs_sections() -> str:
    """Set every stored run of this package's own engine beside what is planned of it."""
    return "".join(_machine_section(machine) for machine in load_proof()["machines"])


def _machine_section(machine: dict[str, Any]) -> str:
    runs = list_runs(machine)
    found = [compare_run(run) for run in runs]
    head = (
        "Model", "Type", "Pictures", "Tokens of text, of answer", "Cache", "Reads, GB/s",
        "Peak memory, planned and measured", "Error", "Picture", "Error", "Prompt", "Error", "Token", "Error", "Fit",
    )  # fmt: skip
    rows = [_run_row(run, residuals) for run, residuals in zip(runs, found, strict=True)]
    name = f"Runs of llavakit with {machine['instruction_set']}"
    return (
        f"<section><h2>{html.escape(name)}</h2><p>{html.escape(machine['cpu'])}, {machine['threads']} threads, "
        f"{machine['date']}; random weights of the real shapes. Times are planned with the limits that were measured "
        "between the answers of the same run: where the memory was faster during an answer than while it was measured, "
        f"a token is planned too long. Memory is fitted to none of these runs. {_summary(runs, found)}</p>"
        + make_table(head, rows, numbers=range(2, 14), label=name)
        + "</section>"
    )


def _run_row(run: MeasuredRun, residuals: dict[str, Residual]) -> list[str]:
    row = [
        run.model, run.quant.upper(), str(run.num_images), f"{run.num_text_tokens:,}, {run.num_new_tokens}", run.cache,
        f"{run.limits.read_gb_per_s:.1f}",
    ]  # fmt: skip
    for name in _QUANTITIES:
        residual = residuals.get(name)
        if residual is None:
            row += ["-", "-"]
            continue
        write = gigabytes if name == "memory" else _seconds
        row += [f"{write(residual.planned)}, {write(residual.measured)}", f"{residual.error:+.1%}"]
    return [*row, "seen" if run.is_seen else "not seen"]


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _summary(runs: Sequence[MeasuredRun], found: Sequence[dict[str, Residual]]) -> str:
    """Mean and worst error, of all runs and of those that no speed is fitted to."""
    parts = []
    for name in _QUANTITIES:
        for is_seen, which in ((None, ""), (False, " not seen")):
            errors = [
                abs(residuals[name].error)
                for run, residuals in zip(runs, found, strict=True)
                if name in residuals and is_seen in (None, run.is_seen)
            ]
            if errors and not (name == "memory" and which):
                parts.append(f"{name}{which}: {fmean(errors):.1%}, at most {max(errors):.1%}, in {len(errors)} runs")
    return f"Mean errors: {'; '.join(parts)}."


def _rules_section() -> str:
    """Other rules beside ours: memory of the 13B, and the measured answers."""
    proof = load_proof()
    names = ("sum of parts, GB", "llavakit", "catalogue", "llmfit", "whichllm")
    memory = [(row["type"].upper(), *(str(row[name] or "-") for name in names)) for row in proof["memory_rules"]]
    residuals = load_calibration()["residuals"]
    speed = [
        (f"{words}, llavakit", *_count_errors([abs(r["predicted"] / r["measured"] - 1) for r in residuals[kind]]))
        for kind, words in (("decode", "answers"), ("prompt", "prompts"))
    ]
    speed += [
        ("answers, bandwidth over size, " + row["rule"], str(row["rows"]), row["mean"], row["worst"])
        for row in proof["speed_rules"]
    ]
    return (
        "<section><h2>Other rules</h2><p>Memory of LLaVA-1.5 13B on llama.cpp, all layers on a device, 4,096 tokens, "
        "without the driver's share: the sum of the parts (weights, projector and cache as its logs print them, the "
        "compute buffer by its formula), and what each rule makes of it, in GB. "
        "Catalogue: parameters times the type's bits and half a gigabyte.</p>"
        + make_table(("Type", "Sum", *names[1:]), memory, numbers=range(1, 6), label="Memory by each rule")
        + "<p>Speed, on the measured rows below. llmfit takes 0.55 of the bandwidth; the other factor is the best one "
        "for these rows, and has seen them. Both are given the true bytes.</p>"
        + make_table(("Rule", "Rows", "Mean error", "Worst"), speed, numbers=range(1, 4), label="Speed by each rule")
        + "</section>"
    )


def _count_errors(errors: Sequence[float]) -> tuple[str, str, str]:
    return str(len(errors)), f"{fmean(errors):.1%}", f"{max(errors):.1%}"


def _unused_section() -> str:
    rows = [
        (
            row["device"], row["num_devices"], row["model"], row["quant"].upper(), row["era"],
            row["decode_tokens_per_s"] or "-", row["prompt_tokens_per_s"] or "-", row["reason_unused"], row["source"],
        )
        for row in read_rows("speeds.csv")
        if row["is_used"] != "yes"
    ]  # fmt: skip
    head = ("Device", "Number", "Model", "Type", "Era", "Answers", "Prompts", "Why it is not used", "Source")
    return (
        f"<section><h2>Rows that are not used</h2><p>{len(rows)} measured rows take no part in the fit and in its "
        "errors. Answers and prompts in tokens a second.</p>"
        + make_table(head, rows, numbers=(1, 5, 6), label="Rows that are not used")
        + "</section>"
    )


def _calibration_section() -> str:
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
        for fit in load_calibration()["fits"]
    ]
    head = (
        "Family", "Era", "Bandwidth reached", "with 16 bits", "Operations per weight: one scale, k, 16 bits",
        "Time per layer", "Rate reached, 16 bits", "quantized", "Time per layer of a prompt", "Energy per operation",
        "Spread, answers", "Spread, prompts",
    )  # fmt: skip
    return (
        "<section><h2>What speeds are made of</h2><p>An answer's token takes the bytes of weights and cache over the "
        "bandwidth that is reached, and a time per layer. A prompt takes its operations over the rate that is reached, "
        "an energy per operation over the rated power, and a time per layer and batch. Where power is the limit, the "
        "rate itself hardly shows and its share may come out above 1.</p>"
        + make_table(head, fits, numbers=range(2, 12), label="Calibration")
        + "</section>"
    )


def _residuals_section(kind: str, title: str) -> str:
    found = load_calibration()["residuals"][kind]
    errors = [abs(r["predicted"] / r["measured"] - 1) for r in found]
    few = sum(r["num_others"] < MIN_OTHER_DEVICES for r in found)
    rows = [
        (
            r["device"], r["model"], r["quant"].upper(), r["era"], f"{r['measured']:.1f}", f"{r['predicted']:.1f}",
            f"{r['predicted'] / r['measured'] - 1:+.0%}", str(r["num_others"]), r["source"],
        )
        for r in sorted(found, key=lambda r: (r["family"], r["device"]))
    ]  # fmt: skip
    head = ("Device", "Model", "Type", "Era", "Measured", "Predicted", "Error", "Others of its kind", "Source")
    return (
        f"<section><h2>{title}: every measured row, predicted without its device</h2><p>Mean error "
        f"{fmean(errors):.1%}, worst {max(errors):.0%}, {len(errors)} rows of {len({r['device'] for r in found})} "
        f"devices. {few} of them are of kinds with fewer than {MIN_OTHER_DEVICES} others: such a row says how far "
        "devices differ.</p>" + make_table(head, rows, numbers=(4, 5, 6, 7), label=title) + "</section>"
    )


def _devices_section() -> str:
    rows = [
        (
            d.name, ", ".join(f"{size:g}" for size in d.sizes_gib), f"{d.bandwidth_gb_s:g}", _list_price(d),
            d.confidence, d.source, d.source_date, d.note,
        )
        for d in list_devices()
    ]  # fmt: skip
    head = ("Device", "GiB", "GB/s", "List price", "Confidence", "Source", "Date", "Note")
    return (
        "<section><h2>Devices and their sources</h2>"
        + make_table(head, rows, numbers=(1, 2, 3), label="Devices")
        + "</section>"
    )


def make_method_page() -> str:
    """Return the whole page."""
    sections = (
        _calibration_section(), _engine_section(), _runs_sections(), _rules_section(),
        _residuals_section("decode", "Answers"), _residuals_section("prompt", "Prompts"), _unused_section(),
        "<section><h2>Every formula</h2><p>The page runs these statements, translated to JavaScript; the command "
        f"line runs them as they are.</p><pre>{html.escape(formulas_source())}</pre></section>",
        _devices_section(),
    )  # fmt: skip
    body = (
        "<h1>Method and errors</h1><p>Sizes follow from tensor shapes and are exact. Buffers of llama.cpp follow "
        "formulas that reproduce figures it logs. The driver's share is a line through two published figures. "
        f"Speeds are fitted, and their error is that of devices the fit has not seen.</p>{''.join(sections)}"
    )
    return document("Method and errors of the LLaVA-1.5 planner", body, root="")
