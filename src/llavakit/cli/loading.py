"""From the options of a command to a loaded model, with a passing line that says how far it is."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from llavakit.cli.console import Console
from llavakit.core.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from llavakit.api import LoadedModel

__all__ = ["load_model", "set_threads"]


def load_model(options: argparse.Namespace, console: Console, load: Callable[..., Any] | None) -> LoadedModel:
    """Load the model that the options name, fetching it first if it is not here.

    Parameters
    ----------
    options : Namespace
        Of ``llavakit run``.
    console : Console
    load : callable, optional
        Stands in for `llavakit.load`.
    """
    set_threads(options.threads)
    is_quiet = options.quiet
    if load is None:
        if not is_quiet:
            console.status(f"loading {options.model}")
        from llavakit.cli.progress import pull_with_progress

        pull_with_progress(options.model, console, is_quiet=is_quiet, must_be_newest=False)
        from llavakit.api import load as load_from_store  # takes a while: what cannot be found is said before

        load = load_from_store
    from llavakit.processing.sources import SourcePolicy

    def show(done: int, total: int) -> None:
        console.status(f"loading {options.model} {100 * done // max(total, 1)} %")

    try:
        model: LoadedModel = load(
            options.model,
            dtype=None if options.dtype == "auto" else options.dtype,
            device=options.device,
            preset=options.preset,
            mmproj=options.mmproj,
            kv_dtype=options.kv_dtype,
            policy=SourcePolicy(allow_private_hosts=options.allow_private_urls),
            on_progress=None if is_quiet else show,
        )
    finally:
        console.status("")
    return model


def set_threads(num_threads: int | None) -> None:
    """Tell the arithmetic libraries, before they are loaded, how many CPU threads to use.

    Raises
    ------
    ConfigError
        If the number is out of range.
    """
    from llavakit.kernels.machine import MAX_THREADS

    if num_threads is None:
        return
    if not 1 <= num_threads <= MAX_THREADS:
        raise ConfigError(f"--threads is {num_threads}; it must be between 1 and {MAX_THREADS}.")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(num_threads)
    torch = sys.modules.get("torch")  # loaded by somebody else: it no longer reads the environment
    if torch is not None:
        torch.set_num_threads(num_threads)
