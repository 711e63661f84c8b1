"""``llavakit convert``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llavakit.cli.console import Console
from llavakit.cli.loading import set_threads
from llavakit.cli.progress import byte_progress, human_bytes, pull_with_progress

if TYPE_CHECKING:
    import argparse

    from llavakit.conversion.convert import Conversion

__all__ = ["convert"]


def convert(options: argparse.Namespace, console: Console) -> int:
    """Convert a model and say what was written."""
    from llavakit.conversion import convert as conversion
    from llavakit.conversion.importance import read_importance

    set_threads(options.threads)
    is_quiet = options.json or options.quiet
    importance = None if options.importance is None else read_importance(Path(options.importance))
    pull_with_progress(options.model, console, is_quiet=is_quiet, must_be_newest=False)
    started = time.perf_counter()
    try:
        with byte_progress(f"converting {options.model}", console, is_quiet=is_quiet) as on_progress:
            written = conversion.convert(
                options.model,
                options.out,
                type_name=options.type.lower(),
                mmproj=options.mmproj,
                mmproj_type=options.mmproj_type,
                is_overwrite_allowed=options.overwrite,
                num_threads=options.threads,
                importance=importance,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        console.note("What is written so far is kept; the same command goes on from there.")
        raise
    elapsed_s = time.perf_counter() - started
    if options.json:
        console.line(json.dumps(_as_json(written, elapsed_s), ensure_ascii=False))
        return 0
    for file in written.files:
        console.line(f"{file}  {human_bytes(file.stat().st_size)}")
    if not options.quiet:
        types = ", ".join(f"{name} {human_bytes(size)}" for name, size in written.types.items())
        console.note(f"{types}; {elapsed_s:.1f} s", style="dim")
        if written.was_quantized:
            console.note("The source was quantized already: what it had lost is lost here too.")
    return 0


def _as_json(written: Conversion, elapsed_s: float) -> dict[str, object]:
    return {
        "files": [str(file) for file in written.files],
        "num_bytes": written.num_bytes,
        "types": dict(written.types),
        "was_quantized": written.was_quantized,
        "elapsed_s": round(elapsed_s, 3),
    }
