"""The chat page, in a browser, against servers that run in this process."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import llavakit
from llavakit.api.host import make_host
from llavakit.core.errors import ContextOverflowError, OverloadedError
from llavakit.processing.sources import SourcePolicy
from tests.browser.chromium import BROWSER, Browser, browsing
from tests.browser.page import ANSWERS, IS_DONE, ask, asked, click, open_page
from tests.server.live import SHAPES, ScriptedEngine, ScriptedHost, serving

_STATIC = Path(__file__).parents[2] / "src" / "llavakit" / "server" / "static"
_MAX_BYTES = 200_000
_EXPECTED = {  # what the gallery's pictures show
    ("shapes.png", "How many red circles are there?"): "2",
    ("shapes.png", "What color is the star?"): "blue",
    ("shapes.png", "Where is the triangle?"): "bottom right",
    ("sign.png", "What does the sign say?"): "COFFEE",
    ("sign.png", "What color is the cross?"): "purple",
    ("sign.png", "Which shape is orange?"): "diamond",
    ("chart.png", "Which bar is the tallest?"): "orange",
    ("chart.png", "What is the value of the blue bar?"): "4",
    ("ring.png", "What color is the ring?"): "purple",
    ("ring.png", "Where is the star?"): "top right",
    ("music.png", "What does the sign say?"): "MUSIC",
    ("music.png", "Is there a blue star?"): "Yes",
    ("bars.png", "Which bar is the shortest?"): "purple",
    ("bars.png", "How many bars are there?"): "3",
}
_needs_browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1280, 900)
        yield opened


@pytest.fixture(scope="module")
def tiny_url() -> Iterator[str]:
    with serving(make_host("llava:tiny"), default_model="llava:tiny") as address:
        yield address


@pytest.fixture
def tiny(browser: Browser, tiny_url: str) -> Browser:
    """The page on the embedded model, with a new conversation."""
    open_page(browser, tiny_url)
    return browser


def test_light_enough_and_made_for_the_policy() -> None:
    files = [path for path in _STATIC.rglob("*") if path.is_file() and path.parent.name != "gallery"]
    assert sum(path.stat().st_size for path in files) <= _MAX_BYTES
    page = (_STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=|<style", page), "the policy refuses what is inline"
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    for path in files:
        if path.suffix == ".js":
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()
            ), path
    preloaded = set(re.findall(r'modulepreload" href="/static/app/(\w+)\.js', page)) | {"main"}
    assert preloaded == {path.stem for path in (_STATIC / "app").iterdir()}


def test_modules_in_node(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    shutil.copytree(_STATIC / "app", tmp_path / "app")
    shutil.copy(Path(__file__).with_name("modules.mjs"), tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run([node, tmp_path / "modules.mjs"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_gallery_holds_what_the_model_answers() -> None:
    source = (_STATIC / "app" / "gallery.js").read_text(encoding="utf-8")
    entries = re.findall(r'file: "([^"]+)".*?questions: (\[.*?\])', source, flags=re.DOTALL)
    assert {(name, question) for name, questions in entries for question in json.loads(questions)} == set(_EXPECTED)
    model = llavakit.load("llava:tiny")
    for (name, question), answer in _EXPECTED.items():
        said = model.chat(question, images=[str(_STATIC / "gallery" / name)], temperature=0, max_new_tokens=30).text
        assert answer in said, (name, question, said)


@_needs_browser
def test_loads_without_errors_and_nothing_from_elsewhere(tiny: Browser, tiny_url: str) -> None:
    tiny.until("[...document.querySelectorAll('#gallery img')].length === 6")
    tiny.until("[...document.querySelectorAll('#gallery img')].every(i => i.complete && i.naturalWidth > 0)")
    tiny.until("document.querySelector('#model').textContent === 'llava:tiny'")
    assert tiny.problems == []
    assert all(url.startswith((f"{tiny_url}/", "blob:")) for url in tiny.requests), tiny.requests
    nameless = (
        "[...document.querySelectorAll('button, input:not([hidden]), select, textarea')].filter(n => "
        "!n.textContent.trim() && !n.labels?.length && !n.ariaLabel && !n.querySelector('img[alt]'))"
        ".map(n => n.outerHTML)"
    )
    assert tiny.run(nameless) == []


@_needs_browser
def test_answers_about_an_example_and_shows_where_it_looked(tiny: Browser) -> None:
    buttons = "[...document.querySelectorAll('#gallery button')]"
    tiny.run(f"{buttons}.find(b => b.textContent === 'What color is the star?').click()")
    tiny.until(f"{ANSWERS}.length === 1 && {IS_DONE}")
    assert tiny.run(ANSWERS) == ["The star is blue."]
    assert "llava:tiny" in tiny.run("document.querySelector('.stats').textContent")
    click(tiny, "[data-does=look]")
    tiny.until("document.querySelector('.look input[type=range]')")
    brush = "document.querySelector('.look canvas').getContext('2d')"
    drawn = f"[...{brush}.getImageData(0, 0, 8, 8).data].filter((_, idx) => idx % 4 === 3)"
    whole = tiny.run(drawn)
    assert len(whole) == 64
    assert min(whole) == 0 < max(whole)  # the most attended patch is clear
    tiny.run("document.querySelector('.look input').focus()")
    tiny.press("ArrowRight")
    assert tiny.run("document.querySelector('.look input').getAttribute('aria-valuetext')").startswith("“The”")
    assert tiny.run(drawn) != whole
    tiny.run("[...document.querySelectorAll('.word')].at(-1).dispatchEvent(new PointerEvent('pointerenter'))")
    assert "“blue”" in tiny.run("document.querySelector('.where').textContent")
    assert "not a proof" in tiny.run("document.querySelector('.look').textContent")
    click(tiny, "[data-does=look]")
    assert tiny.run("document.querySelectorAll('.word').length") == 0
    assert tiny.problems == []


@_needs_browser
def test_a_picture_of_ones_own_stays_with_the_conversation(tiny: Browser, tiny_url: str, tmp_path: Path) -> None:
    tiny.choose_file("#pick", SHAPES, SHAPES.with_name("sign.png"))
    tiny.until("document.querySelectorAll('#attached img').length === 2")
    tiny.run("document.querySelector('#attached li:nth-child(2) button').click()")
    assert asked(tiny, "What color is the star?") == ["The star is blue."]
    assert asked(tiny, "Where is the triangle?")[-1] == "The triangle is at the bottom right."
    tiny.open(tiny_url)
    tiny.until(f"{ANSWERS}.length === 2")
    tiny.until("document.querySelector('.shown img').naturalWidth === 448")

    # Exported, deleted and brought back.
    tiny.run(
        "(make => { URL.createObjectURL = blob => { window.made = blob; return make(blob); }; })"
        "(URL.createObjectURL.bind(URL))"
    )
    click(tiny, "#export-button")
    tiny.until("window.made")
    file = tmp_path / "conversations.json"
    file.write_text(tiny.run("window.made.text()"), encoding="utf-8")
    click(tiny, "#conversations li.current button:last-child")
    tiny.until("document.querySelector('#confirm').open")
    click(tiny, "#confirm-yes")
    tiny.until("document.querySelectorAll('#conversations li.current').length === 0")
    before = tiny.run("document.querySelectorAll('#conversations .open').length")
    tiny.choose_file("#import", file)
    tiny.until(f"document.querySelectorAll('#conversations .open').length === {before + 1}")
    click(tiny, "#conversations .open")
    tiny.until(f"{ANSWERS}.length === 2")
    tiny.until("document.querySelector('.shown img').naturalWidth === 448")
    assert tiny.problems == []


@_needs_browser
def test_editing_makes_a_branch_and_answers_can_be_had_again(tiny: Browser, tiny_url: str) -> None:
    tiny.choose_file("#pick", SHAPES)
    tiny.until("document.querySelectorAll('#attached img').length === 1")
    asked(tiny, "What color is the star?")
    click(tiny, "[data-does=edit]")
    assert tiny.run("document.querySelector('#question').value") == "What color is the star?"
    tiny.run("document.querySelector('#question').select()")
    tiny.write("Where is the triangle?")
    tiny.press("Enter")
    tiny.until(f"{ANSWERS}[0] === 'The triangle is at the bottom right.' && {IS_DONE}")
    assert "2 / 2" in tiny.run("document.querySelector('.user .branch').textContent")
    click(tiny, ".user [data-does=back]")
    tiny.until(f"{ANSWERS}[0] === 'The star is blue.'")
    tiny.open(tiny_url)
    tiny.until(f"{ANSWERS}[0] === 'The star is blue.'")
    assert "1 / 2" in tiny.run("document.querySelector('.user .branch').textContent")
    click(tiny, "[data-does=again]")
    tiny.until(f"document.querySelector('.assistant .branch') && {IS_DONE}")
    assert tiny.run("document.querySelector('.assistant .branch').textContent").find("2 / 2") >= 0


@_needs_browser
def test_pictures_are_dropped_pasted_and_refused(browser: Browser, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    give = """(async (kind, type) => {
        const data = new DataTransfer();
        const shown = await (await fetch('/static/gallery/sign.png')).blob();
        data.items.add(new File([type === 'image/png' ? shown : 'words'], `given-${kind}`, { type }));
        const init = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
        document.body.dispatchEvent(kind === 'paste' ? new ClipboardEvent(kind, init) : new DragEvent(kind, init));
    })"""
    with serving(ScriptedHost(engine), default_model="scripted", max_images=2) as url:
        open_page(browser, url)
        browser.run(f"{give}('drop', 'text/plain')")
        browser.until("document.querySelector('#composer-error').textContent.includes('no picture')")
        browser.run(f"{give}('drop', 'image/png')")
        browser.until("document.querySelectorAll('#attached img').length === 1")
        browser.run(f"{give}('paste', 'image/png')")
        browser.until("document.querySelectorAll('#attached img').length === 2")
        browser.run(f"{give}('paste', 'image/png')")
        browser.until("document.querySelector('#composer-error').textContent.includes('At most 2')")
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no picture at all")
        asked(browser, "Both?")
        assert len(engine.seen[-1].messages[-1].images) == 2
        browser.choose_file("#pick", broken)
        browser.until("document.querySelector('#composer-error').textContent.includes('broken.png')")


@_needs_browser
def test_conversations_are_renamed_and_found(browser: Browser) -> None:
    titles = "[...document.querySelectorAll('#conversations .open')].map(b => b.textContent)"
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted") as url:
        open_page(browser, url)
        asked(browser, "One?")
        click(browser, "#new-button")
        browser.until("document.querySelector('#welcome').hidden === false")
        asked(browser, "Two?")
        assert browser.run(titles) == ["Two?", "One?"]
        browser.run("document.querySelector('#conversations li.current .quiet').click()")
        browser.write("Second")
        browser.press("Enter")
        browser.until(f"{titles}[0] === 'Second'")
        browser.run("document.querySelector('#search').focus()")
        browser.write("one hello")
        browser.until(f"{titles}.join() === 'One?'")
        browser.open(url)
        browser.until(f"{titles}[0] === 'Second'")
        assert browser.run("document.querySelector('#title').textContent") == "Second"


@_needs_browser
def test_stop(browser: Browser) -> None:
    engine = ScriptedEngine(words=[f"word{idx} " for idx in range(2000)], pause_s=0.02)
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        ask(browser, "Talk.")
        browser.until("document.querySelector('.answer')?.innerText.includes('word3')")
        click(browser, "#stop-button")
        browser.until("document.querySelector('#send-button')")
        browser.until("document.querySelector('.stats').textContent.includes('stopped')")
        browser.until("document.querySelector('.answer').innerText.startsWith('word0 word1')")
        assert "word1999" not in browser.run("document.querySelector('.answer').innerText")


@_needs_browser
def test_hostile_markdown_becomes_text(browser: Browser) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='broken'\"> <script>document.title='broken'</script>\n\n"
        "[x](javascript:document.title='broken') ![y](https://example.org/spy.png) **bold** `<b>`\n\n"
        "<iframe src=https://example.org></iframe>"
    )
    with serving(ScriptedHost(ScriptedEngine(words=[hostile])), default_model="scripted") as url:
        open_page(browser, url)
        (shown,) = asked(browser, "Be bad.")
        assert "<img src=x" in shown
        assert "<script>" in shown
        assert browser.run("document.querySelectorAll('.answer :is(img, script, iframe, b, style, form)').length") == 0
        assert browser.run("[...document.querySelectorAll('.answer a')].every(a => /^https?:/.test(a.href))")
        assert browser.run("document.querySelector('.answer strong').textContent") == "bold"
        assert browser.run("document.title") != "broken"
        assert all(address.startswith((f"{url}/", "blob:")) for address in browser.requests)


@_needs_browser
def test_a_refusal_is_shown_and_can_be_tried_again(browser: Browser) -> None:
    engine = ScriptedEngine(refusal=OverloadedError("the queue is full; try again in a while."))
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        asked(browser, "Hello?")
        assert "the queue is full" in browser.run("document.querySelector('.failure').textContent")
        engine.refusal = None
        click(browser, "[data-does=retry]")
        browser.until(f"{ANSWERS}[0] === 'Hello world.' && {IS_DONE}")
        assert browser.run("document.querySelectorAll('.failure').length") == 0
        assert browser.run(f"{ANSWERS}.length") == 1


@_needs_browser
def test_an_example_is_asked_once_however_often_it_is_clicked(browser: Browser) -> None:
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted") as url:
        open_page(browser, url)
        browser.run(
            "for (const n of document.querySelectorAll('#gallery .questions button')) { n.click(); n.click(); }"
        )
        browser.until(IS_DONE)
        assert browser.run("document.querySelectorAll('.user').length") == 1
        assert browser.run(f"{ANSWERS}.length") == 1


@_needs_browser
def test_escape_of_an_input_method_does_not_stop_the_answer(browser: Browser) -> None:
    engine = ScriptedEngine(words=[f"word{idx} " for idx in range(2000)], pause_s=0.02)
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        ask(browser, "Hello?")
        browser.until(f"{ANSWERS}[0]?.includes('word3')")
        press = "new KeyboardEvent('keydown', {key: 'Escape', isComposing: %s, bubbles: true, cancelable: true})"
        browser.run(f"document.querySelector('#question').dispatchEvent({press % 'true'})")
        browser.until(f"{ANSWERS}[0].includes('word30')")
        assert browser.run("document.querySelector('#stop-button') !== null")
        browser.run(f"document.querySelector('#question').dispatchEvent({press % 'false'})")
        browser.until("document.querySelector('#send-button')")


@_needs_browser
def test_a_key_is_asked_for(browser: Browser) -> None:
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted", api_keys=("correct-horse",)) as url:
        browser.open(url)
        browser.until("document.querySelector('#ask-key').open")
        browser.write("correct-horse")
        browser.press("Enter")
        browser.until(
            "!document.querySelector('#ask-key').open && document.querySelector('#set-model').options.length === 2"
        )
        assert asked(browser, "Hello?") == ["Hello world."]


@_needs_browser
def test_by_keyboard_and_with_settings(browser: Browser) -> None:
    engine = ScriptedEngine()
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        click(browser, "#settings-button")
        browser.until("document.querySelector('#settings').open")
        for field, value in (("temperature", "0.5"), ("seed", "11"), ("maxTokens", "99"), ("system", "Be brief.")):
            browser.run(f"document.querySelector('#set-{field}').select()")
            browser.write(value)
        browser.press("Tab")
        browser.press("Escape")
        browser.until("!document.querySelector('#settings').open")
        browser.open(url)
        browser.run("document.activeElement.blur()")
        browser.press("Tab")
        assert browser.run("document.activeElement.className") == "skip"
        browser.press("Enter")
        browser.until("document.activeElement.id === 'question'")
        browser.write("Hello?")
        browser.press("Enter")
        browser.until(f"{ANSWERS}[0] === 'Hello world.'")
        sampling = engine.seen[-1].sampling
        assert (sampling.temperature, sampling.seed, sampling.max_new_tokens) == (0.5, 11, 99)
        assert engine.seen[-1].messages[0].parts[0].text == "Be brief."  # type: ignore[union-attr]


@_needs_browser
def test_nothing_sticks_out(browser: Browser) -> None:
    wide = (
        "```\n" + "x" * 500 + "\n```\n\n| " + " | ".join("column" for _ in range(20)) + " |\n" + "|---" * 20 + "|\n\n"
    )
    with serving(ScriptedHost(ScriptedEngine(words=[wide, "y" * 300])), default_model="scripted") as url:
        open_page(browser, url)
        for step in ("start", "answer"):
            if step == "answer":
                browser.choose_file("#pick", SHAPES, SHAPES, SHAPES)
                browser.until("document.querySelectorAll('#attached img').length === 3")
                asked(browser, "z" * 300)
            for width, is_dark in ((390, False), (820, True), (1440, False)):
                browser.resize(width, 800, is_dark=is_dark)
                browser.until(f"innerWidth === {width}")
                assert browser.run("document.querySelector('main').getBoundingClientRect().right") <= width
                scrolls = "(n => n.scrollWidth > n.clientWidth)"
                assert not browser.run(f"{scrolls}(document.querySelector('#scroll'))"), (step, width)
                ground = browser.run("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(23, 24, 26)") is is_dark
    browser.resize(1280, 900)


@_needs_browser
def test_a_double_click_on_send_does_not_stop_the_answer(browser: Browser) -> None:
    engine = ScriptedEngine(words=["Hello", " world."], pause_s=0.3)
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        browser.run("document.querySelector('#question').focus()")
        browser.write("Hello?")
        browser.click("#send-button", times=2)
        browser.until(f"{ANSWERS}[0] === 'Hello world.' && {IS_DONE}")
        assert "stopped" not in browser.run("document.querySelector('.stats').textContent")
        assert engine.num_cancelled == 0


@_needs_browser
def test_another_conversation_can_be_used_while_an_answer_comes(browser: Browser) -> None:
    engine = ScriptedEngine()
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        asked(browser, "Quiet?")
        click(browser, "#new-button")
        browser.until("document.querySelector('#welcome').hidden === false")
        engine.words, engine.pause_s = [f"word{idx} " for idx in range(2000)], 0.02
        ask(browser, "Talk.")
        browser.until("document.querySelector('.answer')?.innerText.includes('word3')")
        engine.words, engine.pause_s = ["Other."], 0.0

        # The other conversation: nothing to stop here, and everything works.
        browser.run("document.querySelectorAll('#conversations .open')[1].click()")
        browser.until(f"{ANSWERS}.join() === 'Hello world.' && document.querySelector('#send-button')")
        browser.press("Escape")
        click(browser, "[data-does=again]")
        browser.until(f"{ANSWERS}.join() === 'Other.' && {IS_DONE}")
        click(browser, "[data-does=edit]")
        browser.press("Enter")
        browser.until("document.querySelector('.user .branch')?.textContent.includes('2 / 2')")
        browser.until(IS_DONE)
        assert engine.num_cancelled == 0

        # Back: Escape ends the edit and not the answer, then the answer.
        browser.run("document.querySelectorAll('#conversations .open')[1].click()")
        browser.until(
            "document.querySelector('#stop-button') && document.querySelector('#title').textContent === 'Talk.'"
        )
        click(browser, "#stop-button")
        browser.until(IS_DONE)
        engine.words, engine.pause_s = [f"more{idx} " for idx in range(2000)], 0.02
        click(browser, "[data-does=edit]")
        click(browser, "[data-does=again]")
        browser.until(f"{ANSWERS}[0].includes('more3')")
        browser.run("document.querySelector('#question').focus()")
        browser.press("Escape")
        assert browser.run("document.querySelector('#editing').hidden")
        assert browser.run("document.querySelector('#stop-button') !== null")
        browser.press("Escape")
        browser.until("document.querySelector('.stats')?.textContent.includes('stopped')")
        assert browser.problems == []


@_needs_browser
def test_the_end_of_an_answer_leaves_everything_else_as_it_is(browser: Browser) -> None:
    engine = ScriptedEngine()
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        browser.choose_file("#pick", SHAPES)
        browser.until("document.querySelector('#attached img[src]')")
        asked(browser, "What is it?")
        engine.words, engine.pause_s = ["Slow", "ly", "."], 0.3
        ask(browser, "And?")
        browser.until("document.querySelector('#stop-button')")
        click(browser, "[data-does=look]")
        browser.until("document.querySelector('.look input[type=range]')")
        browser.run("document.querySelector('.look input').focus()")
        browser.until(f"{ANSWERS}[1] === 'Slowly.' && {IS_DONE}")
        assert browser.run("document.activeElement.matches('.look input')")
        assert browser.run("document.querySelectorAll('.look:not([hidden]) canvas').length") == 1

        ask(browser, "And now?")
        browser.until("document.querySelector('#stop-button')")
        click(browser, "#conversations .quiet")
        browser.write("Half a na")
        for composing in ("isComposing: true", "keyCode: 229"):
            browser.run(
                "document.activeElement.dispatchEvent("
                f"new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true, {composing} }}))"
            )
        browser.until(f"{ANSWERS}[2] === 'Slowly.' && {IS_DONE}")
        assert browser.run("document.activeElement.value") == "Half a na"
        browser.write("me")
        browser.press("Enter")
        browser.until("document.querySelector('#conversations .open').textContent === 'Half a name'")


@_needs_browser
def test_where_it_looked_may_be_closed_before_it_is_known(browser: Browser) -> None:
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted") as url:
        open_page(browser, url)
        browser.choose_file("#pick", SHAPES)
        browser.until("document.querySelector('#attached img[src]')")
        asked(browser, "What is it?")
        browser.run(
            "(get => { window.waiting = []; window.fetch = (path, ...rest) => path.includes('attention') ? new Promise("
            "done => window.waiting.push(() => done(get(path, ...rest)))) : get(path, ...rest); })(fetch)"
        )
        for _ in range(3):  # opened, closed, opened
            click(browser, "[data-does=look]")
        browser.until("window.waiting.length === 2")
        browser.run("window.waiting.forEach(go => go())")
        browser.until("document.querySelector('.look canvas')")
        browser.run("new Promise(done => setTimeout(done, 100))")
        assert browser.run("[...document.querySelectorAll('.word')].map(n => n.textContent)") == ["Hello", "world"]
        click(browser, "[data-does=look]")
        assert browser.run("document.querySelectorAll('.word').length") == 0


@_needs_browser
def test_a_picture_of_more_pixels_than_the_server_takes_is_made_smaller(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SourcePolicy, "max_pixels", 100 * 100)  # what the page is told
    engine = ScriptedEngine()
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        browser.until("document.querySelector('#set-model').options.length > 1")
        browser.choose_file("#pick", SHAPES)
        browser.until("document.querySelector('#attached img[src]')")
        asked(browser, "What is it?")
        (picture,) = engine.seen[-1].messages[-1].images
        with Image.open(io.BytesIO(base64.b64decode(str(picture.source).partition(",")[2]))) as image:
            assert image.size == (100, 100)


@_needs_browser
def test_what_must_fail_again_is_not_offered_and_does_not_fail_what_follows(browser: Browser) -> None:
    engine = ScriptedEngine(refusal=ContextOverflowError("the prompt has 5000 tokens; the context holds 4096."))
    with serving(ScriptedHost(engine), default_model="scripted") as url:
        open_page(browser, url)
        asked(browser, "Too long?")
        assert "without this question" in browser.run("document.querySelector('.failure').textContent")
        assert browser.run("document.querySelectorAll('[data-does=retry]').length") == 0
        engine.refusal = None
        asked(browser, "Short?")
        assert [[part.text for part in message.parts] for message in engine.seen[-1].messages] == [["Short?"]]  # type: ignore[union-attr]
