"""One large file over HTTP, resumable across runs and checked at the end.

huggingface_hub 2 throws a partial file away when its process ends; a 5 GB shard would start again from nothing. So
shards are fetched here, straight to the place in the cache where huggingface_hub then finds them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from llavakit.core.errors import DownloadError

__all__ = ["fetch_file", "partial_path"]

_TIMEOUT = httpx.Timeout(30.0, connect=15.0)
# Attempts in a row that bring nothing new before giving up.
_MAX_IDLE_ATTEMPTS = 4
_RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def partial_path(target: Path) -> Path:
    """Name the file in which an unfinished download of ``target`` waits."""
    return target.with_name(f"{target.name}.incomplete")


def fetch_file(
    url: str,
    target: Path,
    *,
    num_bytes: int,
    sha256: str | None,
    headers: Mapping[str, str],
    on_bytes: Callable[[int], None] | None = None,
    pause_s: float = 1.0,
) -> None:
    """Fetch a file, going on where an earlier run stopped.

    Parameters
    ----------
    url : str
    target : Path
        Appears only when all bytes are there and their digest is right.
    num_bytes : int
        Size that the file must have.
    sha256 : str, optional
        Its digest in hex.
    headers : mapping
        For the first host only; a redirect to another one does not get the authorization.
    on_bytes : callable, optional
        Called with bytes received since the last call; first with those of earlier runs, negative when they are lost.
    pause_s : float, default 1
        Before the second attempt; doubled for each further one.

    Raises
    ------
    DownloadError
        If the server refuses, sends something else, or is silent too long. The partial file stays, unless it is wrong.
    OSError
        If the disk is full or cannot be written.
    """
    report = on_bytes or (lambda _: None)
    partial = partial_path(target)
    done = partial.stat().st_size if partial.is_file() else 0
    if done > num_bytes:
        partial.unlink()
        done = 0
    report(done)
    idle = 0
    while done < num_bytes:
        before = done
        try:
            done = _receive(url, partial, done, num_bytes, headers, report)
        except httpx.HTTPError as error:
            done = partial.stat().st_size if partial.is_file() else 0
            reason = str(error) or type(error).__name__
        else:
            reason = f"the connection ended after {done} of {num_bytes} bytes"
        idle = 0 if done > before else idle + 1
        if done < num_bytes:
            if idle >= _MAX_IDLE_ATTEMPTS:
                raise DownloadError(reason)
            time.sleep(pause_s * 2**idle)
    if num_bytes == 0:
        partial.touch()
    if sha256 is not None and _digest(partial) != sha256:
        partial.unlink()
        raise DownloadError(f"{num_bytes} bytes came, but their SHA-256 is not {sha256}; they were deleted")
    partial.replace(target)


def _receive(
    url: str, partial: Path, done: int, num_bytes: int, headers: Mapping[str, str], report: Callable[[int], None]
) -> int:
    """Make one request for the rest of the file; return the bytes there are now."""
    asked = {**headers, "Accept-Encoding": "identity"}
    if done:
        asked["Range"] = f"bytes={done}-"
    with httpx.stream("GET", url, headers=asked, timeout=_TIMEOUT, follow_redirects=True) as response:
        if response.status_code in _RETRIED_STATUS:
            raise httpx.HTTPError(f"the server answered {response.status_code}")
        is_rest = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if not is_rest and response.status_code != 200:
            raise DownloadError(f"the server answered {response.status_code}")
        if done and not is_rest:  # the server does not know ranges: from the start
            report(-done)
            done = 0
        with partial.open("ab" if done else "wb") as file:
            for chunk in response.iter_raw():  # as it comes: what a larger buffer holds is lost with the connection
                done += len(chunk)
                if done > num_bytes:
                    file.truncate(0)
                    raise DownloadError(f"the server sends more than the {num_bytes} bytes it announced")
                file.write(chunk)
                report(len(chunk))
    return done


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
