"""``llavakit serve``: settings from everywhere, a host of models, and the server around it."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from llavakit.cli.console import Console
from llavakit.cli.state_file import forget_server, remember_server
from llavakit.core.errors import CapacityError, ConfigError

if TYPE_CHECKING:
    import argparse

    from llavakit.server.settings import ServerSettings

__all__ = ["serve"]

_GIB = 1024**3


def serve(options: argparse.Namespace, console: Console) -> int:
    """Serve until stopped."""
    from llavakit.server.settings import ServerSettings, read_settings

    flags = {field.name: getattr(options, field.name, None) for field in fields(ServerSettings)}
    flags["api_keys"] = _keys(options)
    settings, origins = read_settings(flags, file=Path(options.config) if options.config else None)
    if options.print_config:
        shown = {**asdict(settings), "api_keys": ["***"] * len(settings.api_keys)}
        if options.json:
            console.line(json.dumps({n: {"value": v, "from": origins[n]} for n, v in shown.items()}))
        else:
            for name, value in shown.items():
                console.line(f"{name} = {value!r}  ({origins[name]})")
        return 0
    return _run(settings, options, console)


def _keys(options: argparse.Namespace) -> list[str] | None:
    keys = list(options.api_key or [])
    if options.api_key_file:
        try:
            lines = Path(options.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the key file {options.api_key_file!r} cannot be read ({error}).") from error
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return keys or None


def _run(settings: ServerSettings, options: argparse.Namespace, console: Console) -> int:
    import socket

    from llavakit.api.host import make_host
    from llavakit.processing.sources import SourcePolicy
    from llavakit.server.app import create_app
    from llavakit.server.file_limits import raise_file_limit
    from llavakit.server.lifecycle import DrainingServer, make_config
    from llavakit.server.memory import freeze_modules, use_one_heap

    use_one_heap()
    raise_file_limit()
    _log_to(console)
    policy = SourcePolicy(
        allow_files=False, allow_urls=settings.allow_urls, allow_http=False, url_hosts=settings.url_hosts,
        max_bytes=settings.max_body_mib << 20,
    )  # fmt: skip
    host = make_host(
        settings.model, dtype=settings.dtype or None, device=settings.device or None, preset=settings.preset or None,
        mmproj=settings.mmproj or None, kv_dtype=settings.kv_dtype, policy=policy,
        keep_alive_s=settings.keep_alive_s if settings.keep_alive_s >= 0 else math.inf, max_waiting=settings.queue,
        num_parallel=settings.parallel, cache_dir=Path(settings.cache_dir) if settings.cache_dir else None,
        disk_cache_bytes=int(settings.disk_cache_gib * _GIB),
        picture_cache_bytes=int(settings.picture_cache_gib * _GIB),
        cache_bytes=int(settings.kv_cache_gib * _GIB) or None, isolate_tenants=settings.isolate_tenants,
        threads=settings.threads or None,
    )  # fmt: skip
    host.describe(settings.model)  # what is not there or cannot be read is said before anything is opened
    try:
        listener = socket.create_server((settings.host, settings.port), reuse_port=False)
    except OSError as error:
        raise CapacityError(
            f"port {settings.port} of {settings.host!r} cannot be opened ({error.strerror or error}). Is a server "
            "running there already? Choose another with --port."
        ) from error
    address = listener.getsockname()
    url = f"http://{settings.host}:{address[1]}"

    def announce() -> None:
        console.line(f"serving {settings.model} at {url}  (Ctrl-C stops)")
        if not options.no_state_file:
            remember_server(url, settings.model, os.getpid(), needs_key=bool(settings.api_keys))

    app = create_app(host, settings, default_model=settings.model, on_ready=announce)

    async def drain(grace_s: float) -> None:
        app.state.context.is_draining = True
        await host.close(grace_s=grace_s)

    server = DrainingServer(make_config(app), drain, grace_s=settings.grace_s)
    freeze_modules()
    try:
        # uvicorn stops in good order and then raises the signal once more, which would end us with a failure's status.
        signal.signal(signal.SIGTERM, lambda _signum, _frame: None)
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    except SystemExit:  # uvicorn's, of an application that did not start
        if app.state.failure is None:
            raise
    finally:
        if not options.no_state_file:
            forget_server(os.getpid())
    if app.state.failure is not None:
        raise app.state.failure
    return 0


def _is_no_forced_end(record: logging.LogRecord) -> bool:
    """Leave out what a second Ctrl-C tears apart: whoever presses it knows."""
    text = str(record.msg)
    return not (text.startswith("Traceback") and ("KeyboardInterrupt" in text or "CancelledError" in text))


def _log_to(console: Console) -> None:
    """Write log lines as JSON to the error stream."""
    from llavakit.server.log_lines import JsonLines

    lines = logging.StreamHandler(console.stderr)
    lines.setFormatter(JsonLines())
    lines.addFilter(_is_no_forced_end)
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    logging.getLogger("httpx").setLevel(logging.WARNING)
