"""What the chat page keeps: in two tabs, in drafts, in exports, and where nothing can be stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import BROWSER, Browser, browsing
from tests.browser.page import ANSWERS, IS_DONE, ask, asked, click, open_page
from tests.server.live import SHAPES, ScriptedEngine, ScriptedHost, serving

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
_QUESTIONS = "[...document.querySelectorAll('.user .said')].map(n => n.textContent)"
_TITLES = "[...document.querySelectorAll('#conversations .open')].map(n => n.textContent)"
_STORED = """new Promise((done, fail) => {
  const opened = indexedDB.open('llavakit', 1);
  opened.onerror = fail;
  opened.onsuccess = () => {
    const all = opened.result.transaction('conversations').objectStore('conversations').getAll();
    all.onsuccess = () => { opened.result.close(); done(all.result); };
  };
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(1280, 900)
        yield opened


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def page(browser: Browser, engine: ScriptedEngine) -> Iterator[Browser]:
    """The page on a scripted engine, with nothing stored: each server has a port, and so an origin, of its own."""
    with serving(ScriptedHost(engine), default_model="scripted", max_body_mib=1) as url:
        open_page(browser, url)
        yield browser


def _address(page: Browser) -> str:
    return str(page.run("location.origin"))


def _slow(engine: ScriptedEngine) -> None:
    engine.words, engine.pause_s = [f"word{idx} " for idx in range(2000)], 0.02


def test_two_tabs_lose_nothing_of_each_other(page: Browser) -> None:
    asked(page, "First?")
    address = _address(page)
    first = page.new_tab()
    page.open(address)
    page.run("document.querySelector('#conversations .open').click()")
    page.until(f"{ANSWERS}.length === 1")
    asked(page, "Of the second tab?")
    second = page.use_tab(first)
    page.until(f"{_QUESTIONS}.join() === 'First?,Of the second tab?' && {ANSWERS}.length === 2")
    asked(page, "Of the first tab?")
    page.use_tab(second)
    page.until(f"{_QUESTIONS}.length === 3 && {ANSWERS}.length === 3")

    # A stale copy does not undo: here the other tab is not heard.
    page.run("BroadcastChannel.prototype.postMessage = () => {}")
    asked(page, "Unheard?")
    page.use_tab(first)
    asked(page, "Beside it?")
    (stored,) = page.run(_STORED)
    texts = {node["text"] for node in stored["nodes"].values() if node["role"] == "user"}
    assert texts == {"First?", "Of the second tab?", "Of the first tab?", "Unheard?", "Beside it?"}
    page.until("document.querySelector('.user:nth-last-child(2) .branch').textContent.includes('/ 2')")

    # What is deleted stays deleted, whatever the other tab still shows.
    page.use_tab(second)
    click(page, "#conversations li.current button:last-child")
    page.until("document.querySelector('#confirm').open")
    click(page, "#confirm-yes")
    page.until(f"{_TITLES}.length === 0")
    page.use_tab(first)
    ask(page, "Still there?")
    page.until("document.querySelector('#welcome').hidden === false")
    assert page.run(_STORED) == []
    page.use_tab(second)
    page.close_tab(first)


def test_an_answer_of_another_tab_is_shown_as_coming_and_deletion_is_heard(
    page: Browser, engine: ScriptedEngine
) -> None:
    asked(page, "First?")
    address = _address(page)
    first = page.new_tab()
    page.open(address)
    page.run("document.querySelector('#conversations .open').click()")
    page.until(f"{ANSWERS}.length === 1")
    second = page.use_tab(first)
    _slow(engine)
    ask(page, "Long?")
    page.until("document.querySelector('#stop-button')")
    page.use_tab(second)
    page.until("document.querySelector('.assistant:last-child').ariaBusy === 'true'")
    assert page.run("document.querySelector('#stop-button')") is None
    ask(page, "In between?")
    page.until("document.querySelector('#composer-error').textContent.includes('another tab')")
    assert page.run("document.querySelector('#question').value") == "In between?"
    page.use_tab(first)
    click(page, "#stop-button")
    page.use_tab(second)
    page.until("document.querySelector('.assistant:last-child').ariaBusy === 'false'")
    page.use_tab(first)
    click(page, "#conversations li.current button:last-child")
    page.until("document.querySelector('#confirm').open")
    click(page, "#confirm-yes")
    page.until(f"{_TITLES}.length === 0")
    page.use_tab(second)
    page.until("document.querySelector('#composer-error').textContent.includes('deleted in another tab')")
    assert page.run(f"{_TITLES}.length") == 0
    page.close_tab(first)


def test_a_tab_that_ends_in_an_answer_blocks_no_other(page: Browser, engine: ScriptedEngine) -> None:
    """However it ends; and what a third tab tells, as of a new title, does not end the answer of the second."""
    is_busy = "document.querySelector('.assistant:last-child').ariaBusy"
    asked(page, "First?")
    address = _address(page)
    first = page.new_tab()
    page.open(address)
    page.run("document.querySelector('#conversations .open').click()")
    page.until(f"{ANSWERS}.length === 1")
    _slow(engine)
    ask(page, "Long?")
    page.until("document.querySelector('#stop-button')")
    second = page.use_tab(first)
    page.until(f"{is_busy} === 'true'")
    page.use_tab(second)
    page.run("BroadcastChannel.prototype.postMessage = () => {}")  # from here on it is told of no more
    page.use_tab(first)
    told = "{ id: sessionStorage.getItem('llavakit.current'), liveId: null, isReplaced: false }"
    page.run(f"new BroadcastChannel('llavakit').postMessage({told}); new Promise((done) => setTimeout(done, 300))")
    assert page.run(is_busy) == "true"
    page.use_tab(second)
    page.close_tab(first)
    page.until(f"{is_busy} === 'false'")
    engine.words, engine.pause_s = ["Over."], 0.0
    assert asked(page, "And now?")[-1] == "Over."


def test_drafts_stay_with_their_conversation(page: Browser) -> None:
    question = "document.querySelector('#question').value"
    asked(page, "First?")
    page.write("half written")
    page.choose_file("#pick", SHAPES)
    page.until("document.querySelector('#attached img[src]')")
    click(page, "#new-button")
    page.until("document.querySelector('#welcome').hidden === false")
    assert page.run(f"[{question}, document.querySelectorAll('#attached img').length]") == ["", 0]
    page.write("something new")
    click(page, "#conversations .open")
    page.until(f"{question} === 'half written' && document.querySelectorAll('#attached img').length === 1")
    click(page, "[data-does=edit]")
    page.until(f"{question} === 'First?' && document.querySelectorAll('#attached img').length === 0")
    page.press("Escape")
    page.until(f"{question} === 'half written' && document.querySelectorAll('#attached img').length === 1")
    click(page, "#new-button")
    page.until(f"{question} === 'something new'")


def _read_slowly(page: Browser) -> None:
    """Pictures are read when the test says so."""
    page.run(
        "(make => { window.createImageBitmap = async (...args) => {"
        " await new Promise(done => { window.goOn = done; }); return make(...args); }; })(createImageBitmap)"
    )


def test_a_question_waits_for_its_pictures(page: Browser, engine: ScriptedEngine) -> None:
    _read_slowly(page)
    page.choose_file("#pick", SHAPES)
    page.until("document.querySelector('#attached li .reading')")
    assert "being read" in page.run("document.querySelector('#reading').textContent")
    ask(page, "What is it?")
    ask(page, "")
    page.until("document.querySelector('#reading').textContent.includes('as soon as')")
    assert engine.seen == []
    page.run("window.goOn()")
    page.until(f"{ANSWERS}.length === 1 && {IS_DONE}")
    (request,) = engine.seen
    assert len(request.messages[-1].images) == 1

    # The conversation is left meanwhile: nothing is sent, and the picture is where it was added.
    page.choose_file("#pick", SHAPES)
    page.until("document.querySelector('#attached li .reading')")
    ask(page, "And this?")
    click(page, "#new-button")
    page.until("document.querySelector('#welcome').hidden === false")
    page.run("window.goOn()")
    page.run("new Promise(done => setTimeout(done, 100))")
    assert page.run("document.querySelectorAll('#attached li').length") == 0
    click(page, "#conversations .open")
    page.until("document.querySelector('#attached img[src]') && !document.querySelector('#attached li .reading')")
    assert page.run("document.querySelector('#question').value") == "And this?"
    assert len(engine.seen) == 1


def test_each_file_that_is_refused_is_named(page: Browser, tmp_path: Path) -> None:
    names = ["one.png", "two.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"no picture")
    page.choose_file("#pick", *(tmp_path / name for name in names), SHAPES)
    page.until("document.querySelector('#attached img[src]') && document.querySelector('#reading').hidden")
    shown = page.run("document.querySelector('#composer-error').textContent")
    assert all(name in shown for name in names)
    page.run("""(async () => {
        const data = new DataTransfer();
        const sign = await (await fetch('/static/gallery/sign.png')).blob();
        data.items.add(new File([sign], 'sign.png', { type: 'image/png' }));
        data.items.add(new File(['words'], 'notes.txt', { type: 'text/plain' }));
        document.body.dispatchEvent(new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer: data }));
    })()""")
    page.until("document.querySelectorAll('#attached img[src]').length === 2")
    assert "notes.txt" in page.run("document.querySelector('#composer-error').textContent")


_FULL = """(() => {
  const put = IDBObjectStore.prototype.put;
  window.makeRoom = () => { IDBObjectStore.prototype.put = put; };
  IDBObjectStore.prototype.put = function () { throw new DOMException('full', 'QuotaExceededError'); };
  const make = URL.createObjectURL.bind(URL);
  URL.createObjectURL = blob => { if (blob.type === 'application/json') window.made = blob; return make(blob); };
})()"""


def test_with_full_storage_the_warning_stays_and_the_export_has_everything(page: Browser) -> None:
    asked(page, "Stored?")
    click(page, "#new-button")
    page.run(_FULL)
    page.choose_file("#pick", SHAPES)
    page.until("document.querySelector('#attached img[src]')")
    asked(page, "Not stored?")
    warning = "document.querySelector('#unstored').textContent"
    page.until(f"{warning}.includes('1 conversation and 1 picture')")
    page.write("x")
    page.run("document.querySelector('#question').value = ''")
    click(page, "#export-button")
    page.until("window.made")
    exported: dict[str, Any] = json.loads(page.run("window.made.text()"))
    assert len(exported["conversations"]) == 2
    assert len(exported["pictures"]) == 1
    assert page.run(f"{warning}.includes('picture')")
    page.run("window.makeRoom()")
    click(page, "#conversations li:nth-child(2) button:last-child")
    page.until("document.querySelector('#confirm').open")
    click(page, "#confirm-yes")
    page.until("document.querySelector('#unstored').hidden")
    assert len(page.run(_STORED)) == 1


def test_a_failed_export_says_so(page: Browser) -> None:
    asked(page, "Hello?")
    page.run("URL.createObjectURL = () => { throw new RangeError('too much'); }")
    click(page, "#export-button")
    page.until("document.querySelector('#composer-error').textContent.includes('export failed: too much')")


def test_one_bad_conversation_does_not_keep_the_others_out(page: Browser, tmp_path: Path) -> None:
    node = {"id": "q", "parent": "", "role": "user", "order": 1, "text": "Brought?", "pictures": [], "state": "done"}
    good = {"id": "c1", "title": "Good", "created": 1, "updated": 2, "nodes": {"q": node}, "chosen": {"": "q"}}
    bad = {**good, "id": "c2", "title": "Bad", "nodes": {"q": {**node, "role": "assistant"}}}
    file = tmp_path / "conversations.json"
    content = {"format": "llavakit-conversations", "version": 1, "conversations": [bad, None, good], "pictures": []}
    file.write_text(json.dumps(content))
    page.choose_file("#import", file)
    page.until(f"{_TITLES}.join() === 'Good'")
    page.until("document.querySelector('#composer-error').textContent !== ''")
    problems = page.run("document.querySelector('#composer-error').textContent")
    assert "Conversation 1 (“Bad”) was left out" in problems
    assert "Conversation 2 was left out" in problems


def test_an_import_that_fails_leaves_no_pictures_behind(page: Browser, tmp_path: Path) -> None:
    picture = {
        "id": "p",
        "name": "a.png",
        "type": "image/png",
        "width": 1,
        "height": 1,
        "orientation": 1,
        "data": "AAAA",
    }
    node = {"id": "q", "parent": "", "role": "user", "order": 1, "text": "?", "pictures": ["p"], "state": "done"}
    talk = {"id": "c", "title": "Talk", "created": 1, "updated": 2, "nodes": {"q": node}, "chosen": {"": "q"}}
    file = tmp_path / "conversations.json"
    content = {"format": "llavakit-conversations", "version": 1, "conversations": [talk],
               "pictures": [picture, {**picture, "id": "of nobody"}]}  # fmt: skip
    file.write_text(json.dumps(content))
    page.run("""(() => {
      const put = IDBObjectStore.prototype.put;
      window.makeRoom = () => { IDBObjectStore.prototype.put = put; };
      IDBObjectStore.prototype.put = function (row) {
        if (this.name === 'conversations') throw new DOMException('', 'QuotaExceededError');
        return put.call(this, row);
      };
    })()""")
    page.choose_file("#import", file)
    page.until("document.querySelector('#composer-error').textContent === 'QuotaExceededError'")
    stored = _STORED.replace("'conversations'", "'pictures'").replace("getAll", "getAllKeys")
    page.until(f"({stored}).then(keys => keys.length === 0)")
    page.run("window.makeRoom()")
    page.choose_file("#import", file)
    page.until(f"{_TITLES}.join() === 'Talk'")
    page.until(f"({stored}).then(keys => keys.join() === 'p')")


def test_a_database_that_is_gone_takes_nothing_that_is_shown_with_it(page: Browser) -> None:
    asked(page, "First?")
    click(page, "#new-button")
    page.choose_file("#pick", SHAPES)
    page.until("document.querySelector('#attached img[src]')")
    asked(page, "Second?")
    page.run("IDBDatabase.prototype.transaction = () => { throw new DOMException('gone', 'InvalidStateError'); }")
    page.run(_FULL)
    page.run("document.querySelector('#conversations li:nth-child(2) .open').click()")
    page.until(f"{_QUESTIONS}.join() === 'First?'")
    click(page, "#export-button")
    page.until("window.made")
    exported: dict[str, Any] = json.loads(page.run("window.made.text()"))
    assert (len(exported["conversations"]), len(exported["pictures"])) == (2, 1)
    page.problems.clear()


def test_nothing_is_sent_without_a_picture_that_the_database_does_not_give(page: Browser) -> None:
    page.choose_file("#pick", SHAPES)
    page.until("document.querySelector('#attached img[src]')")
    asked(page, "With a picture?")
    page.run("""(() => {
      const get = IDBObjectStore.prototype.get;
      IDBObjectStore.prototype.get = function (id) {
        if (this.name === 'pictures') throw new DOMException('unreadable', 'UnknownError');
        return get.call(this, id);
      };
    })()""")
    found = page.run("""import('/static/app/pictures.js').then(async ({ Album }) => {
      const { picturesOf, Store } = await import('/static/app/store.js');
      const store = await new Store().open();
      const ids = (await store.conversations()).flatMap(picturesOf);
      const album = new Album(store); // as after a reload
      await album.load(ids);
      return [ids.length, album.get(ids[0]), await album.load(ids, { toSend: true }).catch(error => error.message)];
    })""")
    assert found == [1, None, "unreadable"]
    page.problems.clear()


def test_a_chosen_model_outlives_a_key_that_is_missing(browser: Browser) -> None:
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted", api_keys=("correct-horse",)) as url:
        browser.open(url)
        browser.until("document.querySelector('#ask-key').open")
        browser.run("localStorage.setItem('llavakit.settings', JSON.stringify({model: 'scripted'}))")
        browser.open(url)
        browser.until("document.querySelector('#ask-key').open")
        browser.write("correct-horse")
        browser.press("Enter")
        browser.until("!document.querySelector('#ask-key').open")
        browser.until("document.querySelector('#set-model').value === 'scripted'")
        browser.problems.clear()


def test_a_server_that_answers_late_takes_no_message_away(browser: Browser, tmp_path: Path) -> None:
    script = """
      const send = window.fetch;
      const until = new Promise(resolve => { window.answerNow = resolve; });
      window.fetch = async (...call) => { await until; return send(...call); };
    """
    added = browser.send("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    file = tmp_path / "conversations.json"
    file.write_text("no conversations")
    message = "document.querySelector('#composer-error').textContent"
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted") as url:
        open_page(browser, url)
        browser.choose_file("#import", file)
        browser.until(f"{message} !== ''")
        said = browser.run(message)
        browser.run("answerNow()")
        browser.until("document.querySelector('#model').textContent !== ''")
        assert browser.run(message) == said
    browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_where_nothing_is_stored_it_is_said_where_it_is_seen(browser: Browser) -> None:
    script = "Object.defineProperty(window, 'indexedDB', { get() { throw new Error('switched off'); } });"
    added = browser.send("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    with serving(ScriptedHost(ScriptedEngine()), default_model="scripted") as url:
        browser.resize(360, 740)
        open_page(browser, url)
        notice = "document.querySelector('#kept-welcome')"
        assert browser.run(f"{notice}.checkVisibility() && {notice}.getBoundingClientRect().bottom < innerHeight")
        assert asked(browser, "Hello?") == ["Hello world."]
    browser.resize(1280, 900)
    browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_too_much_for_one_request_is_said_before_it_is_sent(
    page: Browser, engine: ScriptedEngine, tmp_path: Path
) -> None:
    page.until("document.querySelector('#model').textContent !== ''")  # limits are known
    ask(page, "x" * 1_100_000)
    page.until("document.querySelector('#composer-error').textContent.includes('takes 1.0 MiB')")
    assert engine.seen == []
    assert page.run("document.querySelectorAll('.turn').length") == 0
    page.run("document.querySelector('#question').value = ''")
    asked(page, "Short?")
    with serving(ScriptedHost(engine), default_model="scripted", max_images=1) as url:
        open_page(page, url)
        for count in (1, 2):
            page.choose_file("#pick", SHAPES)
            page.until("document.querySelector('#attached img[src]')")
            ask(page, "What?")
            if count == 1:
                page.until(f"{ANSWERS}.length === 1 && {IS_DONE}")
        page.until("document.querySelector('#composer-error').textContent.includes('would have 2 pictures')")
        assert page.run("document.querySelectorAll('#attached img').length") == 1
        click(page, "#attached button")
        assert len(asked(page, "Without?")) == 2
