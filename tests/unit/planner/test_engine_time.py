"""Time of this package's own engine: what each term does, and what is known of processors that were not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llavakit.planner import formulas
from llavakit.planner.devices import find_device, list_devices
from llavakit.planner.models import find_model
from llavakit.planner.records import KV_BLOCK_BYTES, DeviceNumbers, EngineFit, Setting
from llavakit.planner.speed import engine_fit, processor_fit
from llavakit.weights.mixtures import MIXTURES

_FIT = engine_fit("avx512_bf16")
_SETTING = Setting(engine="llavakit")


def _host(bandwidth: float = 80e9, plain: float = 500e9) -> DeviceNumbers:
    numbers = find_device("CPU: dual-channel DDR5-6400 desktop").engine_numbers
    return replace(numbers, bandwidth=bandwidth, shader_rate=plain, half_rate=2 * plain, int8_rate=4 * plain)


def _token_s(
    quant: str, host: DeviceNumbers, *, depth: int = 1, setting: Setting = _SETTING, fit: EngineFit = _FIT
) -> float:
    model = find_model("llava:7b")
    return formulas.decode_seconds(model.sizes, model.quantize(quant), setting, [], [], host, fit, depth)


def _prompt_s(quant: str, num_tokens: int) -> float:
    model = find_model("llava:7b")
    return formulas.prompt_seconds(model.sizes, model.quantize(quant), _SETTING, [], [], _host(), _FIT, num_tokens)


@pytest.mark.parametrize("name", MIXTURES)
def test_products_are_all_matrices_of_a_mixture(name: str) -> None:
    model = find_model("llava:7b")
    quant = model.quantize(name)
    assert sum(p["weights"] for p in quant.products) * 2 == model.sizes.linear_flops + model.sizes.head_flops
    # What is left of the file are norms and the token table.
    left = quant.language_bytes - quant.table_bytes - sum(p["bytes"] for p in quant.products)
    assert left == 4 * model.sizes.hidden_size * (2 * model.sizes.num_layers + 1)
    assert all(p["type"] in _FIT.row_operations and p["type"] in _FIT.pass_operations for p in quant.products)


def test_a_type_that_is_slow_to_unpack_is_bound_by_arithmetic() -> None:
    """Twice the bandwidth helps where reading is the limit, and hardly where unpacking is."""
    slow = replace(_FIT, row_operations=dict.fromkeys(_FIT.row_operations, 40.0))
    for quant, fit, least, most in (("f16", _FIT, 0.5, 0.62), ("q3_k_s", slow, 0.9, 1.0)):
        assert least <= _token_s(quant, _host(60e9), fit=fit) / _token_s(quant, _host(30e9), fit=fit) <= most
    assert _token_s("q3_k_s", _host(), fit=slow) > _token_s("q4_k_m", _host())


def test_the_cache_takes_its_time_at_depth() -> None:
    near, far = (_token_s("q4_k_m", _host(), depth=depth) for depth in (1, 3001))
    model = find_model("llava:7b")
    read_s = formulas.kv_bytes(model.sizes, _SETTING, model.sizes.num_layers, 3000) / 80e9
    assert far - near >= 0.99 * read_s
    small = replace(_SETTING, kv_block_bytes=KV_BLOCK_BYTES["q8_0"])
    assert _token_s("q4_k_m", _host(), depth=3001, setting=small) < far


def test_sequences_side_by_side_share_the_reading() -> None:
    one, four = (_token_s("q4_k_m", _host(), setting=replace(_SETTING, num_parallel=count)) for count in (1, 4))
    assert one < four < 3 * one


def test_a_prompt_unpacks_once() -> None:
    short, long = (_prompt_s("q4_0", count) for count in (8, 512))
    assert short > 8 * (long - short) / 504
    assert _prompt_s("f16", 512) > 1.3 * _prompt_s("q8_0", 512)


def test_processors_of_the_table_have_rates_from_their_cores() -> None:
    processors = [device for device in list_devices() if device.backend == "cpu"]
    assert len(processors) >= 12
    for device in processors:
        numbers, fit = device.engine_numbers, processor_fit(device)
        assert (numbers.shader_rate, numbers.int8_rate) == device.core_rates
        assert numbers.shader_rate <= numbers.int8_rate <= 4 * numbers.shader_rate
        assert fit.decode_spread > 2.9 * engine_fit(device.instruction_set).decode_spread
        assert fit.read_efficiency < 0.8
    assert find_device("CPU: 12-channel DDR5-4800 EPYC 9004").core_rates == pytest.approx(
        (96 * 2.4e9 * 32, 96 * 2.4e9 * 128)
    )
