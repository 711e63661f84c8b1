"""Time and memory of a conversion, on random weights of a real shape.

    python -m benchmarks.random_checkpoint --shape 13b --dir FOLDER
    python -m benchmarks.conversion --dir FOLDER --out OUT.gguf --type q4_k_m

`llavakit convert` runs as a process of its own, whose memory is read from outside: the greatest number of resident
bytes (mapped pages of the checkpoint count while they are there), and the greatest number of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import make_manifest, make_table, write_result
from llavakit.diagnostics.memory import read_memory

_COLUMNS = ("checkpoint", "to", "read", "written", "time", "peak memory", "of it its own")
_PERIOD_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--label", help="what to call the checkpoint in the results")
    options = parser.parse_args()
    manifest = make_manifest(num_threads=options.threads)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "llavakit", "convert", str(options.dir), str(options.out), "--type", options.type,
         "--threads", str(options.threads), "--quiet"], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    peak = own = 0
    while process.poll() is None:
        memory = read_memory(Path(f"/proc/{process.pid}"))
        if memory is not None:
            peak, own = max(peak, memory.peak_resident), max(own, memory.anonymous)
        time.sleep(_PERIOD_S)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the conversion ended with {process.returncode}")
    read = sum(file.stat().st_size for file in options.dir.glob("*.safetensors"))
    written = options.out.stat().st_size + sum(
        file.stat().st_size for file in options.out.parent.glob(f"mmproj-{options.out.stem}*.gguf")
    )
    row: dict[str, Any] = {
        "checkpoint": options.label or options.dir.name, "to": options.type, "read": f"{read / 1e9:.1f} GB",
        "written": f"{written / 1e9:.1f} GB", "time": f"{seconds:.0f} s", "peak memory": f"{peak / 1e9:.2f} GB",
        "of it its own": f"{own / 1e9:.2f} GB", "seconds": seconds, "peak_bytes": peak, "own_bytes": own,
    }  # fmt: skip
    write_result("conversion", manifest, [row])
    print(make_table([row], _COLUMNS))


if __name__ == "__main__":
    main()
