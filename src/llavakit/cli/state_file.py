"""A note that a server runs on this machine, so that ``llavakit run`` can ask it instead of loading the model again."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["RunningServer", "find_server", "forget_server", "remember_server"]


@dataclass(frozen=True)
class RunningServer:
    """A server that this user started."""

    url: str
    model: str
    pid: int
    needs_key: bool


def remember_server(url: str, model: str, pid: int, *, needs_key: bool) -> None:
    """Leave the note; a machine where that cannot be done only loses the convenience."""
    with contextlib.suppress(OSError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(f".{pid}")
        partial.write_text(json.dumps(asdict(RunningServer(url, model, pid, needs_key))), encoding="utf-8")
        partial.chmod(0o600)
        partial.replace(path)


def _is_own(path: Path) -> bool:
    """Whether file and folder are this user's alone; another's note could send pictures to a server of theirs."""
    statuses = (path.parent.lstat(), path.lstat())
    return all(status.st_uid == os.getuid() and not status.st_mode & 0o022 for status in statuses)


def forget_server(pid: int) -> None:
    """Remove the note if it is still of this process."""
    found = find_server()
    if found is not None and found.pid == pid:
        with contextlib.suppress(OSError):
            _path().unlink()


def find_server() -> RunningServer | None:
    """Return what the note says, if its process still runs."""
    path = _path()
    try:
        if not _is_own(path):
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        found = RunningServer(
            str(content["url"]), str(content["model"]), int(content["pid"]), bool(content["needs_key"])
        )
        os.kill(found.pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _path() -> Path:
    folder = os.environ.get("XDG_RUNTIME_DIR")
    if folder:
        return Path(folder) / "llavakit" / "server.json"
    # Beside other users' files in a shared folder a name could be taken by somebody else.
    return Path(tempfile.gettempdir()) / f"llavakit-{os.getuid()}" / "server.json"
