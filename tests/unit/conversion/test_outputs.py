"""Where a conversion writes: one process at a time, nothing half done, nothing that belongs to another model."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llavakit.api.loading import load
from llavakit.conversion import convert as module
from llavakit.conversion.convert import convert
from llavakit.core.errors import ConfigError, DiskFullError, NonFiniteError, StoreError
from llavakit.dropin.conversation import load_chat_template
from llavakit.processing.jinja_template import render_chat_template
from llavakit.weights import streamed_file
from llavakit.weights.gguf_file import open_gguf
from llavakit.weights.store import embedded_folder

_TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who?"},
]


def _list(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(embedded_folder(), folder))


_HOLD = """
import sys
from pathlib import Path
from llavakit.weights.streamed_file import FilePlan, StreamedFile
with StreamedFile(Path(sys.argv[1]), FilePlan(b"", (), 0), origin=""):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match="another process is writing"):
            convert("llava:tiny", out, type_name="q8_0")
        other.communicate()
    convert("llava:tiny", out, type_name="q8_0")
    assert _list(tmp_path) == ["a.gguf", "mmproj-a-f16.gguf"]


def test_a_file_system_without_locks_is_named_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: Any, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(streamed_file.fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"No locks available.*file system of this folder has no locks"):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")


def test_a_lock_on_what_has_got_its_final_name_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = streamed_file.FilePlan(b"", (), 0)
    flock, part = streamed_file.fcntl.flock, tmp_path / "a.part"
    calls = []

    def publish_first(file: Any, operation: int) -> None:
        if not calls:
            part.replace(tmp_path / "a")  # the other process ends between our opening and our locking
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(streamed_file.fcntl, "flock", publish_first)
    with streamed_file.StreamedFile(tmp_path / "a", plan, origin="") as file:
        assert len(calls) == 2
        assert not part.samefile(tmp_path / "a")
        file.write(lambda _: iter(()), lambda _: None)


def test_a_stopped_conversion_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, made = module.encode_tensor, [0]

    def stop_there(*arguments: Any) -> Any:
        made[0] += 1
        if made[0] == 30:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(module, "encode_tensor", stop_there)
    with pytest.raises(KeyboardInterrupt):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    assert json.loads((tmp_path / "a.gguf.part.json").read_text())["num_tensors"] == 29


def test_what_would_fail_again_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise NonFiniteError("a tensor holds NaN")

    monkeypatch.setattr(module, "encode_tensor", refuse)
    with pytest.raises(NonFiniteError):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    assert not _list(tmp_path)


def test_a_folder_keeps_its_model_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"
    convert("llava:tiny", out, type_name="f32")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    write_text = Path.write_text

    def fill_up(path: Path, *arguments: Any, **keywords: Any) -> int:
        if path.name == "tokenizer.json.part":
            raise OSError(28, "No space left on device")  # a write names no file
        return write_text(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", fill_up)
    with pytest.raises(DiskFullError, match=r"is full: .*tokenizer\.json"):
        convert("llava:tiny", out, type_name="f16", is_overwrite_allowed=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_folder_of_shards_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(StoreError, match=r"model\.safetensors\.index\.json"):
        convert("llava:tiny", tmp_path, type_name="f16", is_overwrite_allowed=True)


@pytest.mark.parametrize("name", ["a.gguf", "mmproj-a-f16.gguf"])
def test_a_folder_in_a_files_place_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0", is_overwrite_allowed=True)
    assert _list(tmp_path) == [name]


@pytest.mark.parametrize(("name", "message"), [("n" * 225 + ".gguf", "takes 230 bytes"), ("b\udcff.gguf", "UTF-8")])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        convert("llava:tiny", tmp_path / name, type_name="q8_0")
    assert not _list(tmp_path)


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("a.gguf", {"type_name": "q8_0", "num_threads": 0}, "0 threads"),
        ("a.gguf", {"type_name": "f16", "importance": {"lm_head.weight": np.ones(256, np.float32)}}, "importance"),
        ("folder", {"type_name": "f16", "mmproj_type": "q8_0"}, "--mmproj-type"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, out: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert("llava:tiny", tmp_path / out, **arguments)
    assert not _list(tmp_path)


def test_scales_that_are_no_numbers_are_not_copied(tmp_path: Path) -> None:
    convert("llava:tiny", tmp_path / "a.gguf", type_name="q8_0")
    matrix = open_gguf(tmp_path / "a.gguf").tensors["output.weight"]
    content = bytearray((tmp_path / "a.gguf").read_bytes())
    start = content.index(matrix.data[:34].tobytes())
    content[start : start + 2] = (0x7E00).to_bytes(2, "little")
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(NonFiniteError, match=r"output\.weight"):
        convert(tmp_path / "a.gguf", tmp_path / "b.gguf", type_name="q8_0")


def test_a_folder_says_what_its_source_said(tmp_path: Path) -> None:
    source = _copy(tmp_path / "source")
    pictures = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps({**pictures, "image_mean": [0.5, 0.5, 0.5]}))
    (source / "generation_config.json").write_text('{"temperature": 0.3}')
    (source / "chat_template.jinja").write_text("mine")
    convert(source, tmp_path / "out", type_name="f32")
    assert load_chat_template(tmp_path / "out") == "mine"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.3}
    assert load(tmp_path / "out", preset="hf").preset.image.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="mean"):  # a GGUF pair would be read with CLIP's
        convert(source, tmp_path / "a.gguf", type_name="q8_0")


def test_pictures_of_transformers_5_are_read_and_kept(tmp_path: Path) -> None:
    source = _copy(tmp_path / "source")
    pictures = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").unlink()
    processor = json.loads((source / "processor_config.json").read_text())
    processor["image_processor"] = {**pictures, "image_mean": [0.5, 0.5, 0.5]}
    (source / "processor_config.json").write_text(json.dumps(processor))
    convert(source, tmp_path / "out", type_name="f16")
    assert load(tmp_path / "out", preset="hf").preset.image.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("preset", ["original", "hf"])
def test_templates_are_the_prompts_of_the_preset(tmp_path: Path, preset: str) -> None:
    source = _copy(tmp_path / "source")
    (source / "llavakit.json").write_text(json.dumps({"preset": preset}))
    convert(source, tmp_path / "a.gguf", type_name="q8_0")
    model = load(tmp_path / "a.gguf")
    template = open_gguf(tmp_path / "a.gguf").metadata["tokenizer.chat_template"]
    said = render_chat_template(str(template), _TALK, add_generation_prompt=True)
    # Of a pair nobody knows what a folder's template was.
    convert(tmp_path / "a.gguf", tmp_path / "folder", type_name="f16")
    blocks = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in _TALK]
    by_folder = load_chat_template(tmp_path / "folder")
    assert by_folder is not None
    assert said == render_chat_template(by_folder, blocks, add_generation_prompt=True)
    assert model.tokenizer.encode(said, parse_special=True, add_bos=True) == list(model.prepare(_TALK).token_ids)
