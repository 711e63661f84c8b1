"""Requests made from the server's own description, right and wrong ones: none may be a fault.

Short here; ``python -m tests.server.test_fuzz SECONDS`` goes on longer and says how many were sent.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from llavakit.server.app import create_app
from llavakit.server.settings import ServerSettings
from tests.server.live import ScriptedEngine, ScriptedHost, serving

# 501 is what is not done here; 502 is the store's or the Hub's; 503 is a busy server.
_TOLD = (501, 502, 503)


def _send(url: str, client: httpx.Client, *, num_examples: int, counts: Counter[int]) -> None:
    app = create_app(ScriptedHost(ScriptedEngine()), ServerSettings())
    schema = schemathesis.openapi.from_dict(app.openapi())
    for found in schema.get_all_operations():
        operation: Any = found.ok()
        for mode in GenerationMode:

            @settings(
                max_examples=num_examples, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                sent = case.as_transport_kwargs(base_url=url)
                fields = {name: sent[name] for name in ("method", "url", "headers", "params", "json") if name in sent}
                try:
                    reply = client.request(**fields, content=sent.get("data"))
                except (httpx.InvalidURL, httpx.LocalProtocolError, TypeError, ValueError):
                    counts[0] += 1  # no client could send it
                    return
                counts[reply.status_code] += 1
                assert reply.status_code < 500 or reply.status_code in _TOLD, (fields, reply.text)

            try:
                check()
            except schemathesis.errors.InvalidSchema:
                continue
            except Exception as error:
                if type(error).__name__ in ("Unsatisfiable", "SkipTest"):
                    continue  # nothing wrong can be made of what takes nothing
                raise


def test_no_request_is_a_fault() -> None:
    counts: Counter[int] = Counter()
    with serving(ScriptedHost(ScriptedEngine())) as url, httpx.Client(timeout=30) as client:
        _send(url, client, num_examples=8, counts=counts)
        assert client.get(f"{url}/health").status_code == 200
    assert sum(counts.values()) - counts[0] > 100
    assert counts[200]
    assert counts[400]


if __name__ == "__main__":
    ends_s, totals = time.monotonic() + float(sys.argv[1]), Counter()
    with serving(ScriptedHost(ScriptedEngine())) as address, httpx.Client(timeout=30) as http:
        while time.monotonic() < ends_s:
            _send(address, http, num_examples=100, counts=totals)
            print(sum(totals.values()), dict(totals), flush=True)
