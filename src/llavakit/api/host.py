"""Models by name for a server: found, loaded when asked for, kept for a while, let go.

One lock orders loading and unloading; answers run beside it. A model that is in use is never taken away, and a model is
loaded only where there is memory for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from llavakit.api.loaded_model import LoadedModel
from llavakit.api.loading import load
from llavakit.api.pulls import Pulls
from llavakit.api.serving import ServedModel, ServeSettings
from llavakit.core.errors import LlavakitError, ModelNotFoundError, OverloadedError, RefusedError, StoreError
from llavakit.core.requests import LoadedInfo, ModelInfo
from llavakit.core.shapes import count_parameters
from llavakit.engine.disk_store import DiskStore
from llavakit.planner.machine import detect_machine
from llavakit.processing.presets import default_preset_name, load_presets
from llavakit.processing.sources import SourcePolicy
from llavakit.weights import store
from llavakit.weights.opening import OpenedModel, open_resolved

__all__ = ["Host", "make_host"]

# Left to the system, to pictures that are being opened and to activations.
_SPARE_BYTES = 3 * 1024**3 // 2
_CHECK_EVERY_S = 1.0
_LOOK_EVERY_S = 0.02  # whether the last picture for a model that is let go of has been prepared
_ALIASES = {hub_id: alias for alias, hub_id in store.ALIASES.items()}
_T = TypeVar("_T")


@dataclass(eq=False)
class _Entry:
    """A model in memory."""

    info: ModelInfo
    served: ServedModel
    keep_alive_s: float
    last_used_s: float

    @property
    def expires_at_s(self) -> float | None:
        """Seconds since 1970, or None when it stays."""
        return None if math.isinf(self.keep_alive_s) else self.last_used_s + self.keep_alive_s


class Host:
    """`llavakit.core.requests.ModelHost` over the local store.

    Parameters
    ----------
    default : str
        The model that is meant when none is named.
    load_model : callable
        From a name to a `LoadedModel`.
    settings : ServeSettings
    keep_alive_s : float
        How long a model stays after its last request where the request does not say.
    mmproj : str, optional
        The projector of the default model, where it is a GGUF file without one beside it.
    disk : DiskStore, optional
        Of all models; closed with the host.
    """

    def __init__(
        self,
        default: str,
        *,
        load_model: Callable[[str], LoadedModel],
        settings: ServeSettings,
        keep_alive_s: float,
        mmproj: str | None = None,
        disk: DiskStore | None = None,
    ) -> None:
        self._default = default
        self._mmproj = mmproj
        self._load_model = load_model
        self._settings = settings
        self._keep_alive_s = keep_alive_s
        self._disk = disk
        self._entries: dict[str, _Entry] = {}
        self._pulls = Pulls()
        self._lock = asyncio.Lock()
        self._reaper: asyncio.Task[None] | None = None
        self._is_closing = False

    def list_models(self) -> Sequence[ModelInfo]:
        """All models on this machine, the embedded one included, and the one the server was started with."""
        names = [self._canonical(model.name) for model in store.list_models() if model.is_complete]
        if self._default not in names:
            names.insert(0, self._default)
        found = []
        for name in names:
            try:
                found.append(self.describe(name))
            except LlavakitError:  # an incomplete or foreign checkpoint is not ours to list
                continue
        return found

    def describe(self, name: str) -> ModelInfo:
        """One model, from its files' headers."""
        canonical = self._canonical(name)
        entry = self._entries.get(canonical)
        if entry is None:
            self._check_allowed(canonical)
        return replace(entry.info if entry is not None else self._describe(canonical), name=name)

    async def open(self, name: str | None, *, keep_alive_s: float | None = None) -> tuple[ServedModel, float]:
        """Return a model ready to answer, and the seconds that loading took."""
        name = self._canonical(name if name is not None else self._default)
        self._check_open()
        entry = self._entries.get(name)
        if entry is not None:
            self._touch(entry, keep_alive_s)
            return entry.served, 0.0
        self._check_allowed(name)
        async with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                self._touch(entry, keep_alive_s)
                return entry.served, 0.0
            started = time.perf_counter()
            info = await asyncio.to_thread(self._describe, name)
            await self._make_room(info)
            loaded = await _in_own_thread(self._load_model, name)
            free = await asyncio.to_thread(_available_bytes)
            self._check_open()  # what is in memory before closing begins is closed, and nothing comes after
            served = ServedModel(
                loaded, self._settings, name=name, fingerprint=info.digest,
                available_bytes=max(0, free - _SPARE_BYTES - (info.num_bytes if _is_mapped(loaded) else 0)),
                disk=self._disk,
            )  # fmt: skip
            entry = _Entry(info, served, self._keep_alive_s, time.time())
            self._touch(entry, keep_alive_s)
            self._entries[name] = entry
            if self._reaper is None:
                self._reaper = asyncio.create_task(self._let_go_of_unused())
            return served, time.perf_counter() - started

    def loaded(self) -> Sequence[LoadedInfo]:
        """Models in memory."""
        return [
            LoadedInfo(
                info=entry.info, num_bytes=entry.info.num_bytes, expires_at_s=entry.expires_at_s,
                max_context_tokens=entry.served.max_context_tokens, num_parallel=self._settings.num_parallel,
            )
            for entry in self._entries.values()
        ]  # fmt: skip

    def engines(self) -> Sequence[ServedModel]:
        """Engines of the models in memory."""
        return [entry.served for entry in self._entries.values()]

    async def unload(self, name: str) -> bool:
        """Let go of a model once its requests are answered."""
        async with self._lock:
            entry = self._entries.pop(self._canonical(name), None)
            if entry is None:
                return False
            while entry.served.num_coming:  # a picture that is being prepared for it
                await asyncio.sleep(_LOOK_EVERY_S)
            await asyncio.to_thread(entry.served.close, grace_s=math.inf if entry.served.num_open else 0.0)
            return True

    async def remove(self, name: str) -> None:
        """Delete a model's files from the store."""
        self._check_allowed(name)
        if not store.is_hub_id(name) or Path(name).is_dir():
            raise RefusedError(f"{name[:100]!r} is no model of the store and cannot be removed.", status=403)
        await self.unload(name)
        await asyncio.to_thread(store.remove, name)

    async def pull(self, name: str) -> AsyncIterator[tuple[str, int, int]]:
        """Fetch a model from the Hub, yielding the file at work, bytes so far and bytes in all; see `Pulls`."""
        if name in (self._default, store.EMBEDDED) and not store.is_hub_id(name):
            return  # it is here, and nowhere else
        if not store.is_hub_id(name):
            raise ModelNotFoundError(
                f"{name[:100]!r} is no model of the Hub. Name one such as llava:7b or llava-hf/llava-1.5-7b-hf."
            )
        self._check_open()
        async for status in self._pulls.watch(self._canonical(name)):
            yield status

    async def close(self, *, grace_s: float) -> None:
        """Take no more requests, give those that run ``grace_s`` seconds, cancel the rest and unload."""
        self._is_closing = True
        self._pulls.close()
        if self._reaper is not None:
            self._reaper.cancel()
        entries, self._entries = list(self._entries.values()), {}
        await asyncio.gather(*(asyncio.to_thread(entry.served.close, grace_s=grace_s) for entry in entries))
        if self._disk is not None:
            await asyncio.to_thread(self._disk.close)

    def _check_open(self) -> None:
        if self._is_closing:
            raise OverloadedError("the server is shutting down; try again in a moment.", retry_after_s=5)

    def _canonical(self, name: str) -> str:
        """Return the one name of a model that has two, so that it is in memory once: the server's own, or its alias."""
        alias = _alias_of(name)
        return self._default if alias == _alias_of(self._default) else alias

    def _describe(self, name: str) -> ModelInfo:
        return _describe(name, self._mmproj if name == self._default else None)

    def _check_allowed(self, name: str) -> None:
        """Let clients name models of the store, and what the server was started with: no path of its disk."""
        if self._canonical(name) in (self._default, *self._entries):
            return
        if not any(name in (model.name, model.hub_id) for model in store.list_models() if model.is_complete):
            raise ModelNotFoundError(f"there is no model {name[:100]!r} here. GET /v1/models lists what there is.")

    def _touch(self, entry: _Entry, keep_alive_s: float | None) -> None:
        entry.last_used_s = time.time()
        if keep_alive_s is not None:
            entry.keep_alive_s = keep_alive_s

    async def _make_room(self, info: ModelInfo) -> None:
        """Unload models that nobody uses until there is memory for another one."""
        while self._entries:
            free = await asyncio.to_thread(_available_bytes)
            if free > info.num_bytes + 2 * _SPARE_BYTES:
                return
            idle = [entry for entry in self._entries.values() if not entry.served.num_open]
            if not idle:
                raise OverloadedError(
                    f"there is no memory for {info.name!r} beside the models in use ({free / 1e9:.1f} GB are free, "
                    f"{(info.num_bytes + 2 * _SPARE_BYTES) / 1e9:.1f} GB needed). Try again when they are done.",
                    retry_after_s=10,
                )
            oldest = min(idle, key=lambda entry: entry.last_used_s)
            self._entries.pop(oldest.info.name, None)
            await asyncio.to_thread(oldest.served.close, grace_s=5.0)

    async def _let_go_of_unused(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            now_s = time.time()
            for name, entry in list(self._entries.items()):
                if entry.served.num_open:
                    entry.last_used_s = now_s
                elif (expires := entry.expires_at_s) is not None and expires <= now_s:
                    async with self._lock:
                        if self._entries.get(name) is entry and not entry.served.num_open:
                            del self._entries[name]
                            await asyncio.to_thread(entry.served.close, grace_s=5.0)


def _alias_of(name: str) -> str:
    """Return the alias of a Hub id that has one, unless a folder here goes by one of the two; else the name itself."""
    alias = _ALIASES.get(name, name)
    return name if alias == name or Path(name).is_dir() or Path(alias).is_dir() else alias


async def _in_own_thread(function: Callable[[str], _T], name: str) -> _T:
    """Call a function on a thread that ends with it.

    Whatever thread computes with torch gets a team of OpenMP's threads that lives as long as it does. With more of them
    than processors, all sleep between two operations instead of waiting awake, and answers take half as long again. So
    a thread of the pool, which would stay, may not load a model: the engine's thread is to be the only one with a team.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="loading")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function, name)
    finally:
        executor.shutdown(wait=False)


def make_host(
    model: str = store.EMBEDDED,
    *,
    dtype: str | None = None,
    device: str | None = None,
    preset: str | None = None,
    mmproj: str | None = None,
    kv_dtype: str = "auto",
    policy: SourcePolicy | None = None,
    keep_alive_s: float = 300.0,
    max_waiting: int = 256,
    num_parallel: int = 8,
    cache_dir: Path | None = None,
    disk_cache_bytes: int = 2 * 1024**3,
    cache_bytes: int | None = None,
    picture_cache_bytes: int = 256 * 1024**2,
    isolate_tenants: bool = False,
    threads: int | None = None,
) -> Host:
    """Make what a server needs: see `llavakit.load` and `ServeSettings` for the settings.

    Nothing is loaded before `Host.open`. ``mmproj`` belongs to the model that is named here. In ``cache_dir`` features
    and blocks of pictures outlive a restart, ``disk_cache_bytes`` of all models together.

    Raises
    ------
    ConfigError
        If ``cache_dir`` cannot be used.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)

    def load_model(name: str) -> LoadedModel:
        options: dict[str, Any] = {"mmproj": mmproj} if name == model else {}
        return load(
            name, dtype=dtype, device=device, preset=preset, kv_dtype=kv_dtype,
            policy=policy or SourcePolicy(allow_files=False, allow_urls=False), **options,
        )  # fmt: skip

    settings = ServeSettings(
        num_parallel=num_parallel, max_waiting=max_waiting, cache_bytes=cache_bytes, isolate_tenants=isolate_tenants,
        picture_cache_bytes=picture_cache_bytes,
    )  # fmt: skip
    disk = DiskStore(cache_dir, max_bytes=disk_cache_bytes) if cache_dir is not None and disk_cache_bytes > 0 else None
    return Host(model, load_model=load_model, settings=settings, keep_alive_s=keep_alive_s, mmproj=mmproj, disk=disk)


