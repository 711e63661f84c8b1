"""`generate` and the forward pass against transformers, on the same random-weight checkpoint."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers

from llavakit.core.errors import (
    ConfigError,
    ContextOverflowError,
    PromptError,
    SamplingError,
    UnsupportedAttributeError,
)
from llavakit.dropin import GenerationConfig
from tests.tiny.dropin_pair import Pair, load_pair, make_picture

PROMPTS = [
    "USER: What is a circle? ASSISTANT:",
    "USER: <image>\nWhat is in this picture of the red circle? ASSISTANT:",
    "USER: <image>\n<image>\nCompare the two. ASSISTANT:",
    "USER: <image>\n<image>\n<image>\nIs there a red one? ASSISTANT:",
]
NUM_PICTURES = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("generate"), seed=11)


def _inputs(pair: Pair, rows: list[int], **options: Any) -> Any:
    pictures = [make_picture(10 * row + idx) for row in rows for idx in range(NUM_PICTURES[row])]
    prompts = [PROMPTS[row] for row in rows]
    return pair.processor(images=pictures or None, text=prompts, padding=True, return_tensors="pt", **options)


def _assert_same(pair: Pair, inputs: Any, **settings: Any) -> torch.Tensor:
    ours = pair.model.generate(**inputs, **settings)
    theirs = pair.their_model.generate(**inputs, **settings)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs), (ours.tolist(), theirs.tolist())
    return ours


@pytest.mark.parametrize("row", range(4))
def test_one_prompt_gives_64_equal_tokens(pair: Pair, row: int) -> None:
    inputs = _inputs(pair, [row])
    output = _assert_same(pair, inputs, max_new_tokens=64, eos_token_id=-1)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 64


@pytest.mark.parametrize("rows", [[0, 3], [1, 0, 2], [3, 2, 1, 0], [0, 0]])
def test_batch_of_different_lengths_and_pictures_gives_64_equal_tokens(pair: Pair, rows: list[int]) -> None:
    _assert_same(pair, _inputs(pair, rows), max_new_tokens=64, eos_token_id=-1)


def test_rows_that_end_early_are_filled_with_padding(pair: Pair) -> None:
    inputs = _inputs(pair, [3, 1, 0])
    free = pair.model.generate(**inputs, max_new_tokens=16)
    start = inputs["input_ids"].shape[1]
    # The third token of the first row ends answers here; rows that do not write it run on.
    end = int(free[0, start + 2])
    output = _assert_same(pair, inputs, max_new_tokens=16, eos_token_id=end)
    assert output[0, start + 2] == end
    assert (output[0, start + 3 :] == pair.model.generation_config.pad_token_id).all()
    both = [end, int(free[1, start + 4])]
    _assert_same(pair, inputs, max_new_tokens=16, eos_token_id=both, pad_token_id=7)


def test_end_token_set_to_none_never_ends(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    model = pair.model
    free = model.generate(**inputs, max_new_tokens=8)
    ends = int(free[0, -5])
    for one in (model, pair.their_model):
        one.generation_config.eos_token_id = ends
    try:
        assert _assert_same(pair, inputs, max_new_tokens=8).shape[1] < free.shape[1]
        assert torch.equal(_assert_same(pair, inputs, max_new_tokens=8, eos_token_id=None), free)
    finally:
        for one in (model, pair.their_model):
            one.generation_config.eos_token_id = 2


@pytest.mark.parametrize("length_penalty", [1.0, 0.3, 2.0, -0.5])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_agree_with_and_without_end_tokens(pair: Pair, num_beams: int, length_penalty: float) -> None:
    inputs = _inputs(pair, [2, 0])
    settings = {"num_beams": num_beams, "length_penalty": length_penalty, "max_new_tokens": 12}
    free = _assert_same(pair, inputs, **settings)
    start = inputs["input_ids"].shape[1]
    for offset in (1, 4):
        _assert_same(pair, inputs, **settings, eos_token_id=int(free[0, start + offset]))


@pytest.mark.parametrize("length_penalty", [1.0, 3.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_several_beams_and_every_way_to_stop_agree(
    pair: Pair, early_stopping: bool | str, length_penalty: float
) -> None:
    inputs = _inputs(pair, [2, 0])
    settings = {
        "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 14, "early_stopping": early_stopping,
        "length_penalty": length_penalty,
    }  # fmt: skip
    free = _assert_same(pair, inputs, **settings)
    assert free.shape[0] == 4
    start = inputs["input_ids"].shape[1]
    for offset in (1, 3, 6):
        _assert_same(pair, inputs, **settings, eos_token_id=int(free[0, start + offset]))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_repetition_penalty_agrees(pair: Pair, settings: dict[str, Any]) -> None:
    inputs = _inputs(pair, [3])
    penalized = _assert_same(pair, inputs, max_new_tokens=24, repetition_penalty=1.7, **settings)
    assert not torch.equal(penalized, pair.model.generate(**inputs, max_new_tokens=24, **settings))


def test_length_limits_agree(pair: Pair) -> None:
    inputs = _inputs(pair, [1, 0])
    width = inputs["input_ids"].shape[1]
    with pytest.warns(UserWarning, match="model-agnostic default"):
        assert _assert_same(pair, inputs).shape[1] == width + 20
    assert _assert_same(pair, inputs, max_length=width + 7).shape[1] == width + 7
    assert _assert_same(pair, inputs, max_length=width + 7, max_new_tokens=3).shape[1] == width + 3
    with pytest.raises(SamplingError, match=f"max_length is {width}, but the prompt has {width} tokens"):
        pair.model.generate(**inputs, max_length=width)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["min_new_tokens", "min_length"])
def test_shortest_answers_agree(pair: Pair, name: str, num_beams: int) -> None:
    inputs = _inputs(pair, [3, 1, 0])
    start = inputs["input_ids"].shape[1]
    ends = int(pair.model.generate(**inputs, max_new_tokens=8)[0, start + 1])
    settings = {"eos_token_id": ends, "num_beams": num_beams, "max_new_tokens": 12}
    _assert_same(pair, inputs, **settings)
    least = 6 if name == "min_new_tokens" else start + 6
    output = _assert_same(pair, inputs, **settings, **{name: least})
    assert not (output[:, start : start + 6] == ends).any()


def test_scores_of_forbidden_ends_agree(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    settings = {"min_new_tokens": 2, "max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
    ours, theirs = (one.generate(**inputs, **settings).scores for one in (pair.model, pair.their_model))
    assert [bool(torch.isinf(step[0, 2])) for step in ours] == [True, True, False]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_stop_string_ends_with_the_token_that_completes_it(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    free = pair.model.generate(**inputs, max_new_tokens=24)
    start = inputs["input_ids"].shape[1]
    tokenizer = pair.their_processor.tokenizer
    # Two neighbouring tokens that are words, not single bytes; the stop string is their text without its ends.
    is_word = [token_id >= 3 + 256 for token_id in free[0, start:].tolist()]
    first = start + next(idx for idx in range(2, 20) if is_word[idx] and is_word[idx + 1])
    text = tokenizer.decode(free[0, first : first + 2])
    assert text.strip()
    ours = pair.model.generate(**inputs, max_new_tokens=24, stop_strings=[text], tokenizer=pair.processor.tokenizer)
    theirs = pair.their_model.generate(**inputs, max_new_tokens=24, stop_strings=[text], tokenizer=tokenizer)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] <= first + 2


def test_generation_config_object_of_either_library_is_understood(pair: Pair) -> None:
    inputs = _inputs(pair, [2])
    theirs = pair.their_model.generate(**inputs, num_beams=2, max_new_tokens=6)
    for made in (GenerationConfig, transformers.GenerationConfig):
        assert torch.equal(pair.model.generate(**inputs, generation_config=made(num_beams=2, max_new_tokens=6)), theirs)


def test_missing_attention_mask_hides_padding(pair: Pair) -> None:
    inputs = _inputs(pair, [1, 0])
    with_mask = pair.model.generate(**inputs, max_new_tokens=8)
    inputs.pop("attention_mask")
    assert torch.equal(_assert_same(pair, inputs, max_new_tokens=8), with_mask)


def test_sampling_is_repeatable_by_seed_and_by_torch_and_stays_in_the_allowed_set(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    settings = {"do_sample": True, "temperature": 1.3, "top_k": 3, "max_new_tokens": 12}
    seeded = [pair.model.generate(**inputs, **settings, seed=5) for _ in range(2)]
    assert torch.equal(*seeded)
    torch.manual_seed(9)
    first = pair.model.generate(**inputs, **settings)
    torch.manual_seed(9)
    assert torch.equal(first, pair.model.generate(**inputs, **settings))
    greedy = pair.model.generate(**inputs, do_sample=True, top_k=1, max_new_tokens=12)
    assert torch.equal(greedy, pair.model.generate(**inputs, max_new_tokens=12))
    several = pair.model.generate(**inputs, **settings, num_return_sequences=4, seed=5)
    assert torch.equal(several[0], seeded[0][0])
    assert len({tuple(row.tolist()) for row in several}) > 1


def test_scores_and_logits_of_each_step_agree(pair: Pair) -> None:
    inputs = _inputs(pair, [2])
    settings = {"max_new_tokens": 6, "repetition_penalty": 1.4, "return_dict_in_generate": True, "output_scores": True}
    ours = pair.model.generate(**inputs, **settings, output_logits=True)
    theirs = pair.their_model.generate(**inputs, **settings, output_logits=True)
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        assert len(ours[name]) == 6
        for mine, reference in zip(ours[name], theirs[name], strict=True):
            assert _relative_error(mine, reference) <= 1e-5
    assert not torch.equal(ours.scores[-1], ours.logits[-1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2},
        {"top_k": 0, "min_p": 0.05},
        {"top_k": None, "top_p": 0.5},
    ],
)
def test_first_token_is_sampled_from_the_same_distribution(pair: Pair, settings: dict[str, Any]) -> None:
    inputs = _inputs(pair, [2])
    options = {"do_sample": True, "max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    ours = pair.model.generate(**inputs, **options, **settings).scores[0]
    theirs = pair.their_model.generate(**inputs, **options, **settings).scores[0]
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert _relative_error(ours[ours.isfinite()], theirs[theirs.isfinite()]) <= 1e-5


def test_transformers_streamer_sees_the_same_text(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    seen = []
    for model in (pair.model, pair.their_model):
        streamer = transformers.TextIteratorStreamer(pair.their_processor.tokenizer, skip_prompt=True)
        model.generate(**inputs, max_new_tokens=10, streamer=streamer)
        seen.append("".join(streamer))
    assert seen[0] == seen[1]
    assert seen[0]


def test_forward_pass_and_loss_agree(pair: Pair) -> None:
    inputs = _inputs(pair, [3, 1, 0], padding_side="right")
    is_seen = inputs["attention_mask"].bool()
    is_image = inputs["input_ids"] == pair.processor.image_token_id
    labels = inputs["input_ids"].masked_fill(~is_seen | is_image, -100)
    with torch.inference_mode():
        theirs = pair.their_model(**inputs, labels=labels)
    ours = pair.model(**inputs, labels=labels)
    assert ours.logits.shape == theirs.logits.shape
    assert _relative_error(ours.logits[is_seen], theirs.logits[is_seen]) <= 1e-5
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert ours[0] is ours.loss
    assert list(ours) == ["loss", "logits", "image_hidden_states"]
    last = pair.model(**inputs, logits_to_keep=1)
    assert torch.equal(last.logits, ours.logits[:, -1:])
    assert last.loss is None


def test_features_in_the_output_have_the_shape_of_transformers(pair: Pair) -> None:
    inputs = _inputs(pair, [2])
    ours, theirs = (model(**inputs).image_hidden_states for model in (pair.model, pair.their_model))
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_positions_to_keep_agree(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    for kept in (0, 2, torch.tensor([3, 4]), torch.tensor([-1])):
        ours, theirs = (model(**inputs, logits_to_keep=kept).logits for model in (pair.model, pair.their_model))
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for wrong in (-1, 1.5, torch.tensor([4000]), torch.tensor([0.5]), torch.tensor([[1]])):
        with pytest.raises(PromptError, match="logits_to_keep"):
            pair.model(**inputs, logits_to_keep=wrong)


def test_forward_is_the_call(pair: Pair) -> None:
    inputs = _inputs(pair, [0])
    assert torch.equal(pair.model.forward(**inputs).logits, pair.model(**inputs).logits)


def test_decoding_by_hand_is_told_that_there_is_no_cache(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    output = pair.model(**inputs)
    assert list(output) == [name for name in pair.their_model(**inputs) if name != "past_key_values"]
    assert output.hidden_states is None
    with pytest.raises(UnsupportedAttributeError, match=r"past_key_values.*Use generate\(\)"):
        pair.model(input_ids=inputs["input_ids"][:, -1:], past_key_values=output.past_key_values)


def test_left_padded_rows_have_the_logits_of_rows_alone(pair: Pair) -> None:
    together = _inputs(pair, [3, 1])
    alone = _inputs(pair, [1])
    width = alone["input_ids"].shape[1]
    assert torch.equal(pair.model(**together).logits[1, -width:], pair.model(**alone).logits[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"min_new_tokens": 4, "max_new_tokens": 3}, "min_new_tokens is 4, but max_new_tokens is 3"),
        ({"do_sample": True, "temperature": 1e-38}, "temperature is 1e-38, which no score can be divided by"),
        ({"typical_p": 0.5}, "typical_p=0.5"),
        ({"max_new_token": 4}, "'max_new_token'"),
        ({"use_cache": False}, "use_cache=False"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=2 with do_sample=True"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping is 'always'"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0 with do_sample=True"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 needs do_sample=True or num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"streamer": object(), "num_beams": 2}, "2 beams"),
    ],
)
def test_setting_that_cannot_be_done_is_refused_by_name(pair: Pair, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        pair.model.generate(**_inputs(pair, [0]), **settings)


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria", "past_key_values", "inputs_embeds"])
def test_input_that_cannot_be_used_is_refused_by_name(pair: Pair, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not supported"):
        pair.model.generate(**_inputs(pair, [0]), **{name: [1]})


def test_neutral_values_of_settings_that_are_not_done_are_accepted(pair: Pair) -> None:
    inputs = _inputs(pair, [0])
    neutral = {"no_repeat_ngram_size": 0, "typical_p": 1.0, "num_beam_groups": 1, "use_cache": True, "top_p": None}
    neutral |= {"logits_processor": transformers.LogitsProcessorList(), "stopping_criteria": [], "min_new_tokens": 0}
    assert torch.equal(
        pair.model.generate(**inputs, max_new_tokens=4, **neutral), pair.model.generate(**inputs, max_new_tokens=4)
    )


def test_pictures_that_do_not_match_the_prompt_are_refused_with_numbers(pair: Pair) -> None:
    inputs = _inputs(pair, [2])
    with pytest.raises(PromptError, match=r"places for 2 pictures \(16 image tokens each\), but pixel_values holds 1"):
        pair.model.generate(inputs["input_ids"], pixel_values=inputs["pixel_values"][:1])
    with pytest.raises(PromptError, match=r"shape \(2, 3, 28, 28\); this model needs \(pictures, 3, 56, 56\)"):
        pair.model.generate(inputs["input_ids"], pixel_values=inputs["pixel_values"][..., ::2, ::2])
    with pytest.raises(PromptError, match="31 image tokens, which is no multiple of the 16"):
        pair.model.generate(inputs["input_ids"][:, : -(pair.processor.num_image_tokens)][:, :37], pixel_values=None)


def test_answer_that_reaches_the_context_ends_there_and_says_so(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llavakit"):
        output = pair.model.generate(torch.full((1, 500), 5), max_new_tokens=20, eos_token_id=-1)
    assert output.shape[1] == 512
    assert "20 new tokens were allowed, but a prompt of 500 leaves room for 12 in the context of 512" in caplog.text


def test_logits_are_ordinary_tensors(pair: Pair) -> None:
    inputs = _inputs(pair, [1])
    logits = pair.model(**inputs).logits
    logits[0, 0] = 0.0
    assert not logits.is_inference()
    settings = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}
    assert not pair.model.generate(**inputs, **settings).logits[0].is_inference()


def test_prompt_longer_than_the_context_is_refused(pair: Pair) -> None:
    with pytest.raises(ContextOverflowError, match="the prompt has 600 tokens"):
        pair.model.generate(torch.full((1, 600), 5))


def _relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value; 1e-5 is the project's bar for float32 (docs/numerics.md)."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
