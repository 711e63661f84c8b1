"""The embedded model, loaded once for a module's tests."""

from __future__ import annotations

import pytest

import llavakit
from llavakit.api.loaded_model import LoadedModel


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    """Return `llava:tiny`."""
    return llavakit.load("llava:tiny", device="cpu")
