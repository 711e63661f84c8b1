"""The planner's page, audited: no layout shift, names and order of its fields, contrast, nothing that sticks out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser.chromium import BROWSER, Browser

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")

_WIDTHS = (320, 768, 1280)
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


def _open(browser: Browser, page: Path) -> None:
    browser.send("Page.navigate", url=page.as_uri())
    browser.until(f"document.readyState === 'complete' && location.href.includes('{page.name}')")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


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


@pytest.mark.parametrize("width", [768, 1280])
@pytest.mark.parametrize("name", ["quant-step", "kv-step", "context", "images"])
def test_moving_a_slider_moves_nothing_else(browser: Browser, site: Path, name: str, width: int) -> None:
    browser.resize(width, 900)
    _open(browser, site / "index.html")
    browser.run(f"$('{name}').focus()")
    place = f"$('{name}').getBoundingClientRect().top + scrollY"
    before, top = browser.run("document.documentElement.scrollHeight"), browser.run(place)
    for _ in range(3):
        browser.press("ArrowLeft")
    assert browser.run("window.shifts") == []
    if name.endswith("-step"):  # from what fits to what does not; the table of devices may be as long as it is
        for step in range(int(browser.run(f"$('{name}').max")) + 1):
            browser.run(f"$('{name}').value = {step}; $('{name}').dispatchEvent(new Event('input'))")
            browser.until("!pending")
            assert browser.run(place) == top
        return
    assert abs(browser.run("document.documentElement.scrollHeight") - before) < 200


def test_a_guess_is_called_one(browser: Browser, site: Path) -> None:
    browser.resize(1280, 900)
    _open(browser, site / "index.html")
    rows = "[...document.querySelectorAll('#device-table tbody tr')].map((row) => row.innerText)"
    found = browser.run(rows)
    assert all("?" in row for row in found if row.startswith("Arc"))
    assert any(row.startswith("Arc") for row in found)
    assert not any("?" in row for row in found if "RTX 4090" in row or "Apple M3 Max" in row)
