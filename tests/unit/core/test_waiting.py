"""torch's threads are told to wait briefly, when nobody else has a say in it and there is time to tell them."""

from __future__ import annotations

import os
import subprocess
import sys

_REPORT = (
    "import os; from llavakit.core.waiting import torch_waits_briefly as w; print(w(), os.getenv('GOMP_SPINCOUNT'))"
)


def _report(first: str, **chosen: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{first}; {_REPORT}"], env={**environment, **chosen}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_whoever_imports_llavakit_first_has_torch_wait_briefly() -> None:
    assert _report("import llavakit, torch") == "True 2000"


def test_a_child_keeps_the_setting() -> None:
    assert _report("import llavakit", GOMP_SPINCOUNT="2000") == "True 2000"


def test_it_is_too_late_once_torch_is_there() -> None:
    assert _report("import torch, llavakit") == "False None"


def test_what_somebody_has_chosen_stays() -> None:
    assert _report("import llavakit", GOMP_SPINCOUNT="5") == "False 5"
    assert _report("import llavakit", OMP_WAIT_POLICY="active") == "False None"
