"""How the tests use the chat page."""

from __future__ import annotations

import json

from tests.browser.chromium import Browser

ANSWERS = "[...document.querySelectorAll('.assistant .answer')].map(a => a.innerText.trim())"
IS_DONE = "document.querySelector('#send-button') && document.querySelector('.assistant:last-child .stats')"


def open_page(browser: Browser, url: str) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(url)
    browser.run("document.querySelector('#new-button').click()")
    browser.until("document.querySelector('#welcome').hidden === false")


def click(browser: Browser, selector: str) -> None:
    assert browser.run(
        f"(n => n && !n.disabled ? (n.click(), true) : false)(document.querySelector({json.dumps(selector)}))"
    )


def ask(browser: Browser, text: str) -> None:
    browser.run("document.querySelector('#question').focus()")
    browser.write(text)
    browser.press("Enter")


def asked(browser: Browser, text: str) -> list[str]:
    count = browser.run(f"{ANSWERS}.length")
    ask(browser, text)
    browser.until(f"{ANSWERS}.length > {count} && {IS_DONE}")
    answers: list[str] = browser.run(ANSWERS)
    return answers
