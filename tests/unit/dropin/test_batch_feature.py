"""The mapping that a processor returns."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from llavakit.core.errors import CapacityError, ConfigError, PromptError
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.dropin.model_output import ModelOutput


def test_entries_are_items_and_attributes() -> None:
    batch = BatchFeature({"input_ids": [[1, 2]]})
    assert batch["input_ids"] == batch.input_ids == [[1, 2]]
    assert {**batch} == {"input_ids": [[1, 2]]}
    with pytest.raises(AttributeError, match="no entry 'pixel_values'"):
        _ = batch.pixel_values
    assert "pixel_values" not in batch
    batch["text"] = "a"
    assert batch.pop("text") == "a"
    assert pickle.loads(pickle.dumps(batch)) == batch


def test_copies_and_unions_are_mappings_of_their_own() -> None:
    batch = BatchFeature({"input_ids": [[1, 2]]})
    copied = batch.copy()
    copied["text"] = "a"
    assert isinstance(copied, BatchFeature)
    assert "text" not in batch
    assert (batch | {"a": 1}).data == {"input_ids": [[1, 2]], "a": 1}
    assert ({"input_ids": 0, "a": 1} | batch).data == {"input_ids": [[1, 2]], "a": 1}


def test_only_floating_tensors_are_cast() -> None:
    batch = BatchFeature({"input_ids": [[1, 2]], "pixel_values": [np.ones((3, 2, 2), np.float32)]}, tensor_type="pt")
    assert batch.to("cpu", torch.bfloat16) is batch
    assert batch.pixel_values.dtype == torch.bfloat16
    assert batch.input_ids.dtype == torch.int64
    assert batch.to(dtype=torch.float32).pixel_values.dtype == torch.float32


def test_numpy_and_lists() -> None:
    assert isinstance(BatchFeature({"a": [[1]]}, tensor_type="np").a, np.ndarray)
    assert BatchFeature({"a": [[1]]}).a == [[1]]


def test_rows_of_different_lengths_are_refused_with_their_lengths() -> None:
    with pytest.raises(PromptError, match=r"input_ids has rows of 2 different lengths \(1 to 3\)"):
        BatchFeature({"input_ids": [[1], [1, 2, 3]]}, tensor_type="pt")


def test_other_tensor_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="return_tensors='tf'"):
        BatchFeature({}, tensor_type="tf")


@pytest.mark.parametrize("argument", [1.5, True, object])
def test_place_that_is_none_is_refused(argument: object) -> None:
    with pytest.raises(ConfigError, match="neither a device nor a dtype"):
        BatchFeature({"a": [[1]]}, tensor_type="pt").to(argument)


def test_unknown_device_and_unknown_keyword_are_refused() -> None:
    with pytest.raises(ConfigError, match="device 'gpu' is not known"):
        BatchFeature().to("gpu")
    with pytest.raises(ConfigError, match=r"does not take memory"):
        BatchFeature().to("cpu", memory=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", [0, "cuda", "cuda:0", torch.device("cuda")])
def test_missing_gpu_is_told_in_one_sentence(device: object) -> None:
    with pytest.raises(CapacityError, match=r"needs a CUDA GPU, and torch finds none here\. Use device='cpu'"):
        BatchFeature({"a": [[1]]}, tensor_type="pt").to(device)


def test_output_is_read_by_name_position_and_attribute() -> None:
    output = ModelOutput(loss=None, logits="l", features="f")
    assert output.loss is None
    assert output[0] == output["logits"] == output.logits == "l"
    assert output[1:] == ("f",)
    assert list(output) == ["logits", "features"]
    assert len(output) == 2
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(AttributeError, match="no 'hidden'"):
        _ = output.hidden
