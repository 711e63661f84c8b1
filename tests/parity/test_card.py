"""The uses that the public model card shows, in our own words: same tokens, same strings as transformers."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import llavakit
from llavakit.core.errors import CapacityError
from llavakit.model.layers import Linear
from tests.tiny import make_tiny_llava
from tests.tiny.dropin_pair import Pair, load_pair, make_picture, png_bytes, serve_pictures


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("card"), seed=3)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with rows of 256 numbers, the block length of Q4_K, and of 160, a multiple of 32."""
    folder = tmp_path_factory.mktemp("wide")
    make_tiny_llava(folder, vision_image_size=56, text_hidden_size=256, text_intermediate_size=160)
    return folder


@pytest.fixture(scope="module")
def pipes(pair: Pair) -> tuple[Any, Any]:
    theirs = transformers.pipeline(
        "image-text-to-text", model=pair.their_model, processor=pair.their_processor, device="cpu"
    )
    return llavakit.pipeline("image-text-to-text", model=pair.model, processor=pair.processor), theirs


@pytest.fixture
def picture_path(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    path.write_bytes(png_bytes(make_picture(1)))
    return path


def _ask(source: dict[str, Any], question: str = "What is in the picture?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", **source}, {"type": "text", "text": question}]}]


class TestPipeline:
    """Use 1."""

    def test_chat_with_a_picture_from_the_web_gives_the_chat_with_the_answer(self, pipes: tuple[Any, Any]) -> None:
        with serve_pictures({"scene.png": png_bytes(make_picture(1))}) as address:
            messages = _ask({"url": f"{address}/scene.png"})
            ours, theirs = (pipe(text=messages, max_new_tokens=20) for pipe in pipes)
        assert ours == theirs
        assert ours[0]["input_text"] == messages
        assert ours[0]["generated_text"][-1]["role"] == "assistant"
        assert ours[0]["generated_text"][:-1] == messages

    def test_return_full_text_false_gives_the_bare_answer(self, pipes: tuple[Any, Any], picture_path: Path) -> None:
        messages = _ask({"path": str(picture_path)})
        ours, theirs = (pipe(text=messages, max_new_tokens=12, return_full_text=False) for pipe in pipes)
        assert ours == theirs
        assert isinstance(ours[0]["generated_text"], str)

    def test_pipeline_made_from_a_folder_loads_model_and_processor(self, pair: Pair, picture_path: Path) -> None:
        messages = _ask({"path": str(picture_path)})
        made = llavakit.pipeline("image-text-to-text", model=str(pair.folder), device="cpu")
        given = llavakit.pipeline("image-text-to-text", model=pair.model, processor=pair.processor)
        assert made(text=messages, max_new_tokens=8) == given(text=messages, max_new_tokens=8)


