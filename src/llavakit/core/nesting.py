"""How deep somebody else's JSON is nested."""

from __future__ import annotations

__all__ = ["nesting_depth"]


def nesting_depth(value: object) -> int:
    """Levels of lists and mappings in a parsed JSON value, counted without recursion: it may be nested without end."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        deepest = max(deepest, depth)
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        stack += [(child, depth + 1) for child in children]
    return deepest
