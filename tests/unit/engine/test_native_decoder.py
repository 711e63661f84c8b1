"""All layers in one native call: bit for bit what the layers compute one after the other, in every cache."""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import llavakit
from llavakit.core.errors import ConfigError
from llavakit.dropin.quantization import BitsAndBytesConfig, quantize_decoder
from llavakit.engine.kv_cache import DecodeView, KVCache, PrefillView
from llavakit.engine.paged_cache import BlockPool, PackedPass, Piece
from llavakit.kernels.structures import DecoderCall, TokenGroup
from llavakit.model.kv_blocks import BLOCKS
from llavakit.model.layers import Linear
from llavakit.model.llama import LlamaModel
from llavakit.model.native_decoder import NativeDecoder
from llavakit.model.threads import load_shared_library
from tests.tiny.gguf_pair import write_pair
from tests.tiny.random_model import make_config, make_model

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = tmp_path_factory.mktemp("pair")
    # Two key heads for four of queries, and sizes that differ, so that no two can be confused.
    config = make_config(
        hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64
    )
    write_pair(folder, config, types=("q4_k", "q8_0", "q6_k"))
    model = llavakit.load(folder / "model.gguf").model.language_model
    assert isinstance(model, LlamaModel)
    assert model.native is not None
    return model


@pytest.fixture(scope="module")
def float_decoder() -> LlamaModel:
    config = make_config(
        hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64
    )
    model = make_model(config=config)
    model.use_native()
    assert model.language_model.native is not None
    return model.language_model


def _random(model: LlamaModel, *shape: int) -> Tensor:
    width = model.norm.weight.shape[0]
    return torch.randn((*shape, width), generator=torch.Generator().manual_seed(sum(shape)))


def _rows(model: LlamaModel, dtype: torch.dtype) -> list[Tensor]:
    cache = KVCache(model.config, num_rows=3, max_len=64, dtype=dtype, device=_CPU)
    out = []
    for row, start, length in ((1, 0, 20), (0, 0, 7), (1, 20, 9), (0, 7, 1)):
        view = PrefillView(cache, row=row, start=start)
        positions = torch.arange(start, start + length)[None]
        out.append(model(_random(model, 1, length), positions, cache=view, mask=view.mask(length)))
    for lengths in ([8, 29], [9, 30, 0], [10, 10]):
        decode = DecodeView(cache, lengths)
        out.append(model(_random(model, len(lengths), 1), decode.positions, cache=decode, mask=decode.mask()))
    return [*out, cache.keys, cache.values]


def _blocks(model: LlamaModel, dtype: torch.dtype) -> list[Tensor]:
    pool = BlockPool(model.config, num_blocks=9, dtype=dtype, device=_CPU)
    out = []
    for pieces in (
        [Piece([3], 0, 1), Piece([5], 0, 1), Piece([7, 2], 0, 25)],
        [Piece([3], 1, 1), Piece([7, 2], 25, 3), Piece([5, 8], 1, 20)],
    ):
        packed = PackedPass(pool, pieces)
        out.append(model(_random(model, 1, packed.positions.shape[1]), packed.positions, cache=packed))
    return [*out, pool.keys, pool.values]


