"""How the tests use the planner's calculator."""

from __future__ import annotations

from pathlib import Path

from tests.browser.chromium import Browser

# Devices of the table, in its order.
NAMES = "[...document.querySelectorAll('#device-table tbody tr')].map((row) => row.cells[0].innerText)"


def open_with(browser: Browser, site: Path, query: str) -> None:
    """Open the calculator anew with a query behind the hash sign."""
    browser.problems.clear()
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=f"{(site / 'index.html').as_uri()}#?{query}")
    browser.until("document.readyState === 'complete' && location.href.includes('index.html')")


def text_of(browser: Browser, name: str) -> str:
    found: str = browser.run(f"document.getElementById('{name}').textContent")
    return found
