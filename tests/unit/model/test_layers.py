"""Linear layers: every way to compute a product against the plain one in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from llavakit.model import layers
from llavakit.model.layers import Linear


def _make(dtype: torch.dtype, *, k: int = 700, n: int = 37, has_bias: bool = True) -> Linear:
    generator = torch.Generator().manual_seed(0)
    linear = Linear(k, n, bias=has_bias).to(dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return linear


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_product_is_the_plain_one(dtype: torch.dtype, num_rows: int, has_bias: bool) -> None:
    linear = _make(dtype, has_bias=has_bias)
    x = torch.randn((1, num_rows, 700), generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        found = linear(x)
    bias = None if linear.bias is None else linear.bias.double()
    with torch.no_grad():
        expected = torch.nn.functional.linear(x.double(), linear.weight.double(), bias)
        # 700 float32 additions of any order, then one rounding; two where torch rounds before the bias.
        sums = x.double().abs() @ linear.weight.double().abs().T
    assert found.dtype == dtype and found.shape == (1, num_rows, 37)
    unit = torch.finfo(dtype).eps / 2
    assert ((found.double() - expected).abs() <= 2 * unit * expected.abs() + 700 * 2.0**-24 * sums + unit).all()


def test_few_bfloat16_rows_are_multiplied_by_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    multiply = layers.multiply_stored

    def count(*arguments: object, **named: object) -> torch.Tensor:
        calls.append(1)
        return multiply(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(layers, "multiply_stored", count)
    linear, x = _make(torch.bfloat16), torch.randn((6, 700)).bfloat16()
    with torch.inference_mode():
        linear(x[:4])
        assert len(calls) == 1
        linear(x)
    # What is differentiated is left to torch.
    linear(x[:1]).sum().backward()
    assert len(calls) == 1 and linear.weight.grad is not None


def test_replaced_weights_are_seen() -> None:
    linear, x = _make(torch.bfloat16), torch.ones((1, 700)).bfloat16()
    with torch.inference_mode():
        before = linear(x)
        other = copy.deepcopy(linear)
        other.weight.copy_(torch.zeros_like(other.weight))
        assert torch.equal(other(x), other.bias.expand(1, -1))
        assert torch.equal(linear(x), before)
