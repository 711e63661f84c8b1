"""The planner's page plans what Python plans, and says of every verdict what it is of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest

from llavakit.core.errors import ConfigError
from llavakit.planner.candidates import Need, list_candidates
from llavakit.planner.choose import choose_best
from llavakit.planner.devices import Device, find_device, list_sold_devices
from llavakit.planner.machine import assumed_host
from llavakit.planner.models import PlannedModel, find_model
from llavakit.planner.plans import make_plan
from llavakit.planner.records import KV_BLOCK_BYTES, Setting
from tests.browser.calculator import NAMES, open_with, text_of
from tests.browser.chromium import BROWSER, Browser

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")

# Fields of a setting, and on how many devices.
_SETTINGS: tuple[tuple[dict[str, object], int], ...] = (
    ({}, 1), ({"num_parallel": 9, "num_images": 2}, 1), ({"num_images": 0, "num_new_tokens": 900}, 1),
    ({"num_context_tokens": 700, "num_new_tokens": 500}, 1), ({"num_device_layers": 0}, 1),
    ({"num_device_layers": 12}, 1), ({"is_vision_on_device": False}, 1), ({"has_flash_attention": True}, 1),
    ({"engine": "llavakit", "num_device_layers": 3, "is_vision_on_device": False}, 1), ({"engine": "transformers"}, 1),
    ({"engine": "transformers-4bit"}, 1), ({"engine": "vllm", "num_parallel": 2}, 1),
    *(({"kv_block_bytes": KV_BLOCK_BYTES[kv]}, 1) for kv in ("f32", "q8_0", "q4_0")),
    *(({"engine": engine, "kv_block_bytes": KV_BLOCK_BYTES["q8_0"]}, 1) for engine in ("llavakit", "vllm", "ollama")),
    *(({"engine": engine}, 2) for engine in ("llama.cpp", "llavakit", "transformers", "vllm")), ({"engine": "vllm"}, 3),
)  # fmt: skip
_PLAN = """
((setting, quant, count) => D.devices.map((device) => {
  const plan = planFor(device, count, quant, setting);
  if (plan.problem) return null;
  const names = ["decode", "full", "first", "vision", "answer", "images", "joules"];
  const speed = plan.speed && [...names.map((name) => plan.speed[name]), plan.speed.isGuess];
  const parts = plan.parts.map((part) => [part.name, part.bytes, part.place, part.basis]);
  return [plan.verdict, plan.quant.name, plan.totals, plan.usable, parts, contextOf(plan), plan.layers,
    plan.setting.has_flash_attention, speed, plan.speed?.factor];
}))
"""


def _planned(model: PlannedModel, quant: str, setting: Setting, device: Device, count: int) -> list[object] | None:
    """Plan in Python, as the page's list; None where it cannot be."""
    chosen = [] if device.backend == "cpu" else [device] * (1 if device.is_shared else count)
    try:
        plan = make_plan(model, quant, setting, chosen, assumed_host([device]), has_advice=False)
    except ConfigError:
        return None
    speed = plan.speed and [
        plan.speed.decode.value, plan.speed.decode_full.value, plan.speed.first_token_s, plan.speed.vision_s,
        plan.speed.answer_s, plan.speed.images_per_hour, plan.speed.joules_per_image,
        any("guess" in warning for warning in plan.warnings),
    ]  # fmt: skip
    parts = [[part.name, part.bytes, part.place, part.basis] for part in plan.parts]
    return [
        plan.verdict, plan.quant.name, list(plan.totals), list(plan.usable), parts, plan.largest_context,
        plan.device_layers, plan.setting.has_flash_attention, speed,
        plan.speed and pytest.approx(plan.speed.decode.high / plan.speed.decode.value),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "quant", "settings"),
    [("llava:13b", "q4_k_m", _SETTINGS), ("llava:7b", "q6_k", _SETTINGS), ("llava:13b", "f32", _SETTINGS[:8])],
    ids=["13b-q4_k_m", "7b-q6_k", "13b-f32"],
)  # fmt: skip
def test_the_page_plans_what_python_plans(
    browser: Browser, site: Path, name: str, quant: str, settings: Sequence[tuple[dict[str, object], int]]
) -> None:
    """Every device, with whatever stands around it: the same parts, verdicts, largest contexts and times."""
    open_with(browser, site, f"model={name}")
    model = find_model(name)
    for fields, count in settings:
        setting = Setting(**{"num_device_layers": model.sizes.num_layers + 1, **fields})  # type: ignore[arg-type]
        found = browser.run(f"{_PLAN}({json.dumps(asdict(setting))}, '{quant}', {count})")
        for device, row in zip(list_sold_devices(), found, strict=True):
            assert row == _planned(model, quant, setting, device, count), (device.name, fields, count)


