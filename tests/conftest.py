"""What every test shares: no network, fixed seeds, one arithmetic thread, a model store of its own."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Before torch and huggingface_hub are imported anywhere. The models of the tests are so small that a second
# thread costs more than it brings, and one thread makes every sum reproducible.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if "LLAVAKIT_TEST_HOME" not in os.environ:
    os.environ["LLAVAKIT_TEST_HOME"] = tempfile.mkdtemp(prefix="llavakit-tests-")
os.environ["HF_HOME"] = os.environ["LLAVAKIT_TEST_HOME"]
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(_name, None)

# Time limits of single examples would make the suite depend on how busy the machine is.
settings.register_profile("llavakit", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("ci", settings.get_profile("llavakit"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "llavakit")

REPOSITORY = Path(__file__).resolve().parent.parent


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a path: a socket of this machine
    host = str(address[0])
    if host in {"localhost", ""}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine: a test that needs one is wrong."""
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex

    def connect(self: socket.socket, address: Any) -> None:
        if not _is_local(address):
            raise OSError(f"tests may not use the network: {address!r}")
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        if not _is_local(address):
            raise OSError(f"tests may not use the network: {address!r}")
        return real_connect_ex(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", connect)
    patch.setattr(socket.socket, "connect_ex", connect_ex)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the old generator
    import sys

    torch = sys.modules.get("torch")  # seeded when a test uses it, never imported for it
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """Research data beside the repository; the test is skipped where there are none."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no research data beside the repository ({folder.name}/ is missing)")
    return folder
