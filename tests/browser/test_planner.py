"""The planner's page, audited: no layout shift, names and order of its fields, contrast, nothing that sticks out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from llavakit.planner.candidates import Need, list_candidates
from llavakit.planner.choose import choose_best
from llavakit.planner.devices import list_sold_devices
from llavakit.planner.machine import assumed_host
from llavakit.planner.models import find_model
from llavakit.planner.plans import make_plan, why_unplanned
from llavakit.planner.records import Setting
from llavakit.planner.site import write_site
from tests.browser.chromium import BROWSER, Browser, browsing

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")

_WIDTHS = (320, 768, 1280)
_WATCH = """
window.shifts = [];
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.shifts.push(entry.value); })
  .observe({ type: "layout-shift", buffered: true });
"""
# Text whose contrast with what lies behind it is under 4.5, or under 3 where it is large.
_PALE = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const of = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * of(r) + 0.7152 * of(g) + 0.0722 * of(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest("svg, script, style") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const pair = [light(parse(style.color)), light(behind(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (isLarge ? 3 : 4.5)) found.push(`${element.tagName} ${element.textContent.slice(0, 30)} ${ratio}`);
  }
  return found;
})()
"""
_NAMELESS = """
[...document.querySelectorAll("input, select, textarea, button, a[href], summary")].filter((element) =>
  !(element.labels?.length || element.getAttribute("aria-label") || element.getAttribute("aria-labelledby")
    || element.textContent.trim())).map((element) => element.outerHTML.slice(0, 120))
"""
_FOCUSABLE = """
[...document.querySelectorAll("input, select, textarea, button, a[href], summary, [tabindex]")]
  .filter((element) => element.tabIndex >= 0 && !element.disabled && element.checkVisibility())
"""
# Devices of the table, in its order.
_NAMES = "[...document.querySelectorAll('#device-table tbody tr')].map((row) => row.cells[0].innerText)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planner") / "pages"
    write_site(folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        found.send("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        yield found


def _open(browser: Browser, page: Path) -> None:
    browser.send("Page.navigate", url=page.as_uri())
    browser.until(f"document.readyState === 'complete' && location.href.includes('{page.name}')")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _open_with(browser: Browser, site: Path, query: str) -> None:
    """Open the calculator anew with a query behind the hash sign."""
    browser.problems.clear()
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=f"{(site / 'index.html').as_uri()}#?{query}")
    browser.until("document.readyState === 'complete' && location.href.includes('index.html')")


def _text(browser: Browser, name: str) -> str:
    found: str = browser.run(f"document.getElementById('{name}').textContent")
    return found


def _pages(site: Path) -> list[Path]:
    return [site / "index.html", site / "method.html", sorted((site / "pairs").iterdir())[0]]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", _WIDTHS)
def test_nothing_moves_sticks_out_or_is_pale(browser: Browser, site: Path, width: int, is_dark: bool) -> None:
    browser.resize(width, 900, is_dark=is_dark)
    for page in _pages(site):
        browser.problems.clear()
        _open(browser, page)
        assert browser.run("window.shifts") == [], page
        assert browser.run("document.documentElement.scrollWidth") <= width, page
        assert browser.run(_PALE) == [], page
        assert browser.problems == []


def test_everything_to_be_used_has_a_name(browser: Browser, site: Path) -> None:
    browser.resize(1280, 900)
    for page in _pages(site):
        _open(browser, page)
        assert browser.run(_NAMELESS) == []
        assert browser.run("document.documentElement.lang") == "en"
        assert browser.run("document.querySelectorAll('h1').length") == 1
        assert browser.run("document.title.length") > 0
        levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
        assert all(after - before <= 1 for before, after in pairwise(levels)), levels


def test_tab_goes_through_it_in_order_and_shows_where_it_is(browser: Browser, site: Path) -> None:
    browser.resize(1280, 900)
    _open(browser, site / "index.html")
    browser.run(f"window.wanted = {_FOCUSABLE}.slice(0, 25); document.activeElement.blur()")
    count = browser.run("window.wanted.length")
    assert count >= 10
    for idx in range(count):
        browser.press("Tab")
        assert browser.run(f"document.activeElement === window.wanted[{idx}]"), (
            idx, browser.run("document.activeElement.outerHTML.slice(0, 120)"),
            browser.run(f"window.wanted[{idx}].outerHTML.slice(0, 120)"),
        )  # fmt: skip
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_moving_a_slider_moves_nothing_else(browser: Browser, site: Path) -> None:
    browser.resize(768, 900)
    _open(browser, site / "index.html")
    browser.run("document.querySelector('input[type=range]').focus()")
    before = browser.run("document.documentElement.scrollHeight")
    for _ in range(3):
        browser.press("ArrowLeft")
    assert browser.run("window.shifts") == []
    assert abs(browser.run("document.documentElement.scrollHeight") - before) < 200


def test_a_guess_is_called_one(browser: Browser, site: Path) -> None:
    browser.resize(1280, 900)
    _open(browser, site / "index.html")
    rows = "[...document.querySelectorAll('#device-table tbody tr')].map((row) => row.innerText)"
    found = browser.run(rows)
    assert all("?" in row for row in found if row.startswith("Arc"))
    assert any(row.startswith("Arc") for row in found)
    assert not any("?" in row for row in found if "RTX 4090" in row or "Apple M3 Max" in row)


_SETTINGS: tuple[dict[str, object], ...] = (
    {}, {"num_parallel": 9, "num_images": 2}, {"num_images": 0, "num_new_tokens": 900},
    {"num_context_tokens": 700, "num_new_tokens": 500}, {"num_device_layers": 0}, {"num_device_layers": 12},
    {"is_vision_on_device": False}, {"engine": "llavakit", "num_device_layers": 3, "is_vision_on_device": False},
    {"engine": "transformers"}, {"engine": "vllm", "num_parallel": 2},
)  # fmt: skip
_PLAN = """
((setting, quant, count) => D.devices.map((device) => {
  const plan = planFor(device, count, quant, setting);
  const names = ["decode", "full", "first", "vision", "answer", "images", "joules"];
  const speed = plan.speed && [...names.map((name) => plan.speed[name]), plan.speed.isGuess, plan.speed.factor];
  return [plan.verdict, plan.quant.name, plan.totals, plan.usable, speed];
}))
"""


@pytest.mark.parametrize("quant", ["q4_k_m", "f32"])
def test_the_page_plans_what_python_plans(browser: Browser, site: Path, quant: str) -> None:
    """Every device, with whatever stands around it: the same bytes, verdicts and times."""
    _open(browser, site / "index.html")
    model = find_model("llava:13b")
    several = [({"engine": engine}, 2) for engine in ("llama.cpp", "llavakit", "transformers", "vllm")]
    several.append(({"engine": "vllm"}, 3))
    for fields, count in [*((fields, 1) for fields in _SETTINGS), *several]:
        setting = replace(Setting(num_device_layers=41), **fields)
        found = browser.run(f"{_PLAN}({json.dumps(asdict(setting))}, '{quant}', {count})")
        for device, row in zip(list_sold_devices(), found, strict=True):
            is_dealt = setting.engine != "vllm" or device.backend == "cpu" or model.sizes.num_heads % count == 0
            if why_unplanned(setting.engine, device) or not is_dealt:
                assert row[0] == "no"
                continue
            is_processor = device.backend == "cpu"
            chosen = [] if is_processor else [device] * count
            plan = make_plan(model, quant, setting, chosen, assumed_host([device]), has_advice=False)
            speed = plan.speed and [
                plan.speed.decode.value, plan.speed.decode_full.value, plan.speed.first_token_s, plan.speed.vision_s,
                plan.speed.answer_s, plan.speed.images_per_hour, plan.speed.joules_per_image,
                any("guess" in warning for warning in plan.warnings),
            ]  # fmt: skip
            if speed:
                assert row[-1].pop() == pytest.approx(plan.speed.decode.high / plan.speed.decode.value)
            assert row == [plan.verdict, plan.quant.name, list(plan.totals), list(plan.usable), speed], device.name


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
    assert browser.run("['quant', 'kv', 'min-speed'].every((name) => $(name).disabled)")
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
    _open_with(browser, site, f"engine={engine}&kind=all&budget={budget}&speed={speed}&device=GeForce+RTX+5070+Ti")
    found = list_candidates(find_model("llava:13b"), "q4_k_m", Setting(engine=engine))
    names = [name.removesuffix(" *") for name in browser.run(_NAMES)]
    assert sorted(names) == sorted(candidate.device.name for candidate in found)
    has_speeds = found[0].plan.speed is not None
    need = Need(budget_usd=budget, min_tokens_per_s=speed if has_speeds else None)
    best = choose_best(found, need).best
    assert best is not None
    answer, caption = _text(browser, "best-answer"), browser.run("$('device-table').caption.textContent")
    assert answer.startswith(f"{best.device.name}. ")
    program = f"with {engine} at {best.plan.quant.name.upper()}"
    assert program in answer
    assert program in caption or f"with {engine}, at Q4_K_M on processors and F16 on GPUs" in caption
    assert ("No speeds are known" in answer) == (browser.run("$('plot-area').querySelector('svg')") is None)
    assert (engine in _text(browser, "plot")) and (engine in _text(browser, "quant-table"))
    verdict = _text(browser, "verdict")
    assert f"on GeForce RTX 5070 Ti, with {engine}" in verdict
    assert verdict.startswith(("It fits.", "Barely.")) == ("GeForce RTX 5070 Ti" in names)


_CHANGES = """
((setting, quant) => D.devices.map((device) =>
  [changesFor(device, 1, quant, setting), planFor(device, 1, quant, setting).problem]))
"""


@pytest.mark.parametrize("engine", ["llama.cpp", "llavakit", "transformers", "vllm"])
def test_what_is_advised_can_be_done_and_helps(browser: Browser, site: Path, engine: str) -> None:
    _open_with(browser, site, "")
    model = find_model("llava:13b")
    setting = Setting(num_device_layers=41, engine=engine)
    said = set()
    found = browser.run(f"{_CHANGES}({json.dumps(asdict(setting))}, 'q6_k')")
    for device, (changes, problem) in zip(list_sold_devices(), found, strict=True):
        for words, count, quant, changed in changes:
            said.add(words)
            chosen = [] if device.backend == "cpu" else [device] * count
            plan = make_plan(model, quant, Setting(**changed), chosen, assumed_host([device]), has_advice=False)
            assert plan.verdict in ("fits", "tight"), (device.name, words)
        assert not (problem and changes)
    assert {words for words in said if "devices" in words or "llama.cpp" in words}
    if setting.engine in ("transformers", "vllm"):
        assert not any(words[0] in "Qk" for words in said)


def test_a_panel_without_a_way_out_says_so(browser: Browser, site: Path) -> None:
    _open_with(browser, site, "engine=vllm&device=GeForce+RTX+5070+Ti")
    verdict = _text(browser, "verdict")
    assert "are missing" in verdict
    assert "smaller" not in verdict
    assert "It fits with 4 of these devices, or with llama.cpp at Q4_K_M." in verdict
    _open_with(browser, site, "engine=vllm&device=GeForce+RTX+5050&count=8&quant=f32&parallel=16&images=6")
    assert "Nothing that can be set here makes it fit" in _text(browser, "verdict")


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


@pytest.mark.parametrize(
    "query",
    [
        "kv=toString", "model=constructor", "quant=constructor", "device=__proto__", "engine=toString", "kind=valueOf",
        "sort=__proto__", "sort=-valueOf", "toString=1", "__proto__=1", "context=1e99", "context=63", "context=",
        "count=2.5", "count=9", "layers=-2", "layers=42", "images=8", "images=NaN", "visual=577", "budget=0",
        "speed=-1", "partly=2",
    ],
)  # fmt: skip
def test_what_the_address_cannot_say_is_left_out(browser: Browser, site: Path, query: str) -> None:
    _open_with(browser, site, query)
    assert browser.run("DEFAULTS") == browser.run("Object.fromEntries(Object.keys(DEFAULTS).map((n) => [n, state[n]]))")
    assert "Barely." in _text(browser, "verdict")
    assert "NaN" not in browser.run("document.body.textContent")
    assert browser.problems == []


def test_a_chip_with_its_own_processor_is_planned_alone(browser: Browser, site: Path) -> None:
    chip = next(device for device in list_sold_devices() if device.is_shared and device.backend != "cpu")
    for name, num in ((chip.name, 1), ("GeForce RTX 3060 12GB", 2)):
        _open_with(browser, site, f"device={name.replace(' ', '+')}&count=2")
        planned = "planFor(deviceOf(state.device), state.count, state.quant, settingOf()).devices.length"
        assert browser.run(planned) == num
        assert browser.run("document.getElementById('count').value") == str(num)


def test_the_controls_show_what_the_address_says(browser: Browser, site: Path) -> None:
    query = "count=5&context=3000&text=2047&images=0&visual=7&answer=77&parallel=3&layers=9"
    _open_with(browser, site, query)
    for name, value in (pair.split("=") for pair in query.split("&")):
        assert browser.run(f"document.getElementById('{name}').value") == value, name
    assert "5 x" in _text(browser, "verdict")


def test_the_table_is_in_the_address(browser: Browser, site: Path) -> None:
    """What is sought, the kind, whether layers may be on the processor, and the order come back with the link."""
    _open_with(browser, site, "search=rtx+40&kind=consumer&partly=1&sort=-price&context=2048")
    assert browser.run("['search', 'kind', 'sort'].map((name) => state[name])") == ["rtx 40", "consumer", "-price"]
    assert browser.run("[$('search').value, $('kind').value, $('partly').checked]") == ["rtx 40", "consumer", True]
    assert browser.run("document.querySelector('[aria-sort=descending]').textContent").startswith("Price")
    names = browser.run(_NAMES)
    assert len(names) > 5
    assert all("RTX 40" in name for name in names)
    browser.run("$('search').value = 'rx'; $('search').dispatchEvent(new Event('input'))")
    browser.run("$('kind').value = 'all'; $('kind').dispatchEvent(new Event('input'))")
    browser.run("$('partly').click(); document.querySelector('[data-sort=watts]').focus()")
    browser.press("Enter")
    browser.until("document.querySelector('[aria-sort=ascending]')?.textContent === 'Watts'")
    assert browser.run("document.activeElement.dataset.sort") == "watts"
    query = browser.run("location.hash")
    assert {"search=rx", "kind=all", "sort=watts", "context=2048"} == set(query.removeprefix("#?").split("&"))
    names = browser.run(_NAMES)
    _open_with(browser, site, query.removeprefix("#?"))
    assert browser.run(_NAMES) == names


def test_a_price_of_ones_own_counts(browser: Browser, site: Path) -> None:
    """In the table, for the best device and in the drawing, as `--price` does; it is in the address."""
    name = "GeForce RTX 3090 Ti"
    _open_with(browser, site, f"budget=700&speed=1&device={name.replace(' ', '+')}")
    assert not _text(browser, "best-answer").startswith(name)
    assert browser.run("$('price').labels[0].textContent") == f"Price of {name}, dollars"
    browser.run("$('price').value = '650'; $('price').dispatchEvent(new Event('input'))")
    browser.until("document.getElementById('best-answer').textContent.includes('$650 (your price)')")
    found = list_candidates(find_model("llava:13b"), "q4_k_m", Setting(), prices={name: 650})
    best = choose_best(found, Need(budget_usd=700, min_tokens_per_s=1)).best
    assert best is not None
    assert best.device.name == name
    assert _text(browser, "best-answer").startswith(f"{name}. $650 (your price)")
    assert "650 (yours)" in _text(browser, "device-table")
    assert browser.run("[...document.querySelectorAll('.dot')].some((dot) => dot.ariaLabel.includes('$650 (your'))")
    query = browser.run("location.hash").removeprefix("#?")
    assert "price=GeForce+RTX+3090+Ti%3D650" in query
    _open_with(browser, site, query)
    assert browser.run("$('price').value") == "650"
    browser.run("$('device').value = 'Arc A770 16GB'; $('device').dispatchEvent(new Event('input'))")
    browser.until("$('price').labels[0].textContent.includes('Arc A770')")
    assert browser.run("$('price').value") == ""
    assert _text(browser, "best-answer").startswith(name)  # its price stays
    browser.run("$('own-prices').querySelector('button').click()")
    browser.until("!document.getElementById('best-answer').textContent.includes('your price')")
    assert "price=" not in browser.run("location.hash")


@pytest.mark.parametrize("price", ["RTX=700", "GeForce+RTX+3090%3D0", "GeForce+RTX+3090%3D1e9", "__proto__%3D5", "%3D"])
def test_a_price_that_cannot_be_is_left_out(browser: Browser, site: Path, price: str) -> None:
    _open_with(browser, site, f"price={price}")
    assert browser.run("state.prices.size") == 0
    assert browser.problems == []


def test_a_device_without_a_price_takes_part_once_it_has_one(browser: Browser, site: Path) -> None:
    """Of a server's card the table has the price, and the choice among desktops' devices leaves it out."""
    _open_with(browser, site, "budget=400&speed=1&price=CPU:+dual-channel+DDR5-6400+desktop%3D50&kind=cpu")
    assert "50 (yours)" in _text(browser, "device-table")
    assert browser.run("[...document.querySelectorAll('.dot')].some((dot) => dot.ariaLabel.startsWith('CPU: dual-ch'))")
    _open_with(browser, site, "budget=400&speed=1&price=B200+SXM%3D50&device=B200+SXM&kind=all")
    assert "50 (yours)" in _text(browser, "device-table")
    assert "B200" not in _text(browser, "best-answer")
    assert "only in the table" in _text(browser, "own-prices")
