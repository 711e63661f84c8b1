"""Shapes and costs: the published sizes, and counts by hand."""

from __future__ import annotations

import copy
import math

from llavakit.core import shapes
from llavakit.core.config_json import parse_llava_config
from tests.unit.core.test_config_json import PUBLISHED_7B, SIZES_13B

CONFIG_7B = parse_llava_config(PUBLISHED_7B)
_RAW_13B = copy.deepcopy(PUBLISHED_7B)
_RAW_13B["text_config"].update(SIZES_13B)
CONFIG_13B = parse_llava_config(_RAW_13B)


def count(prefixes: tuple[str, ...], config: object) -> int:
    found = shapes.expected_tensors(config)  # type: ignore[arg-type]
    return sum(math.prod(shape) for name, shape in found.items() if name.startswith(prefixes))


def test_published_parameter_counts() -> None:
    for config, language, projector in (
        (CONFIG_7B, 6_738_939_904, 20_979_712),
        (CONFIG_13B, 13_016_519_680, 31_467_520),
    ):
        assert count(("language_model.", "lm_head."), config) == language
        assert count(("multi_modal_projector.",), config) == projector
        # The whole tower has 303,507,456: less its last block and its last norm.
        block = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
        assert count(("vision_tower.",), config) == 303_507_456 - block - 2 * 1024
        assert shapes.weight_bytes(config, "float16") == 2 * shapes.count_parameters(config)


def test_published_cache_sizes() -> None:
    assert shapes.kv_bytes_per_token(CONFIG_7B, "float16") == 524_288
    assert shapes.kv_bytes_per_token(CONFIG_13B, "float16") == 819_200
    assert shapes.kv_bytes_per_token(CONFIG_13B, "float32") == 1_638_400


def test_prefill_costs_add_up() -> None:
    head = 2 * 4096 * 32064
    whole = shapes.prefill_flops(CONFIG_7B, 100)
    parts = shapes.prefill_flops(CONFIG_7B, 60) + shapes.prefill_flops(CONFIG_7B, 40, num_cached_tokens=60)
    assert parts - head == whole  # each part computes the logits of its last token
    assert (
        shapes.decode_flops(CONFIG_7B, 99)
        == shapes.prefill_flops(CONFIG_7B, 100) - shapes.prefill_flops(CONFIG_7B, 99) + head
    )


def test_decoding_costs_two_operations_per_weight() -> None:
    matrices = count(("language_model.layers.", "lm_head."), CONFIG_7B) - 32 * 2 * 4096
    assert shapes.decode_flops(CONFIG_7B, 0) == 2 * matrices + 4 * 32 * 4096
    assert shapes.decode_bytes(CONFIG_7B, "float16", 10) == 2 * matrices + 10 * 524_288


def test_picture_costs_by_hand() -> None:
    tokens, width, inner = 577, 1024, 4096
    block = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    assert shapes.vision_flops(CONFIG_7B) == 2 * (23 * block + 576 * width * 3 * 14 * 14)
    assert shapes.projector_flops(CONFIG_7B) == 2 * 576 * (1024 * 4096 + 4096 * 4096)
