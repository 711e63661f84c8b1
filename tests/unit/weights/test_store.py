"""The store against a Hub of our own: pull, list, rm, and everything that goes wrong on the way."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llavakit.core.errors import (
    ConfigError,
    DiskFullError,
    DownloadError,
    LlavakitError,
    ModelNotFoundError,
    StoreError,
)  # fmt: skip
from llavakit.weights import fetch, hub, store
from llavakit.weights.checkpoint import open_checkpoint
from tests.unit.weights import builders as b
from tests.unit.weights.hub_stand_in import Hub, serve

NAME = "someone/tiny-llava"
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(autouse=True)
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in with one sharded model, and an empty cache of its own."""
    from huggingface_hub import constants

    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            hub, "hf_hub_url", lambda hub_id, name, *, revision: f"{served.endpoint}/{hub_id}/resolve/{revision}/{name}"
        )
        download, scan = hub.hf_hub_download, hub.scan_cache_dir
        cache = tmp_path / "cache"
        monkeypatch.setattr(
            hub,
            "hf_hub_download",
            lambda *args, **more: download(*args, cache_dir=cache, endpoint=served.endpoint, **more),
        )
        monkeypatch.setattr(hub, "scan_cache_dir", lambda: scan(cache))
        monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
        served.repos[NAME] = make_repo(tmp_path / "source")
        yield served


def make_repo(folder: Path, *, config: dict[str, Any] | None = None, suffix: str = "safetensors") -> dict[str, bytes]:
    b.write_folder(folder, b.to_legacy(b.make_state()), num_shards=2, config=config, suffix=suffix)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "tokenizer.json": b'{"version": "1.0"}', "README.md": b"# A model\n"}


def assert_complete(found: store.ResolvedModel) -> None:
    state = b.make_state()
    tensors = open_checkpoint(found.folder, vision_folder=found.vision_folder).tensors
    assert {name: tensor.data.tobytes() for name, tensor in tensors.items()} == {
        name: value.tobytes() for name, value in state.items()
    }


def partials(tmp_path: Path) -> list[int]:
    return [path.stat().st_size for path in (tmp_path / "cache").rglob("*.incomplete")]


def test_pull_fetches_every_file_once_and_reports_progress(remote: Hub) -> None:
    seen: list[tuple[int, int, str]] = []
    found = store.pull(NAME, on_progress=lambda done, total, name: seen.append((done, total, name)))
    assert_complete(found)
    total = sum(len(content) for content in remote.repos[NAME].values())
    assert {entry[1] for entry in seen} == {total}
    assert [entry[0] for entry in seen] == sorted(entry[0] for entry in seen)
    assert seen[-1] == (total, total, "config.json")
    assert remote.sent_bytes == {name: len(content) for name, content in remote.repos[NAME].items()}


def test_a_second_pull_sends_nothing(remote: Hub) -> None:
    store.pull(NAME)
    remote.sent_bytes.clear()
    store.pull(NAME)
    assert remote.sent_bytes == {}


def test_a_stored_model_is_found_without_the_network(remote: Hub) -> None:
    folder = store.pull(NAME).folder
    remote.requests.clear()
    assert store.resolve(NAME, allow_download=False).folder == folder
    assert remote.requests == []


def test_without_weights_only_the_small_files_travel(remote: Hub) -> None:
    folder = store.resolve(NAME, with_weights=False).folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "README.md", "tokenizer.json", "model.safetensors.index.json"
    }  # fmt: skip
    remote.requests.clear()
    assert store.resolve(NAME, with_weights=False).folder == folder
    assert remote.requests == []
    # A model that is asked for later is not taken for complete.
    with pytest.raises(ModelNotFoundError, match="llavakit pull"):
        store.resolve(NAME, allow_download=False)
    assert_complete(store.resolve(NAME))


def test_pull_list_rm(remote: Hub) -> None:
    store.pull(NAME)
    (entry,) = [model for model in store.list_models() if model.hub_id is not None]
    assert (entry.name, entry.is_complete) == (NAME, True)
    assert entry.num_bytes == sum(len(content) for content in remote.repos[NAME].values())
    assert store.remove(NAME) == entry.num_bytes
    assert [model.name for model in store.list_models()] == [store.EMBEDDED]
    with pytest.raises(ModelNotFoundError, match="not in the store"):
        store.remove(NAME)


def test_safetensors_are_preferred_and_unneeded_files_stay_away(remote: Hub) -> None:
    remote.repos[NAME] |= {"pytorch_model.bin": b"x" * 50, "flax_model.msgpack": b"y",
                           "pytorch_model.bin.index.json": b"{}",
                           "images/cat.png": b"z", "training_args.bin": b"t"}  # fmt: skip
    folder = store.pull(NAME).folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "README.md", "tokenizer.json", "model.safetensors.index.json", SHARD,
        "model-00001-of-00002.safetensors"
    }  # fmt: skip


