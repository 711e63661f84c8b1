"""Print how large each package is, and the files and functions that are longer than we like.

A guide and not a gate: modules of 100 to 400 lines, functions under 60. The table makes growth visible.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

ROOT = Path(__file__).resolve().parent.parent


def find_long_functions(path: Path, source: str) -> list[tuple[int, str]]:
    """Return (lines, place) of each function above the limit."""
    return [
        (length, f"{path}:{node.lineno} {node.name}")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def main() -> int:
    """Print the tables; always succeed."""
    files: dict[str, int] = defaultdict(int)
    lines: dict[str, int] = defaultdict(int)
    long_ones: list[tuple[int, str]] = []
    for folder in ("src/llavakit", "csrc", "recipes", "benchmarks", "tools", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in {".py", ".cpp", ".h", ".inc"} or "__pycache__" in path.parts:
                continue
            source = path.read_text(encoding="utf-8")
            place = path.relative_to(ROOT)
            is_package = folder == "src/llavakit" and len(place.parts) > 3
            package = "/".join(place.parts[:3]) if is_package else folder
            files[package] += 1
            num_lines = len(source.splitlines())
            lines[package] += num_lines
            if num_lines > MAX_FILE_LINES:
                long_ones.append((num_lines, str(place)))
            if path.suffix == ".py":
                long_ones += find_long_functions(place, source)
    print(f"{'package':32} {'files':>6} {'lines':>7}")
    for package in sorted(files):
        print(f"{package:32} {files[package]:6} {lines[package]:7}")
    print(f"{'together':32} {sum(files.values()):6} {sum(lines.values()):7}")
    if long_ones:
        print(f"\nlonger than {MAX_FILE_LINES} lines a file or {MAX_FUNCTION_LINES} a function:")
    for length, place_text in sorted(long_ones, reverse=True):
        print(f"{length:6}  {place_text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
