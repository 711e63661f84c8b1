"""The Hugging Face Hub and its cache, through huggingface_hub: the only module that knows that library."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, scan_cache_dir
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: whichever transport it uses
    CacheNotFound,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # public, imported lazily
from tqdm import tqdm

from llavakit.core.errors import DiskFullError, DownloadError, FormatError, ModelNotFoundError, StoreError
from llavakit.weights.checkpoint import read_json
from llavakit.weights.fetch import fetch_file, partial_path

__all__ = ["CachedRepo", "cached_folder", "count_downloads", "delete", "download", "scan"]

_SMALL_FILES = ("*.json", "tokenizer.model", "*.jinja", "README.md", "LICENSE*")
_SAFETENSORS = ("model*.safetensors",)
_TORCH = ("pytorch_model*.bin",)
_UNUSED = ("trainer_state.json", "*onnx*", "*flax*", "*tf_*", "*openvino*")
# Left free on the disk, so that the machine goes on working.
_RESERVE_BYTES = 256 * 1024**2
_COUNT_SECONDS = 3.0
# What may become the name of a file: the Hub's etags are digests.
_PLAIN_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CachedRepo:
    """A repository in the cache."""

    hub_id: str
    folder: Path
    num_bytes: int


def cached_folder(hub_id: str, *, with_weights: bool = True) -> Path | None:
    """Folder of a repository whose files are all here, or None. Asks no network."""
    for entry in scan():
        if entry.hub_id == hub_id:
            is_usable = _is_complete(entry.folder) if with_weights else (entry.folder / "config.json").is_file()
            return entry.folder if is_usable else None
    return None


def scan() -> list[CachedRepo]:
    """Every model repository in the cache, each at its newest snapshot."""
    try:
        info = scan_cache_dir()
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repo in info.repos:
        if repo.repo_type != "model" or not repo.revisions:
            continue
        by_main = [revision for revision in repo.revisions if "main" in revision.refs]
        newest = (by_main or sorted(repo.revisions, key=lambda revision: revision.last_modified))[-1]
        found.append(CachedRepo(repo.repo_id, newest.snapshot_path, repo.size_on_disk))
    return sorted(found, key=lambda entry: entry.hub_id)


def delete(hub_id: str) -> int:
    """Delete a repository from the cache; return the bytes freed."""
    try:
        info = scan_cache_dir()
    except CacheNotFound:
        info = None
    repos = [repo for repo in info.repos if repo.repo_id == hub_id and repo.repo_type == "model"] if info else []
    if not repos or info is None:
        raise ModelNotFoundError(f"{hub_id!r} is not in the store; `llavakit list` shows what is.")
    strategy = info.delete_revisions(*(revision.commit_hash for revision in repos[0].revisions))
    strategy.execute()
    return int(strategy.expected_freed_size)


def download(hub_id: str, *, on_progress: OnProgress | None = None, with_weights: bool = True) -> Path:
    """Fetch what a run needs of a repository, or all of that but the weights; return its folder.

    Raises
    ------
    ModelNotFoundError
        If the Hub has no such repository, or it is private or gated.
    DiskFullError
        If the disk has not enough room, before or during the download.
    DownloadError
        If the network fails.
    StoreError
        If the store's folder cannot be used.
    """
    with _clear_errors(hub_id):
        info = HfApi(endpoint=constants.ENDPOINT).model_info(hub_id, files_metadata=True)
    sizes = {item.rfilename: int(item.size or 0) for item in info.siblings or []}
    digests = {item.rfilename: item.lfs.sha256 for item in info.siblings or [] if item.lfs is not None}
    wanted = _needed(sizes)
    if not any(name.endswith((".safetensors", ".bin")) for name in wanted):
        raise ModelNotFoundError(
            f"{hub_id!r} has no model.safetensors or pytorch_model.bin that this program could run."
        )
    if not with_weights:
        wanted = {name: size for name, size in wanted.items() if not name.endswith((".safetensors", ".bin"))}
    cache = Path(constants.HF_HUB_CACHE)
    missing = {name: size for name, size in wanted.items() if not _is_cached(hub_id, name, str(info.sha))}
    storage = cache / f"models--{hub_id.replace('/', '--')}"
    waiting = sum(_partial_bytes(storage, digests.get(name), size) for name, size in missing.items())
    _check_space(hub_id, sum(missing.values()) - waiting, cache)
    done, total = sum(wanted.values()) - sum(missing.values()), sum(wanted.values())
    folder: Path | None = None
    # The configuration comes last: a folder that has one has everything that was asked for.
    for name in sorted(wanted, key=lambda item: (item == "config.json", item)):
        report = None if on_progress is None else _reporter(on_progress, done, total, name)
        with _clear_errors(hub_id):
            if name in missing and name.endswith((".safetensors", ".bin")):
                _fetch_blob(hub_id, name, str(info.sha), storage, digests.get(name), report)
                report = None
            path = hf_hub_download(hub_id, name, revision=info.sha, tqdm_class=_progress_class(report))
        done += missing.get(name, 0)
        if on_progress is not None:
            on_progress(done, total, name)
        folder = Path(path).parent if name == "config.json" else folder
    if folder is None:
        raise ModelNotFoundError(f"{hub_id!r} has no config.json; it is no model that this program could run.")
    # Only now does "main" mean this snapshot: an interrupted update leaves the version before it in use.
    with _clear_errors(hub_id):
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / "main").write_text(str(info.sha), encoding="ascii")
    return folder


def _fetch_blob(
    hub_id: str, name: str, revision: str, storage: Path, digest: str | None, report: Callable[[int], None] | None
) -> None:
    """Put a file's bytes where huggingface_hub's cache has them, which then only needs to link to them."""
    url = hf_hub_url(hub_id, name, revision=revision)
    metadata = get_hf_file_metadata(url)
    if metadata.etag is None or metadata.size is None or not _PLAIN_ETAG.fullmatch(metadata.etag):
        raise DownloadError(f"the Hub gives no usable size and etag for {name!r}")
    blob = storage / "blobs" / metadata.etag
    lock = storage.parent / ".locks" / storage.name / f"{metadata.etag}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            fetch_file(url, blob, num_bytes=metadata.size, sha256=digest, headers=build_hf_headers(), on_bytes=report)


def _partial_bytes(storage: Path, digest: str | None, num_bytes: int) -> int:
    """Bytes of a file that an interrupted download left."""
    if digest is None or not _PLAIN_ETAG.fullmatch(digest):
        return 0
    partial = partial_path(storage / "blobs" / digest)
    return min(num_bytes, partial.stat().st_size) if partial.is_file() else 0


def _needed(sizes: dict[str, int]) -> dict[str, int]:
    """Files of the top folder that a run needs; PyTorch files only where there are no safetensors."""
    top = {name: size for name, size in sizes.items() if "/" not in name and not _matches(name, _UNUSED)}
    weights = {name: size for name, size in top.items() if _matches(name, _SAFETENSORS)}
    weights = weights or {name: size for name, size in top.items() if _matches(name, _TORCH)}
    small = {name: size for name, size in top.items() if _matches(name, _SMALL_FILES)}
    if any(name.endswith(".safetensors") for name in weights):
        small = {name: size for name, size in small.items() if not name.startswith("pytorch_model")}
    return {**small, **weights}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _is_cached(hub_id: str, name: str, revision: str) -> bool:
    try:
        hf_hub_download(hub_id, name, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return False
    return True


def _is_complete(folder: Path) -> bool:
    """Whether configuration and every shard that the index names are here."""
    if not (folder / "config.json").is_file():
        return False
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            try:
                shards = set(read_json(index).get("weight_map", {}).values())
            except (FormatError, AttributeError, TypeError):
                return False
            return bool(shards) and all((folder / str(shard)).is_file() for shard in shards)
        if (folder / stem).is_file():
            return True
    return False


def _check_space(hub_id: str, num_bytes: int, cache: Path) -> None:
    place = cache
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if num_bytes and num_bytes + _RESERVE_BYTES > free:
        raise DiskFullError(
            f"{hub_id!r} needs {num_bytes / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB free "
            f"({_RESERVE_BYTES / 1e9:.1f} GB are kept in reserve). Make room, remove models with `llavakit rm`, or set "
            "HF_HOME to another disk."
        )


def _reporter(on_progress: OnProgress, done: int, total: int, name: str) -> Callable[[int], None]:
    received = 0

    def report(num_bytes: int) -> None:
        nonlocal received
        received += num_bytes
        on_progress(min(done + received, total), total, name)

    return report


def _progress_class(report: Callable[[int], None] | None) -> type[tqdm[Any]]:
    """Make a silent progress bar that passes its updates on."""

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            # What an earlier, interrupted download left counts as received.
            if report is not None and kwargs.get("initial"):
                report(int(kwargs["initial"]))

        def update(self, n: float | None = 1) -> bool | None:
            if report is not None and n:
                report(int(n))
            return None

    return Silent


@contextmanager
def _clear_errors(hub_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{hub_id!r} is gated: accept its licence on its page, then log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelNotFoundError(
            f"the Hub has no model {hub_id!r}, or it is private. Check the name; log in with "
            "`hf auth login` if it is yours."
        ) from error
    except DownloadError as error:
        raise _download_error(hub_id, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk became full while fetching {hub_id!r}. What was complete is kept; make room and run the "
                "same command again, it goes on where it stopped."
            ) from error
        if error.filename is not None:  # a file of this machine: errors of the network name none
            raise StoreError(
                f"{hub_id!r} could not be fetched: {str(error.filename)!r} in the store's folder cannot be used "
                f"({error.strerror}). Models are kept in {str(constants.HF_HUB_CACHE)!r}; make that a folder that can "
                "be written, or set HF_HOME to another one."
            ) from error
        raise _download_error(hub_id, error) from error
    # The library checks itself with assertions, and its transport's errors derive from HTTPError.
    except (HTTPError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise _download_error(hub_id, error) from error


def _download_error(hub_id: str, error: Exception) -> DownloadError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DownloadError(
        f"{hub_id!r} could not be fetched ({reason}). What was complete is kept; check the network and run the same "
        "command again, it goes on where it stopped."
    )


def count_downloads(hub_id: str) -> int | None:
    """Return how often a repository was fetched in the last month; None where the Hub does not say within seconds."""
    try:
        found = HfApi().model_info(hub_id, timeout=_COUNT_SECONDS)
    except Exception:
        return None
    return found.downloads
