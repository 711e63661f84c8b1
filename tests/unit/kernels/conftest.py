"""Without a C++ compiler llavakit installs without its native library; then there is nothing to test here."""

from __future__ import annotations

import os

import pytest

from llavakit import kernels
from llavakit.core.errors import MissingDependencyError
from llavakit.kernels.library import find_library

# `make sanitize` tests another build of the library, in this folder.
if _OTHER_BUILD := os.environ.get("LLAVAKIT_TEST_KERNELS"):
    kernels.__path__ = [_OTHER_BUILD, *kernels.__path__]
collect_ignore_glob: list[str] = []
try:
    find_library()
except MissingDependencyError:
    collect_ignore_glob += ["test_*.py"]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say it when the tests are left out."""
    del config
    return (
        ["native library absent (no C++ compiler at installation): its tests are left out"]
        if collect_ignore_glob
        else []
    )
