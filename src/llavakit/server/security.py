"""Who may ask: keys, hosts, origins, rates and sizes. Everything is refused before a body is parsed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from llavakit.core.errors import AccessError, PromptError, RefusedError
from llavakit.core.nesting import nesting_depth
from llavakit.server.settings import ServerSettings

__all__ = ["Gate", "parse_json"]

_MAX_PARTS = 4096  # of all messages of a request
_MAX_DEPTH = 64
_OPEN_PATHS = ("/health", "/health/live", "/health/ready")
_LOCAL_NAMES = ("localhost",)


class Gate:
    """Decides whether a request may come in.

    Parameters
    ----------
    settings : ServerSettings
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._recent: dict[bytes, deque[float]] = {}

    def check(self, path: str, headers: Mapping[str, str], *, is_asset: bool) -> str:
        """Return the tenant of a request.

        Parameters
        ----------
        path : str
        headers : mapping
            With lower-case names.
        is_asset : bool
            Whether it is a file of the page, which asks for the key itself.

        Raises
        ------
        AccessError, RefusedError
            If it may not come in.
        """
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        if path in _OPEN_PATHS or is_asset:
            return ""
        return self._check_key(headers.get("authorization", ""))

    def allows_origin(self, origin: str) -> bool:
        """Whether a web page of this origin may read answers."""
        return origin in self._settings.allowed_origins

    def _check_host(self, host: str) -> None:
        """Refuse names that a rebinding name server could have given to this address."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name in _LOCAL_NAMES or name == self._settings.host or name in self._settings.allowed_hosts:
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise RefusedError(
                f"the host name {name[:100]!r} is not one of this server's. Call it by its address, or start it with "
                "--allow-host.",
                status=403, code="access",
            ) from None  # fmt: skip

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse web pages of other origins, whatever their browser thinks of it."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.allowed_origins:
            return
        try:
            is_own = urlsplit(origin).netloc == headers.get("host")
        except ValueError:
            is_own = False
        if is_own:
            return
        raise RefusedError(
            "a web page of another origin may not call this server. Start it with --allow-origin.",
            status=403, code="access",
        )  # fmt: skip

    def _check_key(self, authorization: str) -> str:
        if not self._keys:
            return ""
        scheme, _, key = authorization.partition(" ")
        # A header's bytes come as latin-1; a key is compared as it was sent, in UTF-8.
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        # Every key is compared, in constant time: neither the number of right letters nor the place in the list shows.
        is_known = any([hmac.compare_digest(digest, known) for known in self._keys])
        if scheme.lower() != "bearer" or not is_known:
            raise AccessError("a key is needed: send the header 'Authorization: Bearer KEY' with one of this server's.")
        self._check_rate(digest)
        return digest.hex()[:16]

    def _check_rate(self, digest: bytes) -> None:
        limit, now_s = self._settings.requests_per_minute, time.monotonic()
        if not limit:
            return
        recent = self._recent.setdefault(digest, deque())
        while recent and recent[0] < now_s - 60:
            recent.popleft()
        if len(recent) >= limit:
            raise RefusedError(
                f"this key has asked {limit} times in a minute, which is its limit. Wait.", status=429, code="access"
            )
        recent.append(now_s)


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a request's body: an object that is not nested too deep.

    Raises
    ------
    PromptError
        If it is anything else.
    """
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"the body is no JSON ({str(error)[:200]}). Correct it.") from error
    if not isinstance(content, dict):
        raise PromptError(f"the body must be a JSON object, got {type(content).__name__}.")
    if (depth := nesting_depth(content)) > _MAX_DEPTH:
        raise PromptError(f"the body is nested {depth} levels deep; at most {_MAX_DEPTH} are taken. Flatten it.")
    if b"\\ud" in body or b"\\uD" in body:
        _check_pairs_are_whole(content)
    _check_num_parts(content)
    return content


def _check_pairs_are_whole(content: dict[str, Any]) -> None:
    """Refuse half of a surrogate pair, which no answer could repeat."""
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError("the body has half of a surrogate pair. Send the whole character.") from error


def _check_num_parts(content: dict[str, Any]) -> None:
    """Refuse messages of more pieces than a conversation can have: to check each would keep everybody waiting."""
    num_parts = 0
    for messages in (content.get("messages"), content.get("input")):
        for message in messages if isinstance(messages, list) else ():
            pieces = message.get("content") if isinstance(message, dict) else None
            num_parts += len(pieces) if isinstance(pieces, list) else 1
    if num_parts > _MAX_PARTS:
        raise PromptError(f"the messages have {num_parts} parts; at most {_MAX_PARTS} are taken. Join texts.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
