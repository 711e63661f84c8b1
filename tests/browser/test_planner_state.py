"""The address of the planner's page, and what the reader puts in."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavakit.planner.candidates import Need, list_candidates
from llavakit.planner.choose import choose_best
from llavakit.planner.models import find_model
from llavakit.planner.records import Setting
from tests.browser.calculator import NAMES, open_with, text_of
from tests.browser.chromium import BROWSER, Browser

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


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
    open_with(browser, site, query)
    assert browser.run("DEFAULTS") == browser.run("Object.fromEntries(Object.keys(DEFAULTS).map((n) => [n, state[n]]))")
    assert "Barely." in text_of(browser, "verdict")
    assert "NaN" not in browser.run("document.body.textContent")
    assert browser.problems == []


def test_the_controls_show_what_the_address_says(browser: Browser, site: Path) -> None:
    query = "count=5&context=3000&text=2047&images=0&visual=7&answer=77&parallel=3&layers=9"
    open_with(browser, site, query)
    for name, value in (pair.split("=") for pair in query.split("&")):
        assert browser.run(f"document.getElementById('{name}').value") == value, name
    assert "5 x" in text_of(browser, "verdict")


def test_types_have_sliders_from_the_smallest_to_the_largest(browser: Browser, site: Path) -> None:
    open_with(browser, site, "kv=q8_0")
    browser.until("$('kv-value').textContent === 'Q8_0'")
    assert browser.run("['quant', 'kv'].map((name) => $(`${name}-step`).getAttribute('aria-valuetext'))") == [
        "Q4_K_M", "Q8_0",
    ]  # fmt: skip
    needed = []
    for place in range(int(browser.run("$('quant-step').max")) + 1):
        browser.run(f"$('quant-step').value = {place}; $('quant-step').dispatchEvent(new Event('input'))")
        browser.until(f"$('quant').value === LADDERS[0][2]()[{place}]")
        assert browser.run("state.quant") == browser.run("$('quant').value")
        needed.append(browser.run("neededBytes(planFor(deviceOf(state.device), 1, state.quant, settingOf()))"))
    assert needed == sorted(needed)
    browser.run("$('kv-step').value = 0; $('kv-step').dispatchEvent(new Event('input'))")
    browser.until("state.kv === 'q4_0' && $('kv-value').textContent === 'Q4_0'")
    browser.run("$('quant').value = 'q8_0'; $('quant').dispatchEvent(new Event('input'))")
    browser.until("$('quant-value').textContent === 'Q8_0'")
    assert "quant=q8_0" in browser.run("location.hash")


def test_the_table_is_in_the_address(browser: Browser, site: Path) -> None:
    """What is sought, the kind, whether layers may be on the processor, and the order come back with the link."""
    open_with(browser, site, "search=rtx+40&kind=consumer&partly=1&sort=-price&context=2048")
    assert browser.run("['search', 'kind', 'sort'].map((name) => state[name])") == ["rtx 40", "consumer", "-price"]
    assert browser.run("[$('search').value, $('kind').value, $('partly').checked]") == ["rtx 40", "consumer", True]
    assert browser.run("document.querySelector('[aria-sort=descending]').textContent").startswith("Price")
    names = browser.run(NAMES)
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
    names = browser.run(NAMES)
    open_with(browser, site, query.removeprefix("#?"))
    assert browser.run(NAMES) == names


def test_a_price_of_ones_own_counts(browser: Browser, site: Path) -> None:
    """In the table, for the best device and in the drawing, as `--price` does; it is in the address."""
    name = "GeForce RTX 3090 Ti"
    open_with(browser, site, f"budget=700&speed=1&device={name.replace(' ', '+')}")
    assert not text_of(browser, "best-answer").startswith(name)
    assert browser.run("$('price').labels[0].textContent") == f"Price of {name}, dollars"
    browser.run("$('price').value = '650'; $('price').dispatchEvent(new Event('input'))")
    browser.until("document.getElementById('best-answer').textContent.includes('$650 (your price)')")
    found = list_candidates(find_model("llava:13b"), "q4_k_m", Setting(), prices={name: 650})
    best = choose_best(found, Need(budget_usd=700, min_tokens_per_s=1)).best
    assert best is not None
    assert best.device.name == name
    assert text_of(browser, "best-answer").startswith(f"{name}. $650 (your price)")
    assert "650 (yours)" in text_of(browser, "device-table")
    assert browser.run("[...document.querySelectorAll('.dot')].some((dot) => dot.ariaLabel.includes('$650 (your'))")
    query = browser.run("location.hash").removeprefix("#?")
    assert "price=GeForce+RTX+3090+Ti%3D650" in query
    open_with(browser, site, query)
    assert browser.run("$('price').value") == "650"
    browser.run("$('device').value = 'Arc A770 16GB'; $('device').dispatchEvent(new Event('input'))")
    browser.until("$('price').labels[0].textContent.includes('Arc A770')")
    assert browser.run("$('price').value") == ""
    assert text_of(browser, "best-answer").startswith(name)  # its price stays
    browser.run("$('own-prices').querySelector('button').click()")
    browser.until("!document.getElementById('best-answer').textContent.includes('your price')")
    assert "price=" not in browser.run("location.hash")


@pytest.mark.parametrize("price", ["RTX=700", "GeForce+RTX+3090%3D0", "GeForce+RTX+3090%3D1e9", "__proto__%3D5", "%3D"])
def test_a_price_that_cannot_be_is_left_out(browser: Browser, site: Path, price: str) -> None:
    open_with(browser, site, f"price={price}")
    assert browser.run("state.prices.size") == 0
    assert browser.problems == []


def test_a_device_without_a_price_takes_part_once_it_has_one(browser: Browser, site: Path) -> None:
    """Of a server's card the table has the price, and the choice among desktops' devices leaves it out."""
    open_with(browser, site, "budget=400&speed=1&price=CPU:+dual-channel+DDR5-6400+desktop%3D50&kind=cpu")
    assert "50 (yours)" in text_of(browser, "device-table")
    assert browser.run("[...document.querySelectorAll('.dot')].some((dot) => dot.ariaLabel.startsWith('CPU: dual-ch'))")
    open_with(browser, site, "budget=400&speed=1&price=B200+SXM%3D50&device=B200+SXM&kind=all")
    assert "50 (yours)" in text_of(browser, "device-table")
    assert "B200" not in text_of(browser, "best-answer")
    assert "only in the table" in text_of(browser, "own-prices")
