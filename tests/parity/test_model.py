"""Vision features, projected features and logits against transformers, float32.

Bound of the relative error: 1e-5. Both sides do the same float32 operations; only the order inside sums may differ.
A sum of n products errs by at most n * 2**-24 of the sum of magnitudes, typically sqrt(n) * 2**-24: 8e-6 at the widest
inner dimension (13,824) per layer, and in practice far less since both use the same library (docs/numerics.md).
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="parity needs transformers: pip install 'llavakit[verify]'")

from tests.parity.reference import model_from, relative_error
from tests.tiny import IMAGE_TOKEN_ID, tiny_config

_BOUND = 1e-5
_7B = {"text_hidden_size": 4096, "text_intermediate_size": 11008, "text_num_attention_heads": 32,
       "text_num_key_value_heads": 32}  # fmt: skip
_13B = {"text_hidden_size": 5120, "text_intermediate_size": 13824, "text_num_attention_heads": 40,
        "text_num_key_value_heads": 40}  # fmt: skip
# Real widths; few patches keep the test short, since the widths are what sums run over.
_ONE_LAYER = {"text_num_hidden_layers": 1, "vision_hidden_size": 1024, "vision_intermediate_size": 4096,
              "vision_num_attention_heads": 16, "vision_num_hidden_layers": 2, "vision_image_size": 56}  # fmt: skip
_ONE_BLOCK_336 = {"vision_hidden_size": 1024, "vision_intermediate_size": 4096, "vision_num_attention_heads": 16,
                  "vision_num_hidden_layers": 2, "vision_image_size": 336,
                  "text_max_position_embeddings": 2048}  # fmt: skip


def _widened(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of tower and projector so wide that activations are of order one, where their curvature shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("vision_tower" in name or "projector" in name) and parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"text_num_key_value_heads": 2, "text_num_hidden_layers": 5, "vision_num_hidden_layers": 6},
        {"vision_image_size": 70, "vision_patch_size": 10},
        {**_7B, **_ONE_LAYER},
        {**_13B, **_ONE_LAYER},
        _ONE_BLOCK_336,
    ],
    ids=["tiny", "grouped-heads", "odd-patches", "one-layer-7b", "one-layer-13b", "one-block-336"],
)
def test_every_stage_agrees_with_transformers(overrides: dict[str, int]) -> None:
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    theirs = _widened(LlavaForConditionalGeneration(tiny_config(**overrides)).eval())
    ours = model_from(theirs)
    config = ours.config
    side = config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side)
    words = torch.randint(3, IMAGE_TOKEN_ID, (9,)).tolist()
    picture = [IMAGE_TOKEN_ID] * config.num_image_tokens
    ids = torch.tensor([[1, *words[:4], *picture, *words[4:6], *picture, *words[6:]]])
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels)
        expected_states = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        patch_features = ours.vision_tower(pixels)
        image_features = ours.multi_modal_projector(patch_features)
        logits = ours(ours.embed(ids, image_features), torch.arange(ids.shape[1])[None])
    assert relative_error(patch_features, expected_states[-2][:, 1:]) <= _BOUND
    assert relative_error(image_features.flatten(0, 1), expected.image_hidden_states.flatten(0, -2)) <= _BOUND
    assert relative_error(logits, expected.logits) <= _BOUND


def test_another_form_of_gelu_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant the tanh approximation in our projector: the stage must fail."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    theirs = _widened(LlavaForConditionalGeneration(tiny_config()).eval())
    ours = model_from(theirs)
    features = torch.randn(1, 4, ours.config.vision_config.hidden_size)
    with torch.inference_mode():
        expected = theirs.model.multi_modal_projector(features)
        assert relative_error(ours.multi_modal_projector(features), expected) <= _BOUND
        exact = torch.nn.functional.gelu
        monkeypatch.setattr("llavakit.model.projector.F.gelu", lambda x: exact(x, approximate="tanh"))
        spoiled = ours.multi_modal_projector(features)
    assert relative_error(spoiled, expected) > 3 * _BOUND


def test_the_comparator_sees_planted_errors() -> None:
    good = torch.randn(5, 7)
    assert relative_error(good, good) == 0.0
    for spoil in (
        lambda x: -x,
        lambda x: x * 1.001,
        lambda x: x[torch.tensor([1, 0, 2, 3, 4])],
        lambda x: x.masked_fill(torch.eye(5, 7, dtype=torch.bool), torch.nan),
        lambda x: x[:4],
    ):
        assert relative_error(spoil(good), good) > _BOUND


def test_as_many_pictures_as_placeholders() -> None:
    from llavakit.core.errors import PromptError
    from tests.tiny.random_model import make_model

    model = make_model()
    per_image = model.config.num_image_tokens
    ids = torch.tensor([[1] + [model.config.image_token_id] * per_image])
    features = torch.zeros(2, per_image, model.config.text_config.hidden_size)
    with pytest.raises(PromptError, match=f"{per_image} image positions .* {2 * per_image} feature rows"):
        model.embed(ids, features)


def test_half_precision_on_a_cpu_is_as_exact_as_its_storage() -> None:
    """A float16 product widened to float32 errs by the rounding of its result only: half an ulp, 2**-11."""
    from llavakit.model.layers import Linear

    torch.manual_seed(0)
    layer = Linear(300, 520).requires_grad_(False)
    layer.weight.copy_(torch.randn(520, 300) / 300**0.5)
    layer.bias.copy_(torch.randn(520))
    layer.half()
    x = torch.randn(3, 7, 300).half()
    with torch.inference_mode():
        ours = layer(x)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert ours.dtype == torch.float16
    assert ((ours.double() - exact).abs() <= 2**-11 * exact.abs() + 1e-5).all()
