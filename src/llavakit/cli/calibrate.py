"""``llavakit calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from llavakit.cli.console import Console
from llavakit.cli.loading import set_threads
from llavakit.cli.progress import pull_with_progress, show_stage

if TYPE_CHECKING:
    import argparse

__all__ = ["calibrate"]


def calibrate(options: argparse.Namespace, console: Console) -> int:
    """Measure importance and write it."""
    set_threads(options.threads)
    console.status(f"loading {options.model}")
    from llavakit.conversion.importance import check_writable, write_importance
    from llavakit.diagnostics.calibrate import calibrate_model
    from llavakit.diagnostics.quality import read_prompts

    out = Path(options.out)
    check_writable(out, is_overwrite_allowed=options.overwrite)
    prompts = None if options.prompts is None else read_prompts(Path(options.prompts))
    pull_with_progress(options.model, console, is_quiet=options.json, must_be_newest=False)
    try:
        found = calibrate_model(
            options.model, prompts=prompts, max_new_tokens=options.max_new_tokens, on_progress=show_stage(console)
        )
    finally:
        console.status("")
    write_importance(out, found.importance, model=options.model, num_tokens=found.num_tokens)
    if options.json:
        content = {"file": options.out, "num_prompts": found.num_prompts, "num_tokens": found.num_tokens}
        console.line(json.dumps(content, ensure_ascii=False))
    else:
        console.line(f"{options.out}: {len(found.importance)} matrices, on {found.num_tokens:,} tokens")
    return 0