@pytest.mark.parametrize("name", ["llava:7b", "llava:13b"])
def test_what_is_set_on_the_page_is_what_is_planned(browser: Browser, site: Path, name: str) -> None:
    """From the address to the plan: every type of the cache, with flash attention and without."""
    model, device = find_model(name), find_device("GeForce RTX 3060 12GB")
    for (kv, size), flash in product(KV_BLOCK_BYTES.items(), (0, 1)):
        query = f"model={name}&quant=q8_0&kv={kv}&flash={flash}&images=2&text=99&visual=300&answer=50&context=2048"
        browser.run(f"location.hash = '#?{query}'")
        browser.until(f"state.kv === '{kv}' && state.flash === {flash} && state.model === '{name}'")
        found = browser.run(
            f"{_PLAN}(settingOf(), state.quant, state.count)[D.devices.indexOf(deviceOf(state.device))]"
        )
        setting = Setting(
            num_images=2, num_text_tokens=99, num_visual_tokens=300, num_new_tokens=50, num_context_tokens=2048,
            kv_block_bytes=size, has_flash_attention=flash == 1,
        )  # fmt: skip
        assert found == _planned(model, "q8_0", setting, device, 1), (kv, flash)
        assert browser.run("$('flash').checked") == (flash == 1 or size < KV_BLOCK_BYTES["f16"])


def test_a_prompt_that_is_too_long_has_no_speed(browser: Browser, site: Path) -> None:
    page = (site / "index.html").as_uri()
    browser.send("Page.navigate", url=f"{page}#?images=4&context=1024")
    browser.until("document.readyState === 'complete' && location.href.includes('images=4')")
    for part in ("verdict", "speed", "device-table", "best-answer", "plot-area"):
        assert "longer than the context of 1024" in browser.run(f"document.getElementById('{part}').textContent"), part
    assert browser.run("document.getElementById('numbers').textContent") == ""
    assert browser.run("document.querySelectorAll('#device-table tbody tr').length") == 0


def test_the_page_lists_what_an_engine_runs(browser: Browser, site: Path) -> None:
    page = (site / "index.html").as_uri()
    browser.send("Page.navigate", url=f"{page}#?engine=vllm&count=2")
    browser.until("document.readyState === 'complete' && location.href.includes('engine=vllm')")
    table = browser.run("document.getElementById('quant-table').innerText")
    assert "vllm runs files of 16 bits" in table
    assert browser.run("document.querySelectorAll('#quant-table tbody tr').length") == 1
    assert "2 x" in browser.run("document.getElementById('verdict').textContent")
    assert not browser.run("document.getElementById('count').disabled")
    assert "with vllm at F16" in browser.run("document.querySelector('#device-table caption').textContent")
    assert browser.run("['quant', 'quant-step', 'kv-step', 'min-speed'].every((name) => $(name).disabled)")
    assert browser.run("$('quant').value") == "f16"


@pytest.mark.parametrize(
    ("budget", "speed", "said", "unsaid"),
    [
        (400, 60, ["Within $400 the fastest is", "for 60 tokens a second the cheapest is"], "runs it"),
        (50, 1, ["The cheapest device that runs it is"], "fastest"),
        (5000, 9000, ["The fastest device with a price is"], "cheapest"),
    ],
)  # fmt: skip
def test_the_limit_that_nothing_meets_is_named(
    browser: Browser, site: Path, budget: int, speed: int, said: list[str], unsaid: str
) -> None:
    page = (site / "index.html").as_uri()
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=f"{page}#?budget={budget}&speed={speed}")
    browser.until(f"document.readyState === 'complete' && location.href.includes('budget={budget}')")
    answer = browser.run("document.getElementById('best-answer').textContent")
    assert all(words in answer for words in said), answer
    assert unsaid not in answer


def test_what_lacks_memory_is_named(browser: Browser, site: Path) -> None:
    """The computer around a card, where the card holds its layers; nothing of an engine that is not planned there."""
    page = (site / "index.html").as_uri()
    verdict = "document.getElementById('verdict').textContent"
    browser.send("Page.navigate", url=f"{page}#?quant=f32&layers=2&device=GeForce+RTX+4090")
    browser.until("document.readyState === 'complete' && location.href.includes('layers=2')")
    assert "are missing in the computer around it" in browser.run(verdict)
    assert "-" not in browser.run(verdict).split("context:")[1].split("missing")[0]
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=f"{page}#?engine=vllm&device=Apple+M4+Max+(40-core+GPU)+64GB")
    browser.until("document.readyState === 'complete' && location.href.includes('engine=vllm')")
    assert "vllm is not planned on Apple M4 Max" in browser.run(verdict)
    assert browser.run("document.getElementById('memory').textContent") == ""


