"""docs/errors.md: one anchor per code, one row per class, nothing that no longer exists."""

from __future__ import annotations

import re
from pathlib import Path

from llavakit.core.errors import LlavakitError


def _walk(base: type[LlavakitError]) -> list[type[LlavakitError]]:
    return [base, *(found for child in base.__subclasses__() for found in _walk(child))]


def test_page_and_tree_agree(repository: Path) -> None:
    page = (repository / "docs" / "errors.md").read_text(encoding="utf-8")
    tree = [error for error in _walk(LlavakitError) if error.__module__ == "llavakit.core.errors"]
    anchors = re.findall(r"^## (\S+)$", page, flags=re.MULTILINE)
    assert sorted(anchors) == sorted(error.code for error in tree)
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(#([\w-]+)\) \| `(\w+)` \| (\d+) \|$", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted((error.code, error.code, error.__name__, str(error.exit_code)) for error in tree)


def test_every_section_says_something(repository: Path) -> None:
    page = (repository / "docs" / "errors.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        assert len(text.split()) >= 12, title
