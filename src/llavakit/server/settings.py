"""What a server may be told, and where each value came from: flags before environment before file before default."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llavakit.core.errors import ConfigError

__all__ = ["ServerSettings", "read_settings"]

_PREFIX = "LLAVAKIT_"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", re.IGNORECASE)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Parameters
    ----------
    model : str
        Loaded at the start, and meant where a request names none.
    host, port
        Where it listens; any other host than loopback needs a key.
    api_keys : tuple of str
        Any one of them opens the server; none leaves it open to this machine.
    requests_per_minute : int
        Of one key; 0 for no limit.
    allowed_hosts : tuple of str
        Names by which browsers may call it, beside loopback.
    allowed_origins : tuple of str
        Web pages of other origins that may call it.
    allow_urls : bool
        Whether pictures may be https addresses, fetched by this server.
    url_hosts : tuple of str
        With ``allow_urls``: hosts they may come from; empty for all public ones.
    max_body_mib, max_images : int
        Of one request.
    max_bodies_mib : int
        Of all requests together that are being received or prepared; one that is alone may always be ``max_body_mib``.
    parallel, queue : int
        Requests computed at a time, and further ones that wait.
    keep_alive_s : float
        How long an unused model stays in memory.
    kv_cache_gib : float
        Memory of keys and values; 0 for what is free.
    picture_cache_gib : float
        Memory of pictures that may come again: seven eighths for what the vision tower gave, one for their pixels.
    cache_dir : str
        Where pictures outlive a restart; empty for nowhere.
    disk_cache_gib : float
    isolate_tenants : bool
        Keep what is cached for one key apart from the others.
    grace_s : float
        How long running answers may take when the server is stopped.
    planner_dir : str
        Pages of ``llavakit plan --html`` to serve under /planner/.
    preset, dtype, device, kv_dtype, mmproj : str
        As of ``llavakit run``; empty for the default.
    threads : int
        CPU threads; 0 for one per core.
    insecure_no_key : bool
        Listen beyond loopback without a key.
    """

    model: str = "llava:tiny"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    requests_per_minute: int = 0
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_urls: bool = False
    url_hosts: tuple[str, ...] = ()
    max_body_mib: int = 64
    max_bodies_mib: int = 512
    max_images: int = 16
    parallel: int = 8
    queue: int = 256
    keep_alive_s: float = 300.0
    kv_cache_gib: float = 0.0
    picture_cache_gib: float = 0.25
    cache_dir: str = ""
    disk_cache_gib: float = 2.0
    isolate_tenants: bool = False
    grace_s: float = 30.0
    planner_dir: str = ""
    preset: str = ""
    dtype: str = ""
    device: str = ""
    kv_dtype: str = "auto"
    mmproj: str = ""
    threads: int = 0
    insecure_no_key: bool = False

    def check(self) -> None:
        """Raise ConfigError where settings are out of range or contradict each other."""
        if math.isnan(self.keep_alive_s):
            raise ConfigError("keep_alive_s is no number; give seconds, or a negative number for ever.")
        for name, low, high in (
            ("port", 0, 65535), ("requests_per_minute", 0, 1_000_000), ("max_body_mib", 1, 4096),
            ("max_bodies_mib", 1, 1 << 20),
            ("max_images", 1, 1000), ("parallel", 1, 1024), ("queue", 0, 100_000), ("threads", 0, 4096),
            ("kv_cache_gib", 0, 4096), ("picture_cache_gib", 0, 4096), ("disk_cache_gib", 0, 100_000),
            ("grace_s", 0, 86_400),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be between {low} and {high}.")
        if self.host not in _LOOPBACK and not self.api_keys and not self.insecure_no_key:
            raise ConfigError(
                f"listening on {self.host!r} opens the server to other machines, and no key is set. Set one with "
                "--api-key or --api-key-file, or say --insecure-no-key."
            )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"allowed_origins has {origin!r}; a page's origin is scheme, host and port, such as "
                    "https://example.org or http://localhost:3000, and each is named by itself."
                )
        if any(len(key) < 8 for key in self.api_keys):
            raise ConfigError("an API key is shorter than 8 characters; use a longer one.")


def read_settings(
    flags: Mapping[str, Any], *, environment: Mapping[str, str] = os.environ, file: Path | None = None
) -> tuple[ServerSettings, dict[str, str]]:
    """Gather settings; return them, and where each came from.

    Parameters
    ----------
    flags : mapping
        Names of settings with the values given on the command line; None for those that were not.
    environment : mapping
        ``LLAVAKIT_PORT`` and the like; lists are separated by commas.
    file : Path, optional
        TOML with the same names.

    Raises
    ------
    ConfigError
        If a name is unknown or a value cannot be used.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    known = {field.name: field.default for field in fields(ServerSettings)}
    for name, value in (_read_file(file) if file is not None else {}).items():
        if name not in known:
            raise ConfigError(f"{str(file)!r} sets {name!r}, which is no setting; known: {', '.join(known)}.")
        values[name], origins[name] = _convert(name, value, known[name]), "file"
    for name, default in known.items():
        text = environment.get(f"{_PREFIX}{name.upper()}")
        if text is not None:
            values[name], origins[name] = _convert(name, _parse(text, default), default), "environment"
        if flags.get(name) is not None:
            values[name], origins[name] = _convert(name, flags[name], default), "flag"
    settings = ServerSettings(**values)
    settings.check()
    return settings, {name: origins.get(name, "default") for name in known}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the settings file {str(path)!r} cannot be read ({error}). Correct it.") from error


def _parse(text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(default, bool):
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower(), text)
    if isinstance(default, int | float):
        try:
            return float(text) if isinstance(default, float) else int(text)
        except ValueError:
            return text
    return text


def _convert(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(default):
        return value
    raise ConfigError(f"{name} is {value!r}; a {type(default).__name__.replace('tuple', 'list of texts')} is needed.")
