"""What the tests of the planner's page share: the pages, written once, and a browser that notes what moves.

The tests of the chat page have a browser of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llavakit.planner.site import write_site
from tests.browser.chromium import Browser, browsing

_WATCH = """
window.shifts = [];
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.shifts.push(entry.value); })
  .observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planner") / "pages"
    write_site(folder)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        found.send("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        found.resize(1280, 900)
        yield found
