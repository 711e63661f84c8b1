"""How long `llavakit --help` takes, in units of a Python that does nothing.

    python -m benchmarks.cli_startup

Both commands run in turns, from the same interpreter, with a warm page cache. The bar: at most three times.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from statistics import median

from benchmarks.common import make_manifest, make_table, summarise, write_result

_BAR = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    program = Path(sysconfig.get_path("scripts")) / "llavakit"
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "llavakit --help": [str(program), "--help"],
        "llavakit run --help": [str(program), "run", "--help"],
        "llavakit --version": [str(program), "--version"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for idx in range(options.rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if idx:
                times[name].append(time.perf_counter() - began)
    base = median(times["python -c pass"])
    rows = [
        {"command": name, **{key: round(1000 * value, 1) for key, value in summarise(seconds).items()},
         "of python": round(median(seconds) / base, 2)}
        for name, seconds in times.items()
    ]  # fmt: skip
    for row in rows:
        row.update(median_ms=row.pop("median_s"), min_ms=row.pop("min_s"), max_ms=row.pop("max_s"))
    write_result("cli_startup", make_manifest(num_threads=1), rows)
    print(make_table(rows, ("command", "median_ms", "min_ms", "max_ms", "of python")))
    sys.exit(0 if median(times["llavakit --help"]) <= _BAR * base else 1)


if __name__ == "__main__":
    main()
