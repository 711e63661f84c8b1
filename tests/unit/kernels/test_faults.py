"""A mapped file that is cut short: the process ends, but it says why."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="this system has no SIGBUS")

_READS_A_SHORTENED_FILE = """
import sys
from llavakit.cli.main import run_command

def load(*_, **__):
    import numpy as np
    mapped = np.memmap(sys.argv[1], dtype=np.uint8, mode="r")
    open(sys.argv[1], "r+b").truncate(100)
    return mapped.sum()

print("first", flush=True)
run_command(["run", "llava:tiny", "What is this?"], load=load)
print("never reached")
"""


def test_the_command_line_says_what_happened_and_leaves_with_the_status_of_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", _READS_A_SHORTENED_FILE, str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 3
    assert done.stdout == "first\n"
    assert done.stderr.startswith("error[weights]: a file of the model became shorter")
    assert "Traceback" not in done.stderr
