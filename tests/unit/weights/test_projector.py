"""Which projector belongs to a language model, where several lie beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llavakit.conversion.convert import convert
from llavakit.core.errors import FormatError, ModelNotFoundError
from llavakit.weights.gguf_checkpoint import find_projector, open_gguf_checkpoint

_WIDTH = 256  # of llava:tiny


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    convert("llava:tiny", folder / "tiny.gguf", type_name="q4_0")
    return folder / "tiny.gguf", folder / "mmproj-tiny-f16.gguf"


@pytest.fixture
def model(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    return Path(shutil.copy(pair[0], tmp_path / "tiny.gguf"))


def _place(pair: tuple[Path, Path], folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(pair[1], folder / name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mmproj-tiny-f16.gguf", "mmproj-tiny-q8_0-f16.gguf"], "mmproj-tiny-f16.gguf"),
        (["mmproj-tiny-q8_0-f16.gguf", "mmproj-other-f16.gguf"], "mmproj-tiny-q8_0-f16.gguf"),
        (["mmproj-tiny-f32.gguf", "mmproj-tiny-f16.gguf"], "mmproj-tiny-f16.gguf"),
        (["mmproj-tiny.gguf", "mmproj-model-f16.gguf"], "mmproj-tiny.gguf"),
        (["any-mmproj.gguf"], "any-mmproj.gguf"),
    ],
)
def test_names_decide(pair: tuple[Path, Path], model: Path, names: list[str], expected: str) -> None:
    _place(pair, model.parent, *names)
    assert find_projector(model, _WIDTH).name == expected


def test_what_the_file_says_decides_between_equals(pair: tuple[Path, Path], model: Path) -> None:
    _place(pair, model.parent, "mmproj-tiny-f32.gguf", "mmproj-tiny-f16.gguf")
    assert find_projector(model, _WIDTH, stated="mmproj-tiny-f32.gguf").name == "mmproj-tiny-f32.gguf"


def test_what_the_file_says_gives_way_to_a_pair_that_was_renamed(pair: tuple[Path, Path], model: Path) -> None:
    _place(pair, model.parent, "mmproj-tiny-f16.gguf", "mmproj-mine-f16.gguf")
    renamed = model.rename(model.parent / "mine.gguf")
    assert find_projector(renamed, _WIDTH, stated="mmproj-tiny-f16.gguf").name == "mmproj-mine-f16.gguf"


def test_the_pair_that_was_written_last_is_the_pair(model: Path) -> None:
    for dtype in ("f16", "f32"):
        convert("llava:tiny", model, type_name="q8_0", mmproj_type=dtype, is_overwrite_allowed=True)
        checkpoint, _ = open_gguf_checkpoint(model)
        files = {tensor.file.path.name for tensor in checkpoint.tensors.values()}
        assert files == {"tiny.gguf", f"mmproj-tiny-{dtype}.gguf"}


def test_damaged_files_of_others_do_not_matter(pair: tuple[Path, Path], model: Path) -> None:
    _place(pair, model.parent, "mmproj-tiny-f16.gguf")
    (model.parent / "mmproj-other-f16.gguf").write_bytes(pair[1].read_bytes()[:1000])
    assert find_projector(model, _WIDTH).name == "mmproj-tiny-f16.gguf"
    (model.parent / "mmproj-tiny-f16.gguf").write_bytes(pair[1].read_bytes()[:1000])
    with pytest.raises(FormatError, match="mmproj-tiny-f16"):
        find_projector(model, _WIDTH)


def test_equals_are_not_guessed_between(pair: tuple[Path, Path], model: Path) -> None:
    _place(pair, model.parent, "mmproj-a-f16.gguf", "mmproj-b-f16.gguf")
    with pytest.raises(ModelNotFoundError, match="several that fit"):
        find_projector(model, _WIDTH)
