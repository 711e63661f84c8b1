"""The pages: what is written, how heavy it is, and that a browser computes with it what Python does."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llavakit.core.errors import ConfigError, StoreError
from llavakit.planner.devices import list_sold_devices
from llavakit.planner.plans import make_plan
from llavakit.planner.records import Setting
from llavakit.planner.site import write_site
from tests.unit.planner.test_javascript import EVALUATE, make_cases

_MAX_PAGE_BYTES = 300_000
_BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
_needs_browser = pytest.mark.skipif(_BROWSER is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    write_site(folder)
    return folder


def _open(page: Path, fragment: str = "", *, width: int = 1280) -> str:
    """Return the document as it is after its scripts have run."""
    assert _BROWSER is not None
    done = subprocess.run(
        [_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom",
         f"{page.as_uri()}{fragment}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_all_pages_are_there_and_light(site: Path) -> None:
    scripts = ("formulas.js", "data.js", "state.js", "plans.js", "devices.js", "planner.js")
    shared = ("index.html", "style.css", *scripts)
    assert sum((site / name).stat().st_size for name in shared) <= _MAX_PAGE_BYTES
    assert (site / "method.html").stat().st_size <= _MAX_PAGE_BYTES
    assert len(list((site / "pairs").iterdir())) == 2 * len(list_sold_devices())


def test_pages_show_a_price_with_the_memory_that_it_buys(site: Path) -> None:
    text = (site / "data.js").read_text(encoding="utf-8")
    data = json.loads(text[text.index("{") :].rstrip(";\n"))
    shown = {device["name"]: (device["memory_gib"], device["price"]) for device in data["devices"]}
    assert shown == {device.name: (device.memory_gib, device.price_usd) for device in list_sold_devices()}
    priced, unpriced = (
        (site / "pairs" / f"llava-7b-on-apple-m4-10-core-gpu-{size}gb.html").read_text(encoding="utf-8")
        for size in (16, 32)
    )
    assert "list price 599 dollars (2024)" in priced
    assert "list price" not in unpriced
    assert "599 (2024, with 16 GB)" in (site / "method.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in (*site.glob("*.*"), *list((site / "pairs").iterdir())[:20]):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""(src|href)=["'](https?:)?//""", text), path
        assert "import(" not in text
        assert "fetch(" not in text


class _Checker(html.parser.HTMLParser):
    """Opened and closed tags match; links inside the site lead somewhere; fields have labels."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self._page, self._open, self._labels, self._fields = page, [], set(), set()  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("meta", "link", "input", "br"):
            self._open.append(tag)
        target = found.get("href") or found.get("src") or ""
        if target and not target.startswith(("#", "http")):
            assert (self._page.parent / target.split("#")[0]).exists(), (self._page, target)
        if tag == "label":
            self._labels.add(found.get("for"))
        if tag in ("input", "select"):
            self._fields.add(found.get("id"))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (self._page, tag)

    def finish(self) -> None:
        assert not self._open
        assert self._fields <= self._labels


def test_pages_are_whole(site: Path) -> None:
    for page in (site / "index.html", site / "method.html", *list((site / "pairs").iterdir())[:40]):
        checker = _Checker(page)
        checker.feed(page.read_text(encoding="utf-8"))
        checker.finish()


def test_a_folder_of_something_else_is_left_alone(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="--overwrite"):
        write_site(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(StoreError, match="cannot be written"):
        write_site(tmp_path / "mine.txt" / "below")
    assert write_site(site)[0] == site / "index.html"  # one of ours is written anew


@_needs_browser
def test_a_browser_computes_the_same(site: Path) -> None:
    cases = make_cases(2, 60)
    page = site / "check.html"
    script = f"{EVALUATE}document.body.textContent = JSON.stringify({json.dumps(cases)}.map(evaluate));"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><body><script src="formulas.js"></script><script>{script}</script>'
    )
    try:
        text = _open(page)
    finally:
        page.unlink()
    found = json.loads(re.sub(r"<[^>]+>", "", text.split("<body>")[1]).strip())
    assert found == json.loads(json.dumps([case["wanted"] for case in cases]))


@_needs_browser
def test_the_page_shows_what_the_address_says(site: Path) -> None:
    from llavakit.planner.devices import find_device
    from llavakit.planner.machine import generic_host
    from llavakit.planner.models import find_model

    for name, quant, gpu, context, word in (
        ("llava:13b", "q4_k_m", "GeForce RTX 3060 12GB", 4096, "Barely."),
        ("llava:7b", "q8_0", "GeForce RTX 4090", 2048, "It fits."),
        ("llava:13b", "f16", "GeForce RTX 3070", 4096, "Only partly."),
    ):
        query = f"#?model={name}&quant={quant}&device={gpu.replace(' ', '+')}&context={context}"
        text = re.sub(r"\s+", " ", _open(site / "index.html", query, width=390))
        plan = make_plan(
            find_model(name), quant, Setting(num_context_tokens=context), [find_device(gpu)], generic_host()
        )
        assert word in text
        assert f"{plan.totals[0] / 1e9:.2f} of " in text.replace(" GB", "")
        assert plan.speed is not None
        digits = 1 if plan.speed.decode.value < 20 else 0
        assert f"<b>{plan.speed.decode.value:.{digits}f} (" in text
        assert '<option value="GeForce RTX' in text


@_needs_browser
def test_our_engine_on_a_processor_is_the_same_on_the_page(site: Path) -> None:
    from llavakit.planner.devices import find_device
    from llavakit.planner.models import find_model

    host = find_device("CPU: dual-channel DDR5-6400 desktop")
    query = f"#?model=llava:7b&quant=q4_k_m&device={host.name.replace(' ', '+')}&engine=llavakit"
    text = re.sub(r"\s+", " ", _open(site / "index.html", query, width=390))
    plan = make_plan(find_model("llava:7b"), "q4_k_m", Setting(engine="llavakit"), [], host)
    assert plan.speed is not None
    digits = 1 if plan.speed.decode.value < 20 else 0
    assert f"<b>{plan.speed.decode.value:.{digits}f} (" in text


@_needs_browser
def test_nonsense_in_the_address_does_no_harm(site: Path) -> None:
    text = _open(site / "index.html", "#?model=x&quant=%3Cb%3E&device=none&context=-5&images=1e99&layers=NaN&kv=9")
    assert 'id="verdict"' in text
    assert re.search(r'class="word (fits|tight|partly|no)"', text)
