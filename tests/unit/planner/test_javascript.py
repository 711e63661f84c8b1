"""The translated formulas compute what the Python ones do, to the last bit."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llavakit.planner import formulas
from llavakit.planner.devices import list_devices
from llavakit.planner.javascript import FormulaSyntaxError, formulas_source, translate
from llavakit.planner.machine import generic_host
from llavakit.planner.models import find_model
from llavakit.planner.records import KV_BLOCK_BYTES, Setting
from llavakit.planner.speed import fit_for, processor_fit

_NUM_CASES = 300


def make_cases(seed: int, count: int) -> list[dict[str, Any]]:
    """Settings all over the range, with everything that formulas say of them."""
    rng = random.Random(seed)
    devices, host = list_devices(), generic_host()
    processors = [device for device in devices if device.backend == "cpu"]
    cases = []
    for _ in range(count):
        model = find_model(rng.choice(["llava:7b", "llava:13b"]))
        quant = model.quantize(rng.choice(["q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_1", "q6_k", "q8_0", "f16", "bf16"]))
        setting = Setting(
            engine=rng.choice(["llama.cpp", "ollama", "llavakit", "transformers", "transformers-4bit", "vllm"]),
            num_context_tokens=rng.randint(1, 4096), num_parallel=rng.randint(1, 9), num_images=rng.randint(0, 7),
            num_visual_tokens=rng.randint(1, 576), num_text_tokens=rng.randint(0, 900),
            num_new_tokens=rng.randint(1, 900), kv_block_bytes=rng.choice(list(KV_BLOCK_BYTES.values())),
            has_flash_attention=rng.random() < 0.5, num_device_layers=rng.randint(0, 50),
            is_vision_on_device=rng.random() < 0.5, image_megapixels=rng.uniform(0.1, 50),
        )  # fmt: skip
        layered = setting.engine in ("llama.cpp", "ollama")
        most = 1 if setting.engine == "llavakit" else 3
        chosen = rng.choices(devices, k=rng.randint(0 if layered else 1, most))
        processor = rng.choice(processors)
        own = setting.engine == "llavakit" and rng.random() < 0.7
        if own:  # this package's own engine on a processor
            chosen = []
        around = processor.engine_numbers if own else host.numbers
        host_fit = processor_fit(processor) if own else fit_for(host)
        numbers, fits = [device.numbers for device in chosen], [fit_for(device) for device in chosen]
        head = (model.sizes, quant, setting)
        args = (*head, numbers, fits, around, host_fit)
        where = (*head, numbers, around, 310_000_000)
        parts = formulas.parts_of(*head, numbers, 310_000_000)
        cases.append(
            {
                "model": asdict(model.sizes), "quant": asdict(quant), "setting": asdict(setting),
                "devices": [asdict(one) for one in numbers], "fits": [asdict(one) for one in fits],
                "host": asdict(around), "hostFit": asdict(host_fit),
                "wanted": [
                    parts, formulas.place_totals(parts, len(numbers)), formulas.fits_in(*where),
                    formulas.verdict_of(*where), formulas.largest_context(*where),
                    formulas.most_device_layers(*where), formulas.decode_seconds(*args, 500),
                    formulas.prompt_seconds(*args, 700), formulas.first_token_seconds(*args, 0.011),
                    formulas.answer_seconds(*args, 0.011), formulas.energy_joules(3.5, numbers, around),
                ],
            }
        )  # fmt: skip
    return cases


EVALUATE = """
function evaluate(c) {
  const args = [c.model, c.quant, c.setting, c.devices, c.fits, c.host, c.hostFit];
  const where = [c.model, c.quant, c.setting, c.devices, c.host, 310000000];
  const parts = parts_of(c.model, c.quant, c.setting, c.devices, 310000000);
  return [parts, place_totals(parts, c.devices.length), fits_in(...where), verdict_of(...where),
    largest_context(...where), most_device_layers(...where), decode_seconds(...args, 500), prompt_seconds(...args, 700),
    first_token_seconds(...args, 0.011), answer_seconds(...args, 0.011), energy_joules(3.5, c.devices, c.host)];
}
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_computes_the_same(tmp_path: Path) -> None:
    cases = make_cases(1, _NUM_CASES)
    script = tmp_path / "run.js"
    script.write_text(
        f"{translate(formulas_source())}{EVALUATE}console.log(JSON.stringify({json.dumps(cases)}.map(evaluate)));"
    )
    done = subprocess.run(["node", script], capture_output=True, text=True, check=True)
    for case, found in zip(cases, json.loads(done.stdout), strict=True):
        assert found == json.loads(json.dumps(case["wanted"])), case["setting"]


@pytest.mark.parametrize(
    "source",
    [
        "def f(a):\n    return a // 2\n", "def f(a):\n    return a ** 2\n", "def f(a):\n    return a % 2\n",
        "def f(a=1):\n    return a\n", "def f(a):\n    return sorted(a)\n", "def f(a):\n    return [b for b in a]\n",
        "def f(a):\n    return 1 < a < 2\n", "def f(a):\n    a += 1\n    return a\n", "class A:\n    pass\n",
        "def f(a):\n    return {1: a}\n", "def f(a):\n    for b, c in a:\n        return b\n", "x, y = 1, 2\n",
        "def f(a):\n    return a[1:]\n", "def f(a):\n    return\n",
    ],
)  # fmt: skip
def test_what_is_outside_the_subset_is_refused(source: str) -> None:
    with pytest.raises(FormulaSyntaxError, match=r"line \d+: .*outside the subset"):
        translate(source)