class TestModelAndProcessor:
    """Use 2."""

    CONVERSATION = [  # noqa: RUF012
        {"role": "user", "content": [{"type": "text", "text": "What is this picture of?"}, {"type": "image"}]}
    ]

    def test_template_writes_the_prompt_with_the_picture_first(self, pair: Pair) -> None:
        ours = pair.processor.apply_chat_template(self.CONVERSATION, add_generation_prompt=True)
        assert ours == "USER: <image>\nWhat is this picture of? ASSISTANT:"
        assert ours == pair.their_processor.apply_chat_template(self.CONVERSATION, add_generation_prompt=True)

    def test_inputs_and_answer_equal_transformers(self, pair: Pair) -> None:
        prompt = pair.processor.apply_chat_template(self.CONVERSATION, add_generation_prompt=True)
        raw_image = Image.open(io.BytesIO(png_bytes(make_picture(2))))
        ours = pair.processor(images=raw_image, text=prompt, return_tensors="pt").to("cpu", torch.float32)
        theirs = pair.their_processor(images=raw_image, text=prompt, return_tensors="pt").to("cpu", torch.float32)
        _assert_same_inputs(ours, theirs)
        output = pair.model.generate(**ours, max_new_tokens=40, do_sample=False)
        assert torch.equal(output, pair.their_model.generate(**theirs, max_new_tokens=40, do_sample=False))
        text = pair.processor.decode(output[0][2:], skip_special_tokens=True)
        assert text == pair.their_processor.decode(output[0][2:], skip_special_tokens=True)

    def test_float16_casts_pixels_only_and_answers_on_the_cpu(self, tmp_path: Path) -> None:
        pair = load_pair(tmp_path, seed=3, dtype="float16")
        model = llavakit.LlavaForConditionalGeneration.from_pretrained(
            pair.folder, torch_dtype=torch.float16, low_cpu_mem_usage=True
        ).to("cpu")
        assert model.dtype == torch.float16
        inputs = pair.processor(
            images=make_picture(2), text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt"
        )
        inputs = inputs.to("cpu", torch.float16)
        assert inputs["pixel_values"].dtype == torch.float16
        assert inputs["input_ids"].dtype == torch.int64
        assert inputs["attention_mask"].dtype == torch.int64
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert output.shape == (1, inputs["input_ids"].shape[1] + 8)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_first_gpu_on_a_machine_without_one_is_one_clear_sentence(self, pair: Pair) -> None:
        inputs = pair.processor(images=make_picture(2), text="<image>", return_tensors="pt")
        for move in (inputs.to, pair.model.to):
            with pytest.raises(CapacityError, match="needs a CUDA GPU, and torch finds none here") as caught:
                move(0, torch.float16)
            assert "\n" not in str(caught.value)


class TestPicturesInsideTheTemplate:
    """Use 3."""

    def test_every_kind_of_source_gives_the_same_inputs_and_tokens(self, pair: Pair, picture_path: Path) -> None:
        content = picture_path.read_bytes()
        encoded = base64.b64encode(content).decode()
        with serve_pictures({"scene.png": content}) as address:
            sources = [
                {"url": f"{address}/scene.png"},
                {"url": str(picture_path)},
                {"path": str(picture_path)},
                {"base64": encoded},
                {"image": f"data:image/png;base64,{encoded}"},
                {"image": Image.open(picture_path)},
            ]
            for source in sources:
                conversation = [_ask(source)]
                options = {
                    "add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt",
                }  # fmt: skip
                ours = pair.processor.apply_chat_template(conversation, **options)
                theirs = pair.their_processor.apply_chat_template(conversation, **options)
                _assert_same_inputs(ours, theirs)
        output = pair.model.generate(**ours, max_new_tokens=30)
        assert torch.equal(output, pair.their_model.generate(**theirs, max_new_tokens=30))

    def test_private_address_is_refused_unless_the_policy_allows_it(self, pair: Pair) -> None:
        careful = llavakit.AutoProcessor.from_pretrained(pair.folder)
        with (
            serve_pictures({"scene.png": png_bytes(make_picture(1))}) as address,
            pytest.raises(llavakit.ImageSourceError),
        ):
            careful.apply_chat_template(_ask({"url": f"{address}/scene.png"}), tokenize=True, return_dict=True)


