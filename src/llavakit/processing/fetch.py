"""Pictures from the web, without becoming a way into the local network.

A host name is resolved once; if any of its addresses is not global the URL is refused, and the connection goes to the
address that was checked, not to a second resolution. Every redirect is checked the same way. Bytes are counted as they
arrive, whatever a header claims, and one deadline covers everything.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from llavakit.core.errors import BadImageError, ImageSourceError

if TYPE_CHECKING:
    from llavakit.processing.sources import SourcePolicy

__all__ = ["Resolver", "fetch", "is_global_address", "shown_url"]

Resolver = Callable[[str, int], list[str]]
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(url: str, policy: SourcePolicy, *, resolve: Resolver | None = None) -> bytes:
    """Download a picture's bytes.

    Parameters
    ----------
    url : str
        http or https, without credentials.
    policy : SourcePolicy
    resolve : callable, optional
        Host and port to addresses (tests).

    Raises
    ------
    ImageSourceError
        If the URL is not allowed, cannot be reached in time, or answers with an error.
    BadImageError
        If more than ``policy.max_bytes`` arrive.
    """
    if not policy.allow_urls:
        raise ImageSourceError("pictures from the web are switched off here; send the picture itself.")
    # Neither a name server nor a server that sends its headers letter by letter can be interrupted from within.
    future: Future[bytes] = Future()
    worker = threading.Thread(
        target=_settle, args=(future, url, policy, resolve or _resolve), name="picture download", daemon=True
    )
    worker.start()
    try:
        return future.result(timeout=policy.timeout_s)
    except TimeoutError as error:
        raise ImageSourceError(
            f"{shown_url(url)} did not deliver within {policy.timeout_s:g} s. Try again, or pass a file."
        ) from error


def _settle(future: Future[bytes], url: str, policy: SourcePolicy, resolver: Resolver) -> None:
    try:
        future.set_result(_follow(url, policy, resolver))
    except BaseException as error:  # raised again where the result is awaited
        future.set_exception(error)


def _follow(url: str, policy: SourcePolicy, resolver: Resolver) -> bytes:
    deadline = time.monotonic() + policy.timeout_s
    for _ in range(policy.max_redirects + 1):
        parts, address = _check_url(url, policy, resolver)
        outcome = _request(parts, address, policy, deadline)
        if isinstance(outcome, bytes):
            return outcome
        try:
            previous, url = parts, urljoin(url, outcome)
        except ValueError as error:
            raise ImageSourceError(f"{shown_url(parts)} redirects to an invalid address ({error}).") from error
        if previous.scheme == "https" and urlsplit(url).scheme != "https":
            raise ImageSourceError(f"{shown_url(previous)} redirects from https to an unencrypted address; refused.")
    raise ImageSourceError(f"{url[:200]!r} was reached over more than {policy.max_redirects} redirects; refused.")


def is_global_address(address: str) -> bool:
    """Whether an IP address is a public one, looking through the forms of IPv6 that carry an IPv4 address."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if carried is None and ip in _NAT64:
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if carried is not None:
            ip = carried
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _check_url(url: str, policy: SourcePolicy, resolve: Resolver) -> tuple[SplitResult, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host and not host.isascii():  # a name in another script goes over the wire in its ASCII form
            host = host.encode("idna").decode("ascii")
            user = parts.netloc.rpartition("@")[0]  # kept, to be refused below
            parts = parts._replace(netloc=f"{user}@{host}" if user else host if port is None else f"{host}:{port}")
    except ValueError as error:
        raise ImageSourceError(f"{url[:200]!r} is no valid URL ({error}).") from error
    allowed = ("https", "http") if policy.allow_http else ("https",)
    if parts.scheme not in allowed or not host:
        raise ImageSourceError(f"{url[:200]!r} is not allowed; pictures come from {' or '.join(allowed)} addresses.")
    if policy.url_hosts and host.lower() not in policy.url_hosts:
        raise ImageSourceError(
            f"pictures may not come from {host[:100]!r} here; allowed: {', '.join(policy.url_hosts)}."
        )
    if parts.username or parts.password:
        raise ImageSourceError(f"the URL of {host!r} carries a user name or password; remove it.")
    if port not in (None, 80, 443) and not policy.allow_private_hosts:
        raise ImageSourceError(
            f"{shown_url(parts)} uses port {port}; without leave for private hosts (--allow-private-urls) only 80 and "
            "443 are allowed."
        )
    try:
        addresses = resolve(host, port or (443 if parts.scheme == "https" else 80))
    except (OSError, UnicodeError) as error:
        raise ImageSourceError(
            f"the host {host!r} cannot be found ({error}). Check the address and the network."
        ) from error
    if not addresses:
        raise ImageSourceError(f"the host {host!r} has no address.")
    if not policy.allow_private_hosts and not all(is_global_address(address) for address in addresses):
        raise ImageSourceError(
            f"{shown_url(parts)} is not a public address; private and local ones are refused. "
            "Download the picture and pass the file, or allow private hosts (--allow-private-urls)."
        )
    return parts, addresses[0]


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _request(parts: SplitResult, address: str, policy: SourcePolicy, deadline: float) -> bytes | str:
    """Return the body, or the target of a redirect."""
    host = parts.hostname or ""
    literal = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=literal if parts.port is None else f"{literal}:{parts.port}", fragment="").geturl()
    netloc = parts.netloc.rpartition("@")[2]
    headers = {"Host": netloc, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "llavakit"}
    try:
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=_remaining(deadline, parts)) as client,
            client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as response,
        ):
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return response.headers["location"]
            if response.status_code != 200:
                raise ImageSourceError(f"{shown_url(parts)} answered {response.status_code} {response.reason_phrase}.")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ImageSourceError(f"{shown_url(parts)} sends a compressed body, which was not asked for; refused.")
            return _read(response, parts, policy, deadline)
    except httpx.TimeoutException as error:
        raise _too_slow(parts, policy) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ImageSourceError(f"{shown_url(parts)} cannot be fetched ({error or type(error).__name__}).") from error


def _read(response: httpx.Response, parts: SplitResult, policy: SourcePolicy, deadline: float) -> bytes:
    body = bytearray()
    for chunk in response.iter_raw():  # as they arrive: waiting for full blocks would let a slow server outlast us
        body += chunk
        if len(body) > policy.max_bytes:
            raise BadImageError(
                f"{shown_url(parts)} sends more than {policy.max_bytes} bytes, the limit for a picture."
            )
        if time.monotonic() > deadline:
            raise _too_slow(parts, policy)
    return bytes(body)


def _remaining(deadline: float, parts: SplitResult) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ImageSourceError(f"{shown_url(parts)} was not reached in time.")
    return left


def _too_slow(parts: SplitResult, policy: SourcePolicy) -> ImageSourceError:
    return ImageSourceError(
        f"{shown_url(parts)} did not deliver within {policy.timeout_s:g} s. Try again, or pass a file."
    )


def shown_url(url: str | SplitResult) -> str:
    """Return an address as messages show it: in quotes, without a user's name and what is asked of the server."""
    parts = urlsplit(url) if isinstance(url, str) else url
    text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return repr(text if len(text) <= 120 else f"{text[:120]}...")
