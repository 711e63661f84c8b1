"""How long threads of torch wait awake for their next work. GNU OpenMP reads it once, when torch is loaded."""

from __future__ import annotations

import os
import sys

__all__ = ["torch_waits_briefly", "wait_briefly"]

# Looks, of 20 to 60 ns each. The default is 300,000: a thread that waits for another, which some other program keeps
# from its processor, is in its way for up to 17 ms then, after every operation of some microseconds.
_NUM_LOOKS = "2000"

_is_brief = False


def wait_briefly() -> None:
    """Let torch's threads sleep after 0.1 ms, unless torch is loaded already or somebody has chosen.

    A small model waits for its threads after every short operation: beside other programs most of its time goes there
    (docs/design/0002-quantized-cpu-engine.md).
    """
    global _is_brief
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = _NUM_LOOKS
    _is_brief = os.environ.get("GOMP_SPINCOUNT") == _NUM_LOOKS and (_is_brief or "torch" not in sys.modules)


def torch_waits_briefly() -> bool:
    """Whether `wait_briefly` was in time."""
    return _is_brief