class TestFourBit:
    """Use 4."""

    @pytest.mark.parametrize(
        ("arguments", "dtypes", "error"),
        [
            ({"load_in_4bit": True}, {"q4_k", "q5_0"}, 0.09),
            ({"load_in_8bit": True}, {"q8_0"}, 0.008),
            ({"quantization_config": llavakit.BitsAndBytesConfig(load_in_4bit=True)}, {"q4_k", "q5_0"}, 0.09),
            ({"quantization_config": {"load_in_4bit": True}}, {"q4_k", "q5_0"}, 0.09),
        ],
    )
    def test_on_a_cpu_the_decoder_is_quantized_and_answers(
        self, wide: Path, arguments: dict[str, Any], dtypes: set[str], error: float
    ) -> None:
        # The error of rounding to a grid of step d is d / sqrt(12): for normal weights, about 0.08 of their deviation
        # with 16 levels in a block, and a sixteenth of that with 256.
        load = llavakit.LlavaForConditionalGeneration.from_pretrained
        plain = load(wide)
        loaded = load(wide, torch_dtype=torch.float32, low_cpu_mem_usage=True, **arguments)
        assert loaded.is_quantized
        pairs = list(zip(plain.model.named_modules(), loaded.model.modules(), strict=True))
        found = {name: (a, b.matrix) for (name, a), b in pairs if isinstance(b, Linear) and b.matrix is not None}
        kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
        assert {f"language_model.layers.0.{kind}" for kind in kinds} <= found.keys()
        assert all(name.startswith("language_model.layers.") for name in found)
        assert {matrix.dtype for _, matrix in found.values()} == dtypes
        for before, matrix in found.values():
            difference = matrix.expand() - before.weight
            assert 0 < difference.std() / before.weight.std() < error
        processor = llavakit.AutoProcessor.from_pretrained(wide)
        inputs = processor(images=make_picture(2), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
        for before, matrix in found.values():  # the same weights, expanded and multiplied in float32
            before.weight = torch.nn.Parameter(matrix.expand(), requires_grad=False)
        expected, logits = plain(**inputs).logits, loaded(**inputs).logits
        # Each product rounds its input to 127 steps of its largest value, an error of some 0.7 %; 14 products in a row,
        # and attention as sharp as with these weights, make a few percent of it. Unrelated logits differ by 1.4.
        assert (logits - expected).norm() / expected.norm() < 0.1
        assert loaded.generate(**inputs, max_new_tokens=5).shape[1] == inputs["input_ids"].shape[1] + 5

    def test_on_a_cpu_formats_of_bitsandbytes_have_no_effect_and_a_warning_says_so(self, wide: Path) -> None:
        config = llavakit.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        with pytest.warns(UserWarning, match="on a CPU bnb_4bit_quant_type has no effect: .* to Q4_K"):
            llavakit.LlavaForConditionalGeneration.from_pretrained(wide, quantization_config=config)


class TestFlashAttention:
    """Use 5."""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    @pytest.mark.parametrize(
        "arguments", [{"use_flash_attention_2": True}, {"attn_implementation": "flash_attention_2"}]
    )
    def test_without_a_gpu_it_says_so_once_and_answers_the_same(self, pair: Pair, arguments: dict[str, Any]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(2):
                model = llavakit.LlavaForConditionalGeneration.from_pretrained(pair.folder, **arguments)
        assert [str(one.message) for one in caught] == [
            "flash_attention_2 needs a CUDA GPU, and torch finds none here: torch's SDPA is used instead, "
            "with the same result."
        ]
        inputs = pair.processor(images=make_picture(2), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=5)
        assert torch.equal(output, pair.model.generate(**inputs, max_new_tokens=5))
        assert torch.equal(output, pair.their_model.generate(**inputs, max_new_tokens=5))


def test_several_prompts_with_several_pictures_are_padded_on_the_left_and_answered_alike(pair: Pair) -> None:
    prompts = [
        "USER: <image>\nWhat is in this picture? ASSISTANT:",
        "USER: <image>\n<image>\nWhich of the two is red, and is there a circle in it? ASSISTANT:",
        "USER: What is a circle? ASSISTANT:",
    ]
    pictures = [make_picture(seed, width=64 + 8 * seed) for seed in range(3)]
    ours = pair.processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    theirs = pair.their_processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    _assert_same_inputs(ours, theirs)
    assert ours["attention_mask"][:, -1].all()
    assert not ours["attention_mask"][2, 0]
    output = pair.model.generate(**ours, max_new_tokens=20)
    assert torch.equal(output, pair.their_model.generate(**theirs, max_new_tokens=20))
    texts = pair.processor.batch_decode(output, skip_special_tokens=True)
    assert texts == pair.their_processor.batch_decode(output, skip_special_tokens=True)


def _assert_same_inputs(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name
