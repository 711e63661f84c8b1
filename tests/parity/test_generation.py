"""Greedy tokens of our own surface against transformers: same folder, same pictures, same prompts.

Weights are random, so nothing but equal arithmetic gives 64 equal tokens. The two sides may differ in the last bits of
float32 (see test_model.py), which no choice among logits this far apart notices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="parity needs transformers: pip install 'llavakit[verify]'")

import llavakit
from tests.tiny import make_tiny_llava

_NUM_PROMPTS = 20
_NUM_TOKENS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llava(folder, seed=3)
    return folder


def _conversations() -> list[list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    conversations = []
    for idx in range(_NUM_PROMPTS):
        content: list[dict[str, Any]] = []
        for _ in range(idx % 4):
            height, width = (int(side) for side in rng.integers(5, 90, 2))
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            content.append({"type": "image", "image": Image.fromarray(pixels)})
        content.append({"type": "text", "text": "What is this? " * int(rng.integers(1, 5)) + str(idx)})
        conversations.append([{"role": "user", "content": content}])
    return conversations


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = []
    for conversation in _conversations():
        inputs = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=_NUM_TOKENS, min_new_tokens=_NUM_TOKENS, do_sample=False)
        tokens.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return tokens


def _tokens_as_transformers(model: llavakit.LoadedModel, conversations: list[Any]) -> list[list[int]]:
    """Without the suppressed tokens of our own surface: transformers may choose them."""
    model._engine._suppressed_ids = None
    results = model.generate(conversations, max_new_tokens=_NUM_TOKENS, min_new_tokens=_NUM_TOKENS)
    return [list(result.token_ids) for result in results]


def test_alone_every_prompt_gives_the_tokens_of_transformers(folder: Path, expected: list[list[int]]) -> None:
    model = llavakit.load(folder, preset="hf")
    ours = [_tokens_as_transformers(model, [conversation])[0] for conversation in _conversations()]
    assert ours == expected
    assert all(len(tokens) == _NUM_TOKENS for tokens in expected)


def test_together_all_prompts_give_the_same_tokens(folder: Path, expected: list[list[int]]) -> None:
    model = llavakit.load(folder, preset="hf")
    assert _tokens_as_transformers(model, _conversations()) == expected


def test_streaming_gives_the_text_of_the_answer(folder: Path) -> None:
    model = llavakit.load(folder, preset="hf")
    for conversation in _conversations()[:4]:
        stream = model.stream(conversation, max_new_tokens=_NUM_TOKENS)
        text = "".join(event.text for event in stream)
        result = stream.result
        assert text == result.text
        assert len(text) > _NUM_TOKENS // 4


def test_a_conversation_goes_on_from_its_cached_prefix(folder: Path) -> None:
    """Each turn computes only what is new and answers as a fresh model does."""
    model = llavakit.load(folder)
    turns = list(_conversations()[1])
    for idx in range(3):
        reply = model.chat(turns, max_new_tokens=12)
        fresh = llavakit.load(folder).chat(turns, max_new_tokens=12)
        assert reply.token_ids == fresh.token_ids
        assert (reply.timings.num_cached_tokens > 0) == (idx > 0)
        assert reply.timings.num_images_encoded == (1 if idx == 0 else 0)
        answer = [{"type": "text", "text": "a red circle"}]
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"What is in it {idx}?"}]


def test_presets_give_different_pixels_and_prompts(folder: Path) -> None:
    model = llavakit.load(folder)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 80, 3), dtype=np.uint8))
    original = model.prepare("What?", images=[wide])
    hf = model.with_preset("hf").prepare("What?", images=[wide])
    assert model.preset.name == "original"
    assert len(original.token_ids) > len(hf.token_ids)
    assert original.image_keys != hf.image_keys
