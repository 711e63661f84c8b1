"""Without transformers, verify says how to get it, before it loads anything."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from llavakit.core.errors import MissingDependencyError
from llavakit.diagnostics.reference import import_transformers
from llavakit.diagnostics.verify import verify_model


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llavakit\[verify\]'"):
        verify_model("no/such-model")


def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("transformers")
    old.__version__ = "4.57.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(MissingDependencyError, match=r"4\.57\.1 is installed"):
        import_transformers()