def test_an_interrupted_pull_resumes_in_the_middle_of_a_file(remote: Hub, tmp_path: Path) -> None:
    size = len(remote.repos[NAME][SHARD])
    half = size // 2
    remote.cut_after[SHARD] = half
    monkey = pytest.MonkeyPatch()
    monkey.setattr(fetch.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C while waiting for the second attempt
        store.pull(NAME)
    monkey.undo()
    monkey.setattr(fetch.time, "sleep", lambda seconds: None)
    assert partials(tmp_path) == [half]
    with pytest.raises(ModelNotFoundError):
        store.resolve(NAME, allow_download=False)
    remote.cut_after.clear()
    seen: list[int] = []
    assert_complete(store.pull(NAME, on_progress=lambda done, total, name: seen.append(done)))
    assert remote.sent_bytes[SHARD] == size  # not a byte twice
    assert ("GET", f"bytes={half}-") in [(method, asked) for method, _, asked in remote.requests]
    assert seen == sorted(seen)
    assert partials(tmp_path) == []
    monkey.undo()


def test_a_flaky_network_is_tried_again_as_long_as_it_brings_something(remote: Hub) -> None:
    remote.cut_after[SHARD] = len(remote.repos[NAME][SHARD]) // 7
    assert_complete(store.pull(NAME))


def test_a_server_without_ranges_starts_the_file_again(remote: Hub, tmp_path: Path) -> None:
    remote.knows_ranges = False
    remote.cut_after[SHARD] = 1000
    with pytest.raises(DownloadError, match=r"the connection ended after|peer closed|go.* on where it stopped"):
        store.pull(NAME)
    remote.cut_after.clear()
    assert_complete(store.pull(NAME))


def test_garbage_of_the_right_length_is_deleted(remote: Hub, tmp_path: Path) -> None:
    remote.lies[SHARD] = bytes(len(remote.repos[NAME][SHARD]))
    with pytest.raises(DownloadError, match="SHA-256"):
        store.pull(NAME)
    assert partials(tmp_path) == []
    remote.lies.clear()
    assert_complete(store.pull(NAME))


def test_a_server_that_sends_too_much_is_stopped(remote: Hub, tmp_path: Path) -> None:
    target = tmp_path / "file"
    with pytest.raises(DownloadError, match="more than the 10 bytes"):
        fetch.fetch_file(
            f"{remote.endpoint}/{NAME}/resolve/main/{SHARD}", target, num_bytes=10, sha256=None, headers={}
        )
    assert not target.exists()


@pytest.mark.parametrize("status", [404, 410, 500, 503])
def test_a_server_error_keeps_what_was_complete(remote: Hub, status: int) -> None:
    remote.status[SHARD] = status
    with pytest.raises(DownloadError, match=f"{status}.*same command again"):
        store.pull(NAME)
    remote.status.clear()
    remote.sent_bytes.clear()
    assert_complete(store.pull(NAME))
    assert "model-00001-of-00002.safetensors" not in remote.sent_bytes


def test_an_etag_that_is_a_path_is_refused(remote: Hub, tmp_path: Path) -> None:
    remote.etag_override = "../../../../evil"
    with pytest.raises(LlavakitError):
        store.pull(NAME)
    assert not list(tmp_path.rglob("evil*"))


def test_an_unknown_model_is_not_found(remote: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="has no model 'nobody/nothing'"):
        store.pull("nobody/nothing")


def test_a_gated_model_says_how_to_get_access(remote: Hub) -> None:
    remote.gated.add(NAME)
    with pytest.raises(ModelNotFoundError, match="gated"):
        store.pull(NAME)


def test_no_network_is_a_download_error(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match="check the network"):
        store.pull(NAME)


@pytest.mark.parametrize("listing", [b"", b"<html>", b"[]", b"{}", b'{"id": 3, "siblings": 7}'])
def test_a_hub_that_talks_nonsense_is_one_of_our_errors(remote: Hub, listing: bytes) -> None:
    remote.listing = listing
    with pytest.raises(StoreError):
        store.pull(NAME)


def test_a_repository_without_weights_or_config_is_no_model(remote: Hub) -> None:
    remote.repos["a/b"] = {"README.md": b"x", "config.json": b"{}"}
    with pytest.raises(ModelNotFoundError, match=r"has no model\.safetensors"):
        store.pull("a/b")
    remote.repos["a/b"] = {"model.safetensors": b"x" * 20}
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        store.pull("a/b")


def test_too_little_room_is_said_before_anything_is_fetched(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = hub.shutil.disk_usage("/")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage._replace(free=200_000_000))
    with pytest.raises(DiskFullError, match=r"needs .* GB more, the disk has 0\.2 GB free"):
        store.pull(NAME)
    assert remote.sent_bytes == {}


def test_a_disk_that_fills_up_keeps_what_was_complete(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = fetch._receive

    def full(url: str, partial: Path, *args: Any) -> int:
        if SHARD in url:
            raise OSError(errno.ENOSPC, "No space left on device")
        return receive(url, partial, *args)

    monkeypatch.setattr(fetch, "_receive", full)
    with pytest.raises(DiskFullError, match="make room"):
        store.pull(NAME)
    monkeypatch.setattr(fetch, "_receive", receive)
    remote.sent_bytes.clear()
    assert_complete(store.pull(NAME))
    assert "model-00001-of-00002.safetensors" not in remote.sent_bytes


def test_a_store_that_is_no_folder_is_not_blamed_on_the_network(
    remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "cache").write_text("a file where the store should be")
    with pytest.raises(StoreError, match=r"in the store's folder cannot be used \(.*set HF_HOME") as caught:
        store.pull(NAME)
    assert (caught.value.code, str(tmp_path / "cache") in str(caught.value)) == ("store", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "cache" / "token"))  # what is read first of all
    with pytest.raises(StoreError, match="cache/token' in the store's folder cannot be used"):
        store.pull(NAME)


def test_an_update_that_fails_leaves_the_version_before_in_use(remote: Hub, tmp_path: Path) -> None:
    old = store.pull(NAME).folder
    remote.repos[NAME]["README.md"] = b"# newer\n"
    new_shard = bytearray(remote.repos[NAME][SHARD])
    new_shard[-1] ^= 1
    remote.repos[NAME][SHARD] = bytes(new_shard)
    remote.status[SHARD] = 404
    with pytest.raises(DownloadError):
        store.pull(NAME)
    assert store.resolve(NAME, allow_download=False).folder == old
    remote.status.clear()
    assert store.pull(NAME).folder != old
    assert store.resolve(NAME, allow_download=False).folder != old


def test_an_original_checkpoint_brings_its_tower(remote: Hub, tmp_path: Path) -> None:
    state = b.make_state()
    config = {**b.ORIGINAL_CONFIG, "mm_vision_tower": "openai/clip"}
    for name, tensors, raw in (("o/llava", b.to_original(state), config), ("openai/clip", b.to_clip(state), b.VISION)):
        folder = b.write_folder(tmp_path / name, tensors, config=raw, suffix="bin")
        remote.repos[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    remote.repos["o/llava"]["tokenizer.model"] = b"pieces"
    found = store.pull("o/llava")
    assert found.vision_folder is not None
    assert_complete(found)
    assert [model.hub_id for model in store.list_models()] == [None, "o/llava"]  # the tower is no model to talk to


# --- names and folders, without the Hub


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = b.write_folder(tmp_path / "m", b.to_legacy(b.make_state()))
    assert store.resolve(folder) == store.ResolvedModel(str(folder), folder, None, "folder")


def test_an_original_folder_finds_the_tower_beside_or_at_its_path(tmp_path: Path) -> None:
    folder = b.write_folder(tmp_path / "m", b.to_original(b.make_state()), config=b.ORIGINAL_CONFIG)
    tower = b.write_folder(folder / "clip-vit-large-patch14-336", b.to_clip(b.make_state()), config=b.VISION)
    assert store.resolve(folder).vision_folder == tower
    elsewhere = b.write_folder(tmp_path / "clip", b.to_clip(b.make_state()), config=b.VISION)
    other = b.write_folder(tmp_path / "n", {"x": np.ones(1, np.float32)},
                           config={**b.ORIGINAL_CONFIG, "mm_vision_tower": str(elsewhere)})  # fmt: skip
    assert store.resolve(other).vision_folder == elsewhere
    (other / "config.json").write_text(json.dumps({**b.ORIGINAL_CONFIG, "mm_vision_tower": 7}))
    with pytest.raises(ConfigError, match="mm_vision_tower is 7"):
        store.resolve(other)


@pytest.mark.parametrize(
    "name",
    ["", "nothing-here", "a/b/c", "../etc/passwd", "/no/such/folder", "~nobody-has-this-name/x", "x" * 5000, "a\0b",
     "a/..",
     "a--b/c", "-a/b", "a/b ", "llava:70b", "https://example.org/model", "ä/b"],
)  # fmt: skip
def test_names_that_are_no_model_are_not_found_and_ask_nobody(remote: Hub, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="Known names: llava:tiny"):
        store.resolve(name)
    assert remote.requests == []


def test_a_gguf_file_and_a_plain_file_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        store.resolve("model.gguf")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match="name the folder"):
        store.resolve(file)


def test_what_is_not_the_stores_cannot_be_removed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="part of the program"):
        store.remove(store.EMBEDDED)
    file = tmp_path / "a.gguf"
    file.touch()
    for path, kind in ((tmp_path, "folder"), (file, "file")):
        with pytest.raises(StoreError, match=f"{kind} of yours"):
            store.remove(str(path))
        with pytest.raises(StoreError, match=f"{kind} of yours, and there is nothing to fetch"):
            store.pull(str(path))
    assert file.is_file()