@pytest.mark.parametrize("kind", ["decoder", "float_decoder"])
@pytest.mark.parametrize("compute", [_rows, _blocks])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BLOCKS], ids=str)
def test_layers_at_once_are_layers_in_turn(
    kind: str, dtype: torch.dtype, compute: object, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert callable(compute)
    decoder: LlamaModel = request.getfixturevalue(kind)
    with torch.inference_mode():
        at_once = compute(decoder, dtype)
        monkeypatch.setattr(NativeDecoder, "forward", None)  # so that a call of it fails
        monkeypatch.setattr(decoder, "native", None)
        in_turn = compute(decoder, dtype)
    assert all(torch.equal(one, other) for one, other in zip(at_once, in_turn, strict=True))
    assert all(bool(one.float().abs().sum() > 0) for one in at_once)


def _layer_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("compute", [_rows, _blocks])
def test_floats_in_the_library_are_those_of_torch(float_decoder: LlamaModel, compute: object) -> None:
    """Two orders of float32 sums, in two layers and a norm."""
    assert callable(compute)
    with torch.inference_mode():
        native = compute(float_decoder, torch.float32)
        with float_decoder.module_by_module():
            plain = compute(float_decoder, torch.float32)
    assert not torch.equal(native[0], plain[0])  # else the same thing was computed twice
    assert _layer_difference(native, plain) < 1e-5


def test_a_token_in_float32_is_the_same_alone_and_among_others(float_decoder: LlamaModel) -> None:
    together, alone = (
        BlockPool(float_decoder.config, num_blocks=9, dtype=torch.float32, device=_CPU) for _ in range(2)
    )
    x = _random(float_decoder, 1, 40)
    with torch.inference_mode():
        packed = PackedPass(together, [Piece([4], 0, 3), Piece([1, 2, 6], 0, 37)])
        found = float_decoder(x, packed.positions, cache=packed)
        for piece, part in ((Piece([4], 0, 3), slice(3)), (Piece([1, 2, 6], 0, 37), slice(3, 40))):
            packed = PackedPass(alone, [piece])
            assert torch.equal(float_decoder(x[:, part], packed.positions, cache=packed), found[:, part])


def test_a_weight_that_was_replaced_counts() -> None:
    model = make_model(config=make_config(hidden_size=256, intermediate_size=256, head_dim=64))
    model.use_native()
    decoder = model.language_model
    x = _random(decoder, 1, 5)

    def compute() -> Tensor:
        cache = KVCache(decoder.config, num_rows=1, max_len=8, dtype=torch.float32, device=_CPU)
        with torch.inference_mode():
            return decoder(x, torch.arange(5)[None], cache=PrefillView(cache, row=0, start=0))  # type: ignore[no-any-return]

    before, linear = compute(), decoder.layers[1].mlp.down_proj
    with torch.no_grad():
        linear.weight.mul_(2)  # in place
    in_place = compute()
    assert not torch.equal(in_place, before)
    linear.weight = torch.nn.Parameter(linear.weight.detach() / 2, requires_grad=False)
    assert torch.allclose(compute(), before, atol=1e-5)
    decoder.layers[0].self_attn.o_proj = torch.nn.Linear(256, 256, bias=False)
    assert not torch.allclose(compute(), before, atol=1e-3)


def test_tokens_are_left_as_they_are(decoder: LlamaModel) -> None:
    cache = KVCache(decoder.config, num_rows=1, max_len=8, dtype=torch.float16, device=_CPU)
    x = _random(decoder, 1, 3)
    before = x.clone()
    with torch.inference_mode():
        decoder(x, torch.arange(3)[None], cache=PrefillView(cache, row=0, start=0))
    assert torch.equal(x, before)


def test_weights_that_move_are_not_read_where_they_were(tmp_path: Path) -> None:
    write_pair(tmp_path, make_config(hidden_size=256, intermediate_size=256, head_dim=64), types=("q8_0",))
    model = llavakit.load(tmp_path / "model.gguf").model
    assert model.language_model.native is not None
    model.to(torch.float64)
    assert model.language_model.native is None


def test_a_decoder_that_was_quantized_while_loading_is_computed_at_once() -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
    for skipped in (None, ["down_proj"]):  # which stays in float32
        model = make_model(config=make_config(**sizes))
        config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
        quantize_decoder(model, config, _CPU)
        assert model.language_model.native is not None
        cache = KVCache(model.config.text_config, num_rows=1, max_len=8, dtype=torch.float32, device=_CPU)
        with torch.inference_mode():
            view = PrefillView(cache, row=0, start=0)
            out = model.language_model(_random(model.language_model, 1, 5), torch.arange(5)[None], cache=view)
        assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_tokens": 1 << 30, "width": 1 << 30, "groups": [(0, 1, 1 << 30)]},
        {"num_tokens": 3, "groups": [(0, 1 << 62, 4)]},
        {"num_tokens": 3, "groups": [(0, 1, 2), (1, 1, 1)]},
        {"num_tokens": 3, "groups": [(0, 1, 4)]},
        {"num_tokens": -1, "groups": []},
        {"num_tokens": 3, "head_dim": 0, "groups": [(0, 1, 3)]},
    ],
    ids=["scratch", "product", "gap", "more", "negative", "zero"],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, Any]) -> None:
    given = {"num_layers": 1, "width": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "mlp_width": 8} | sizes
    found = given.pop("groups")
    groups = (TokenGroup * len(found))(*(TokenGroup(*group) for group in found))
    call = DecoderCall(groups=ctypes.addressof(groups), num_groups=len(found), **given)
    with pytest.raises(ConfigError, match="out of range"):
        load_shared_library().count_decoder_scratch(call)
    with pytest.raises(ConfigError, match="out of range"):
        load_shared_library().decode(call, num_threads=1)


def test_a_copy_of_a_decoder_does_not_point_into_the_first(decoder: LlamaModel) -> None:
    copied = copy.deepcopy(decoder)
    assert copied.native is None
    for module in copied.modules():
        if isinstance(module, Linear) and module.matrix is not None:
            assert module.matrix.address == module.matrix.data.ctypes.data
    with torch.inference_mode():
        at_once, in_turn = (_rows(model, torch.float16) for model in (decoder, copied))
    assert all(torch.equal(one, other) for one, other in zip(at_once, in_turn, strict=True))


def test_a_pass_whose_groups_are_not_its_tokens_is_refused(decoder: LlamaModel) -> None:
    call = DecoderCall(
        num_layers=1, num_tokens=3, num_groups=0, width=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8
    )
    with pytest.raises(ConfigError, match="3 tokens"):
        load_shared_library().count_decoder_scratch(call)
    with pytest.raises(ConfigError, match="3 tokens"):
        load_shared_library().decode(call, num_threads=1)