@pytest.mark.parametrize("engine", ["llama.cpp", "llavakit", "transformers", "transformers-4bit", "vllm"])
def test_table_best_device_and_panel_are_of_one_program(browser: Browser, site: Path, engine: str) -> None:
    """All of them of the chosen program, as `gpus` and `best` are; speeds are drawn where there are any."""
    budget, speed = 2500, 20
    open_with(browser, site, f"engine={engine}&kind=all&budget={budget}&speed={speed}&device=GeForce+RTX+5070+Ti")
    found = list_candidates(find_model("llava:13b"), "q4_k_m", Setting(engine=engine))
    names = [name.removesuffix(" *") for name in browser.run(NAMES)]
    assert sorted(names) == sorted(candidate.device.name for candidate in found)
    has_speeds = found[0].plan.speed is not None
    need = Need(budget_usd=budget, min_tokens_per_s=speed if has_speeds else None)
    best = choose_best(found, need).best
    assert best is not None
    answer, caption = text_of(browser, "best-answer"), browser.run("$('device-table').caption.textContent")
    assert answer.startswith(f"{best.device.name}. ")
    program = f"with {engine} at {best.plan.quant.name.upper()}"
    assert program in answer
    assert program in caption or f"with {engine}, at Q4_K_M on processors and F16 on GPUs" in caption
    assert ("No speeds are known" in answer) == (browser.run("$('plot-area').querySelector('svg')") is None)
    assert (engine in text_of(browser, "plot")) and (engine in text_of(browser, "quant-table"))
    verdict = text_of(browser, "verdict")
    assert f"on GeForce RTX 5070 Ti, with {engine}" in verdict
    assert verdict.startswith(("It fits.", "Barely.")) == ("GeForce RTX 5070 Ti" in names)


_CHANGES = """
((setting, quant) => D.devices.map((device) =>
  [changesFor(device, 1, quant, setting), planFor(device, 1, quant, setting).problem]))
"""


@pytest.mark.parametrize("engine", ["llama.cpp", "llavakit", "transformers", "vllm"])
def test_what_is_advised_can_be_done_and_helps(browser: Browser, site: Path, engine: str) -> None:
    open_with(browser, site, "")
    model = find_model("llava:13b")
    setting = Setting(num_device_layers=41, engine=engine)
    said = set()
    found = browser.run(f"{_CHANGES}({json.dumps(asdict(setting))}, 'q6_k')")
    for device, (changes, problem) in zip(list_sold_devices(), found, strict=True):
        for words, count, quant, changed in changes:
            said.add(words)
            chosen = [] if device.backend == "cpu" else [device] * (1 if device.is_shared else count)
            plan = make_plan(model, quant, Setting(**changed), chosen, assumed_host([device]), has_advice=False)
            assert plan.verdict in ("fits", "tight"), (device.name, words)
        assert not (problem and changes)
    assert {words for words in said if "devices" in words or "llama.cpp" in words}
    if setting.engine in ("transformers", "vllm"):
        assert not any(words[0] in "Qk" for words in said)


def test_a_panel_without_a_way_out_says_so(browser: Browser, site: Path) -> None:
    open_with(browser, site, "engine=vllm&device=GeForce+RTX+5070+Ti")
    verdict = text_of(browser, "verdict")
    assert "are missing" in verdict
    assert "smaller" not in verdict
    assert "It fits with 4 of these devices, or with llama.cpp at Q4_K_M." in verdict
    open_with(browser, site, "engine=vllm&device=GeForce+RTX+5050&count=8&quant=f32&parallel=16&images=6")
    assert "Nothing that can be set here makes it fit" in text_of(browser, "verdict")


def test_the_page_refuses_what_this_package_refuses(browser: Browser, site: Path) -> None:
    page = (site / "index.html").as_uri()
    for query, problem in (
        ("device=Arc+A770+16GB", "llavakit is not planned on Arc A770"),
        ("kv=q4_0", "keeps no keys and values in q4_0"),
    ):
        browser.send("Page.navigate", url="about:blank")
        browser.send("Page.navigate", url=f"{page}#?engine=llavakit&{query}")
        browser.until(f"document.readyState === 'complete' && location.href.includes('{query}')")
        assert problem in browser.run("document.getElementById('verdict').textContent")
        assert problem in browser.run("document.getElementById('speed').textContent")
    assert browser.run("document.querySelectorAll('#device-table tbody tr').length") == 0


def test_a_chip_with_its_own_processor_is_planned_alone(browser: Browser, site: Path) -> None:
    chip = next(device for device in list_sold_devices() if device.is_shared and device.backend != "cpu")
    for name, num in ((chip.name, 1), ("GeForce RTX 3060 12GB", 2)):
        open_with(browser, site, f"device={name.replace(' ', '+')}&count=2")
        planned = "planFor(deviceOf(state.device), state.count, state.quant, settingOf()).devices.length"
        assert browser.run(planned) == num
        assert browser.run("document.getElementById('count').value") == str(num)