def _describe(name: str, mmproj: str | None) -> ModelInfo:
    found = store.resolve(name, allow_download=False, mmproj=mmproj)
    opened = open_resolved(found)
    config, files = opened.checkpoint.config, opened.weight_files
    statuses = [(file.name, file.stat()) for file in files]
    digest = hashlib.sha256(repr([(file, s.st_size, s.st_mtime_ns) for file, s in statuses]).encode())
    digest.update(repr(config).encode())
    presets = load_presets(opened.processor_folder, config)
    default = opened.preset or default_preset_name(opened.processor_folder)
    licence = next(iter(sorted(found.folder.glob("LICENSE*"))), None)
    text = config.text_config
    return ModelInfo(
        name=name,
        num_bytes=sum(s.st_size for _, s in statuses),
        digest=digest.hexdigest(),
        modified_at_s=max(s.st_mtime for _, s in statuses),
        format="gguf" if opened.checkpoint.is_gguf else "safetensors",
        num_parameters=count_parameters(config),
        storage_type=_storage_type(opened),
        max_context_tokens=config.max_context_tokens,
        hidden_size=text.hidden_size,
        license_text=_read_text(licence),
        template=presets[default].template if default in presets else "",
        details={
            "general.architecture": "llama",
            "general.parameter_count": count_parameters(config),
            "llama.block_count": text.num_hidden_layers,
            "llama.context_length": config.max_context_tokens,
            "llama.embedding_length": text.hidden_size,
            "llama.attention.head_count": text.num_attention_heads,
            "llama.attention.head_count_kv": text.num_key_value_heads,
            "clip.vision.image_size": config.vision_config.image_size,
            "clip.vision.patch_size": config.vision_config.patch_size,
            "clip.vision.block_count": config.num_vision_blocks,
            "llava.tokens_per_image": config.num_image_tokens,
        },
    )


def _storage_type(opened: OpenedModel) -> str:
    """How most of the language model's bytes are stored."""
    sizes: dict[str, int] = {}
    for tensor in opened.checkpoint.tensors.values():
        dtype = str(tensor.dtype)
        sizes[dtype] = sizes.get(dtype, 0) + tensor.data.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _read_text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[: 1 << 16]
    except OSError as error:
        raise StoreError(f"the licence of the model cannot be read ({error.strerror}).") from error


def _is_mapped(loaded: LoadedModel) -> bool:
    """Whether the weights are pages of files, which count as free memory until they are read."""
    return loaded.device.type == "cpu"


def _available_bytes() -> int:
    available = detect_machine().available_bytes
    return available if available is not None else 4 * 1024**3
