"""``llavakit verify`` and ``llavakit bench``: run the diagnostics and print their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llavakit.cli.console import Console
from llavakit.cli.loading import set_threads
from llavakit.cli.progress import human_bytes, pull_with_progress, show_stage
from llavakit.cli.tables import print_pairs, print_table

if TYPE_CHECKING:
    import argparse

    from llavakit.diagnostics.bench import BenchPart, BenchReport
    from llavakit.diagnostics.verify import VerifyReport

__all__ = ["bench", "print_bench", "print_verify", "verify"]

_EXIT_FAILED = 1
_WIDE_COLUMNS = 120


def verify(options: argparse.Namespace, console: Console) -> int:
    """Compare with transformers; the exit status is 1 when a stage fails."""
    set_threads(options.threads)
    console.status("loading transformers")
    from llavakit.diagnostics.verify import verify_model

    pull_with_progress(options.model, console, is_quiet=options.json, must_be_newest=False)
    try:
        report = verify_model(
            options.model, dtype=_dtype(options), mmproj=options.mmproj, on_progress=show_stage(console)
        )
    finally:
        console.status("")
    if options.json:
        console.line(report.to_json())
    else:
        print_verify(report, console)
    return 0 if report.is_ok else _EXIT_FAILED


def bench(options: argparse.Namespace, console: Console) -> int:
    """Measure where the time goes."""
    set_threads(options.threads)
    console.status(f"loading {options.model}")
    from llavakit.diagnostics.bench import bench_model

    pull_with_progress(options.model, console, is_quiet=options.json, must_be_newest=False)
    try:
        report = bench_model(
            options.model,
            dtype=_dtype(options),
            device=options.device,
            mmproj=options.mmproj,
            on_progress=show_stage(console),
        )
    finally:
        console.status("")
    if options.json:
        console.line(report.to_json())
    else:
        print_bench(report, console)
    return 0


def print_verify(report: VerifyReport, console: Console) -> None:
    """Print one row per stage and a verdict."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    console.line(f"{report.model}, {report.dtype} ({versions})")
    if report.are_weights_shared:
        console.line("transformers was given our tensors: how the files are read is not checked here.")
    console.line()
    columns = [
        ("stage", "left"), ("compared", "right"), ("max diff", "right"), ("error", "right"), ("allowed", "right"),
        ("verdict", "left"), ("detail", "left"),
    ]  # fmt: skip
    rows = [
        (
            stage.name,
            f"{stage.num_compared:,}",
            _number(stage.max_abs_difference),
            _number(stage.relative_error),
            "equal" if stage.tolerance == 0 else _number(stage.tolerance),
            stage.verdict.value,
            stage.detail,
        )
        for stage in report.stages
    ]
    if _is_narrow(console):  # what was compared gives way; why something failed or was left out does not
        print_table(console, columns[:-1], [row[:-1] for row in rows])
        for stage in report.stages:
            if stage.verdict in ("fail", "skipped"):
                console.line(f"{stage.name}: {stage.verdict.value}, {stage.detail}")
    else:
        print_table(console, columns, rows)
    num_failed = sum(not stage.is_ok for stage in report.stages)
    verdict = f"{num_failed} of {len(rows)} stages FAILED" if num_failed else "no stage failed"
    console.line("\n" + console.styled(verdict, "red" if num_failed else "green", on_output=True))


def print_bench(report: BenchReport, console: Console) -> None:
    """Print one row per part, and what the machine can do."""
    machine = report.machine
    pairs = [
        ("model", f"{report.model}, {report.dtype} on {report.device}, weights {human_bytes(report.weight_bytes)}"),
        ("run", f"prompt {report.num_prompt_tokens} tokens, answer {report.num_new_tokens} tokens"),
        ("versions", f"llavakit {report.version}, torch {report.torch_version}, {_threads(report.num_threads)}"),
    ]
    if machine is not None:
        bf16 = f", {machine.bf16_gflops:.0f} GFLOP/s bfloat16" if machine.bf16_gflops is not None else ""
        pairs += [
            ("machine", f"{machine.cpu_name}, {_threads(machine.num_threads)}, {machine.instruction_set}"),
            ("limits", f"{machine.read_gb_per_s:.1f} GB/s, {machine.fp32_gflops:.0f} GFLOP/s float32{bf16} (measured)"),
        ]
    print_pairs(console, pairs)
    console.line()
    columns = [
        ("part", "left"), ("median", "right"), ("rate", "right"), ("of the limit", "right"), ("lowest", "right"),
        ("highest", "right"), ("first run", "right"), ("runs", "right"),
    ]  # fmt: skip
    num_shown = 4 if _is_narrow(console) else len(columns)
    print_table(console, columns[:num_shown], [_bench_row(part)[:num_shown] for part in report.parts])
    console.line()
    memory = [("key/value cache", human_bytes(report.kv_bytes))]
    if report.memory is not None:
        memory += [
            ("peak memory", human_bytes(report.memory.peak_resident)),
            ("of its own", human_bytes(report.memory.anonymous)),
            ("mapped files", human_bytes(report.memory.file_backed)),
        ]
    print_pairs(console, memory)
    if report.cached_share:
        console.line(f"\nThe cold start was not quite cold: {report.cached_share:.0%} of the files stayed in memory.")


def _is_narrow(console: Console) -> bool:
    return console.is_output_terminal and console.columns < _WIDE_COLUMNS


def _bench_row(part: BenchPart) -> tuple[str, ...]:
    share = f"{part.share:.0%} of {part.bound_by}" if part.share is not None else ""
    rate = f"{part.rate:,.1f} {part.unit}/s" if part.unit == "tokens" else ""
    first = _seconds(part.first_s) if part.first_s is not None else ""
    return (
        part.name, _seconds(part.median_s), rate, share, _seconds(part.min_s), _seconds(part.max_s), first,
        str(part.num_runs),
    )  # fmt: skip


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def _dtype(options: argparse.Namespace) -> str | None:
    return None if options.dtype == "auto" else options.dtype


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
