"""Models by name: the embedded one, folders, and the Hugging Face cache, which other programs share.

Nothing is copied: the store *is* huggingface_hub's cache, so what transformers has fetched is found here, and a
download that was interrupted goes on where it stopped. The Hub's client is imported only where the Hub or its cache is
asked: it takes longer to import than a small model takes to load.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from llavakit.core.config_json import is_original_config
from llavakit.core.errors import ConfigError, FormatError, ModelNotFoundError, StoreError
from llavakit.weights.checkpoint import read_json

__all__ = [
    "ALIASES",
    "EMBEDDED",
    "OnProgress",
    "ResolvedModel",
    "StoredModel",
    "is_hub_id",
    "list_models",
    "pull",
    "remove",
    "resolve",
]

EMBEDDED = "llava:tiny"
ALIASES = {"llava:7b": "llava-hf/llava-1.5-7b-hf", "llava:13b": "llava-hf/llava-1.5-13b-hf"}
# Owner and name as the Hub allows them: nothing that could be a path.
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# Bytes done, bytes in all, file at work.
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are.

    Attributes
    ----------
    name : str
        As asked for.
    folder : Path
    vision_folder : Path, optional
        The CLIP tower of an original checkpoint.
    source : str
        ``embedded``, ``folder``, ``hub`` or ``gguf``.
    gguf_file : Path, optional
        The language model of a GGUF pair.
    mmproj_file : Path, optional
        Its projector, where it was named.
    """

    name: str
    folder: Path
    vision_folder: Path | None
    source: str
    gguf_file: Path | None = None
    mmproj_file: Path | None = None


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine.

    Attributes
    ----------
    name : str
        An alias where there is one, else the Hub id.
    hub_id : str, optional
        None for the embedded model.
    num_bytes : int
        On the disk.
    folder : Path
    is_complete : bool
        Whether every file a run needs is there.
    """

    name: str
    hub_id: str | None
    num_bytes: int
    folder: Path
    is_complete: bool


def resolve(
    model: str | Path,
    *,
    on_progress: OnProgress | None = None,
    allow_download: bool = True,
    with_weights: bool = True,
    mmproj: str | Path | None = None,
) -> ResolvedModel:
    """Find a model's folder, fetching it first if it must be.

    Parameters
    ----------
    model : str or Path
        ``llava:tiny``, ``llava:7b``, ``llava:13b``, a Hub id ``owner/name``, a folder, or a ``.gguf`` file.
    on_progress : callable, optional
    allow_download : bool, default True
    with_weights : bool, default True
        Whether the weights must be there; a processor needs only the small files beside them.
    mmproj : str or Path, optional
        The projector of a GGUF language model, where it is not the one beside it.

    Raises
    ------
    ModelNotFoundError
        If there is no such model.
    StoreError
        If it cannot be fetched.
    ConfigError
        If a projector is named for a model that has its own.
    """
    name = str(model)
    is_gguf = name.lower().endswith(".gguf")
    if mmproj is not None and not is_gguf:
        raise ConfigError(f"mmproj is for GGUF files; {name[:200]!r} is none and has its own projector.")
    if name == EMBEDDED:
        return ResolvedModel(name, embedded_folder(), None, "embedded")
    path = _path(name)
    if is_gguf:
        projector = None if mmproj is None else _path(str(mmproj))
        for file in (path,) if projector is None else (path, projector):
            if not _is_file(file):
                raise ModelNotFoundError(f"there is no file {str(file)[:200]!r}; check the path.")
        return ResolvedModel(name, path.parent, None, "gguf", path, projector)
    if name and _is_dir(path):
        return ResolvedModel(name, path, _vision_folder(path, on_progress, allow_download, with_weights), "folder")
    if _is_file(path):
        raise ModelNotFoundError(f"{path.name!r} is a file; name the folder that holds config.json and the weights.")
    from llavakit.weights import hub

    hub_id = _hub_id(name)
    folder = hub.cached_folder(hub_id, with_weights=with_weights)
    if folder is None:
        if not allow_download:
            raise ModelNotFoundError(f"{name!r} is not on this machine. Fetch it with `llavakit pull {name}`.")
        folder = hub.download(hub_id, on_progress=on_progress, with_weights=with_weights)
    return ResolvedModel(name, folder, _vision_folder(folder, on_progress, allow_download, with_weights), "hub")


def pull(model: str, *, on_progress: OnProgress | None = None) -> ResolvedModel:
    """Fetch a model from the Hub, or what is missing of it, or a newer version.

    Raises
    ------
    ModelNotFoundError, DownloadError, DiskFullError
        What was fetched before stays and is not fetched again.
    StoreError
        If it is a file or folder of the user's.
    """
    if model == EMBEDDED:
        return resolve(model)
    if not is_hub_id(model) and (kind := _kind_of_path(model)) is not None:
        raise StoreError(f"{model!r} is a {kind} of yours, and there is nothing to fetch: use it by this name.")
    from llavakit.weights import hub

    folder = hub.download(_hub_id(model), on_progress=on_progress)
    tower = _vision_folder(folder, on_progress, allow_download=True, with_weights=True)
    return ResolvedModel(model, folder, tower, "hub")


def list_models() -> list[StoredModel]:
    """List the embedded model and every LLaVA in the store."""
    from llavakit.weights import hub

    folder = embedded_folder()
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    models = [StoredModel(EMBEDDED, None, num_bytes, folder, is_complete=True)]
    names = {hub_id: alias for alias, hub_id in ALIASES.items()}
    for entry in hub.scan():
        if _is_llava(entry.folder):
            name = names.get(entry.hub_id, entry.hub_id)
            is_complete = hub.cached_folder(entry.hub_id) is not None
            models.append(StoredModel(name, entry.hub_id, entry.num_bytes, entry.folder, is_complete))
    return models


def remove(model: str) -> int:
    """Delete a model from the store; return the bytes freed.

    Raises
    ------
    StoreError
        If it is the embedded model, or a file or folder of the user's.
    ModelNotFoundError
        If it is not in the store.
    """
    if model == EMBEDDED:
        raise StoreError(f"{EMBEDDED} is part of the program and cannot be removed.")
    if (kind := _kind_of_path(model)) is not None:
        raise StoreError(
            f"{model!r} is a {kind} of yours, not a model of the store; delete it yourself if you mean to."
        )
    from llavakit.weights import hub

    return hub.delete(_hub_id(model))


def embedded_folder() -> Path:
    """Folder of the embedded model."""
    folder = Path(str(files("llavakit") / "assets" / "tiny"))
    if not (folder / "model.safetensors").is_file():
        raise ModelNotFoundError(f"this installation lacks the embedded model {EMBEDDED}; install llavakit again.")
    return folder


def _path(name: str) -> Path:
    """Turn what a user typed into a path; a home folder that nobody has is taken literally."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _is_dir(path: Path) -> bool:
    """Whether this is a folder; a name no file system takes, or one out of reach, is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _kind_of_path(name: str) -> str | None:
    """Tell whether a name is a folder or a file here."""
    path = _path(name)
    return "folder" if name and _is_dir(path) else "file" if _is_file(path) else None


def is_hub_id(name: str) -> bool:
    """Whether a name is an alias, or has the form of a Hub id; asks neither disk nor network."""
    hub_id = ALIASES.get(name, name)
    return _HUB_ID.fullmatch(hub_id) is not None and ".." not in hub_id and "--" not in hub_id


def _hub_id(name: str) -> str:
    hub_id = ALIASES.get(name, name)
    if not is_hub_id(hub_id):
        known = ", ".join([EMBEDDED, *ALIASES])
        raise ModelNotFoundError(
            f"there is no model {name[:200]!r}: it is no folder here and no Hugging Face id of the form owner/name. "
            f"Known names: {known}."
        )
    return hub_id


def _vision_folder(
    folder: Path, on_progress: OnProgress | None, allow_download: bool, with_weights: bool
) -> Path | None:
    """Find the CLIP tower that an original checkpoint's config names: a folder, or a Hub id."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        return None
    raw = read_json(config_file)
    if not is_original_config(raw):
        return None
    tower = raw.get("mm_vision_tower")
    if not isinstance(tower, str):
        raise ConfigError(f"config.json: mm_vision_tower is {tower!r}; the name of the CLIP tower is needed.")
    beside = folder / Path(tower).name
    for candidate in (beside, _path(tower)):
        if _is_file(candidate / "config.json"):
            return candidate
    from llavakit.weights import hub

    hub_id = _hub_id(tower)
    cached = hub.cached_folder(hub_id, with_weights=with_weights)
    if cached is not None or not allow_download:
        return cached
    return hub.download(hub_id, on_progress=on_progress, with_weights=with_weights)


def _is_llava(folder: Path) -> bool:
    file = folder / "config.json"
    if not file.is_file():
        return False
    try:
        raw = read_json(file)
    except FormatError:  # a damaged config must not hide the other models
        return False
    return raw.get("model_type") == "llava" or is_original_config(raw)
