"""The chat page for screen readers, and through a camera."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from llavakit.api.host import make_host
from tests.browser.chromium import BROWSER, Browser, browsing
from tests.browser.page import asked, click, open_page
from tests.server.live import SHAPES, ScriptedEngine, ScriptedHost, serving

_needs_browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@_needs_browser
def test_photographs(tmp_path: Path) -> None:
    """With a camera that Chromium makes up."""
    engine = ScriptedEngine()
    with (
        browsing(tmp_path, "--use-fake-device-for-media-stream") as browser,
        serving(ScriptedHost(engine), default_model="scripted") as url,
    ):
        browser.resize(1280, 900)
        open_page(browser, url)
        browser.until("!document.querySelector('#camera-button').hidden")
        camera = {"permission": {"name": "camera"}, "origin": url}
        browser.send("Browser.setPermission", **camera, setting="denied")
        click(browser, "#camera-button")
        browser.until("document.querySelector('#composer-error').textContent.includes('does not let this page')")
        browser.send("Browser.setPermission", **camera, setting="granted")
        for choice in ("no", "yes"):
            for _ in range(2):  # the second press, while the camera is opened, does nothing
                click(browser, "#camera-button")
            browser.until(
                "document.querySelector('#photograph').open && !document.querySelector('#photograph-yes').disabled"
            )
            assert browser.run("document.activeElement.id") == "photograph-yes"
            _assert_everything_has_a_name(browser)
            tracks = "document.querySelector('#photograph-video').srcObject.getTracks()"
            browser.run(f"window.tracks = {tracks}")
            click(browser, f"#photograph button[value={choice}]")
            browser.until("window.tracks.every(track => track.readyState === 'ended')")  # the light goes off
        browser.until("document.querySelectorAll('#attached img').length === 1")
        assert browser.run("document.querySelector('#composer-error').hidden")
        asked(browser, "What is that?")
        (picture,) = engine.seen[-1].messages[-1].images
        with Image.open(io.BytesIO(base64.b64decode(str(picture.source).partition(",")[2]))) as image:
            assert image.format == "JPEG"
            assert min(image.size) >= 240
        assert browser.problems == []


def _assert_everything_has_a_name(browser: Browser) -> None:
    """Whatever a screen reader offers to use or to look at says what it is."""
    roles = {"button", "textbox", "searchbox", "link", "combobox", "image", "dialog", "spinbutton", "slider",
             "navigation", "complementary", "region"}  # fmt: skip
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    nameless = [
        (node["role"]["value"], node.get("backendDOMNodeId"))
        for node in found
        if not node.get("name", {}).get("value", "").strip()
    ]
    assert found
    assert nameless == []


@_needs_browser
def test_everything_has_a_name_for_screen_readers(tmp_path: Path) -> None:
    with browsing(tmp_path) as tiny, serving(make_host("llava:tiny"), default_model="llava:tiny") as url:
        open_page(tiny, url)
        _assert_everything_has_a_name(tiny)
        tiny.choose_file("#pick", SHAPES)
        tiny.until("document.querySelectorAll('#attached img').length === 1")
        _assert_everything_has_a_name(tiny)
        asked(tiny, "What color is the star?")
        _assert_everything_has_a_name(tiny)
        tiny.until("document.querySelector('#announcer').innerText.includes('blue')")
        click(tiny, "#settings-button")
        _assert_everything_has_a_name(tiny)
        tiny.press("Escape")


@_needs_browser
def test_the_list_over_a_narrow_page_by_keyboard(tmp_path: Path) -> None:
    where = "document.activeElement.closest('#sidebar') !== null"
    with browsing(tmp_path) as browser, serving(ScriptedHost(ScriptedEngine()), default_model="scripted") as url:
        browser.resize(800, 700)
        open_page(browser, url)
        asked(browser, "Hello?")
        for _ in range(2):  # also while the list is still sliding away
            browser.run("document.querySelector('#menu-button').focus()")
            browser.press("Enter")
            assert browser.run("document.activeElement.id") == "search"
            browser.press("Escape")
            assert browser.run("document.activeElement.id") == "menu-button"
            assert not browser.run("document.querySelector('#sidebar').classList.contains('open')")
        browser.press("Enter")
        browser.write("hello")
        browser.press("Escape")  # what was searched first, then the list
        assert browser.run("[document.querySelector('#search').value, document.activeElement.id]") == ["", "search"]
        for _ in range(5):
            browser.press("Tab")
            assert browser.run(where) or browser.run("document.activeElement === document.body")
            assert not browser.run("document.querySelector('main').contains(document.activeElement)")
        browser.run("document.querySelector('#sidebar').click(); document.activeElement.blur()")
        browser.press("Escape")
        assert browser.run("document.activeElement.id") == "menu-button"
        browser.press("Enter")
        browser.resize(1280, 900)
        browser.until("!document.querySelector('main').inert")
