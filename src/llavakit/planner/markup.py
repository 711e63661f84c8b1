"""What the planner's plain pages are made of: a document, a table, bytes in words."""

from __future__ import annotations

import html
from collections.abc import Sequence

from llavakit.core.version import __version__

__all__ = ["document", "gigabytes", "make_table"]


def document(title: str, body: str, *, root: str) -> str:
    """Return a whole page; ``root`` leads from its folder to the site's."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f'<link rel="stylesheet" href="{root}style.css">\n</head>\n<body>\n<header class="top">'
        f'<nav aria-label="Pages"><ul><li><a href="{root}index.html">Calculator</a></li>'
        f'<li><a href="{root}method.html">Method and errors</a></li></ul></nav></header>\n<main>\n{body}\n</main>\n'
        f"<footer>Made by llavakit {__version__}. Nothing is loaded from elsewhere.</footer>\n</body>\n</html>\n"
    )


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), label: str) -> str:
    """Build a table; cells are text, escaped here."""

    def cell(tag: str, idx: int, text: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kind = ' class="num"' if idx in numbers else ""
        return f"<{tag}{scope}{kind}>{html.escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("td", idx, text) for idx, text in enumerate(row)) + "</tr>" for row in rows]
    top = "".join(cell("th", idx, text) for idx, text in enumerate(head))
    return (
        f'<div class="wrap" tabindex="0" role="region" aria-label="{html.escape(label)}"><table><thead><tr>{top}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def gigabytes(size: float) -> str:
    """Write a size."""
    return f"{size / 1e9:.2f} GB"
