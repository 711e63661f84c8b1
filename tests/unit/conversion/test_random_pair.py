"""Random pairs: the planned bytes are the written ones, for every mixture, and the model runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavakit.api.loading import load
from llavakit.conversion.random_pair import plan_random_pair, write_random_pair
from llavakit.planner.models import find_model
from llavakit.weights.mixtures import MIXTURES


@pytest.mark.parametrize("name", ["llava:7b", "llava:13b", "llava:tiny"])
@pytest.mark.parametrize("type_name", list(MIXTURES))
def test_planned_bytes_are_those_of_the_file(name: str, type_name: str, tmp_path: Path) -> None:
    """The planner's sizes, summed over the tensors that the GGUF writer lays out."""
    model = find_model(name)
    quant = model.quantize(type_name)
    text, vision = (file.plan for file in plan_random_pair(tmp_path / "a.gguf", model.config, type_name))
    assert sum(tensor.num_bytes for tensor in text.tensors) == quant.language_bytes
    assert sum(tensor.num_bytes for tensor in vision.tensors) == quant.vision_bytes
    # Between tensors there is only what aligns them.
    assert 0 <= text.num_bytes - len(text.header) - quant.language_bytes < 32 * len(text.tensors)


@pytest.mark.parametrize("type_name", ["q4_k_m", "q8_0", "f16", "bf16", "q4_0"])
def test_a_random_model_answers(type_name: str, tmp_path: Path) -> None:
    config, steps = find_model("llava:tiny").config, []
    path = tmp_path / "random.gguf"
    write_random_pair(
        path, config, type_name, num_threads=1, on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps[-1][0] == steps[-1][1]
    written = path.stat().st_size + (tmp_path / "mmproj-random-f16.gguf").stat().st_size
    assert written == steps[-1][1]
    assert load(path, device="cpu").chat("ab", max_new_tokens=2) is not None
