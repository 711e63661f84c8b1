"""``llavakit quality``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llavakit.cli.console import Console
from llavakit.cli.loading import set_threads
from llavakit.cli.progress import human_bytes, pull_with_progress, show_stage
from llavakit.cli.tables import print_pairs
from llavakit.core.wording import counted

if TYPE_CHECKING:
    import argparse

    from llavakit.diagnostics.quality import Estimate, QualityReport

__all__ = ["print_quality", "quality"]

_FEW = 5  # prompts that say how much prompts differ


def quality(options: argparse.Namespace, console: Console) -> int:
    """Measure and print what quantizing has cost."""
    set_threads(options.threads)
    console.status(f"loading {options.model}")
    from llavakit.diagnostics.quality import measure_quality, read_prompts

    prompts = None if options.prompts is None else read_prompts(Path(options.prompts))
    for name in (options.model, options.quantized):
        pull_with_progress(name, console, is_quiet=options.json, must_be_newest=False)
    try:
        report = measure_quality(
            options.model,
            options.quantized,
            mmproj=options.mmproj,
            prompts=prompts,
            max_new_tokens=options.max_new_tokens,
            on_progress=show_stage(console),
        )
    finally:
        console.status("")
    if options.json:
        console.line(report.to_json())
    else:
        print_quality(report, console)
    return 0


def print_quality(report: QualityReport, console: Console) -> None:
    """Print a paragraph per kind of prompt."""
    share = report.quantized_bytes / report.model_bytes
    console.line(f"{report.quantized}: {human_bytes(report.quantized_bytes)}, {share:.0%} of {report.model}")
    for group in report.groups:
        kind = "with pictures" if group.name == "pictures" else "without pictures"
        console.line(f"\n{counted(group.num_prompts, 'prompt')} {kind}, {group.num_tokens:,} tokens of answers")
        change = f"{group.perplexity:.4f} became {group.quantized_perplexity:.4f}"
        num = group.num_prompts
        pairs = [
            ("divergence", f"{_estimate(group.divergence, '.5f', num)} nats a token; 0 is no loss"),
            ("same token", f"{_estimate(group.agreement, '.2%', num)} most probable in both"),
            ("perplexity", f"{change}, times {_estimate(group.perplexity_ratio, '.4f', num)}"),
        ]
        print_pairs(console, pairs)
    few = "" if all(group.num_prompts >= _FEW for group in report.groups) else f", of {_FEW} prompts or more"
    console.line(f"\nIn brackets: intervals of 95 %{few}.")


def _estimate(estimate: Estimate, form: str, num_prompts: int) -> str:
    value = f"{estimate.value:{form}}"
    return value if num_prompts < _FEW else f"{value} ({estimate.low:{form}} to {estimate.high:{form}})"
