"""Numbers for Prometheus: what was asked, how long it took, what the engines are doing."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from llavakit.core.requests import EngineClient
from llavakit.server.bodies import Bodies
from llavakit.server.memory import read_resident_bytes

__all__ = ["Metrics"]

_RESIDENT = "process_resident_memory_bytes"  # the name that Prometheus' own clients use
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        lines, running = [], 0
        for bound, count in zip((*_SECONDS, "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {running}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {running}"]


class Metrics:
    """Counts of one server. Touched on the event loop only."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._histograms = {
            "time_to_first_token_seconds": ("From request to first token.", _Histogram()),
            "inter_token_latency_seconds": ("Between two tokens of an answer.", _Histogram()),
            "e2e_request_latency_seconds": ("From request to last token.", _Histogram()),
            "request_queue_time_seconds": ("From request to the first computed position.", _Histogram()),
        }

    def count_request(self, route: str, status: int) -> None:
        """Count an answered HTTP request."""
        self._requests[route, status] += 1

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram."""
        self._histograms[name][1].add(seconds)

    def render(self, engines: Sequence[EngineClient], bodies: Bodies) -> str:
        """Return everything in Prometheus' text format."""
        lines = _head("http_requests_total", "counter", "Answered HTTP requests.")
        lines += [
            f'llavakit_http_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self._requests.items())
        ]
        for name, (about, histogram) in self._histograms.items():
            lines += _head(name, "histogram", about) + histogram.lines(f"llavakit_{name}")
        for name, kind, about, field in _ENGINE:
            lines += _head(name, kind, about)
            lines += [
                f'llavakit_{name}{{model="{_escape(engine.name)}"}} {getattr(engine.stats(), field)}'
                for engine in engines
            ]
        for name, about, value in (
            ("request_body_bytes", "Bodies of requests whose answers have not begun.", bodies.num_bytes),
            ("request_body_max_bytes", "Their bound.", bodies.max_bytes),
        ):
            lines += [*_head(name, "gauge", about), f"llavakit_{name} {value}"]
        if (resident_bytes := read_resident_bytes()) is not None:
            about = "Resident memory size in bytes."
            lines += [f"# HELP {_RESIDENT} {about}", f"# TYPE {_RESIDENT} gauge", f"{_RESIDENT} {resident_bytes}"]
        return "\n".join(lines) + "\n"


_ENGINE = (
    ("num_requests_running", "gauge", "Requests that are being computed.", "num_running"),
    ("num_requests_waiting", "gauge", "Requests that wait.", "num_waiting"),
    ("kv_blocks", "gauge", "Blocks of the key-value cache.", "num_blocks"),
    ("kv_blocks_in_use", "gauge", "Blocks used by running requests.", "num_blocks_in_use"),
    ("kv_blocks_cached", "gauge", "Blocks kept for later requests.", "num_blocks_cached"),
    ("waiting_pixel_bytes", "gauge", "Prepared pictures of requests that have not ended.", "num_pixel_bytes"),
    ("waiting_pixel_max_bytes", "gauge", "Its bound.", "max_pixel_bytes"),
    ("prompt_tokens_total", "counter", "Tokens of prompts.", "num_prompt_tokens"),
    ("prefix_cache_hit_tokens_total", "counter", "Tokens of prompts found in the cache.", "num_cached_tokens"),
    ("generation_tokens_total", "counter", "Tokens of answers.", "num_generated_tokens"),
    ("images_encoded_total", "counter", "Pictures that passed the vision tower.", "num_images_encoded"),
    ("image_cache_hits_total", "counter", "Pictures whose features were at hand.", "num_image_hits"),
    ("image_prepared_hits_total", "counter", "Pictures that were prepared before.", "num_prepared_hits"),
    ("image_cache_bytes", "gauge", "Memory of pictures' features and pixels.", "num_image_cache_bytes"),
    ("image_cache_max_bytes", "gauge", "Its bound.", "max_image_cache_bytes"),
    ("kv_cache_bytes", "gauge", "Memory of blocks that were used at least once.", "num_kv_cache_bytes"),
    ("kv_cache_max_bytes", "gauge", "Its bound.", "max_kv_cache_bytes"),
    ("disk_cache_bytes", "gauge", "What is kept on the disk.", "num_disk_cache_bytes"),
    ("disk_cache_max_bytes", "gauge", "Its bound.", "max_disk_cache_bytes"),
    ("num_preemptions_total", "counter", "Requests sent back to wait for blocks.", "num_preemptions"),
    ("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed.", "num_drafted_tokens"),
    ("spec_decode_num_accepted_tokens_total", "counter", "Guesses that were right.", "num_accepted_tokens"),
    ("engine_steps_total", "counter", "Passes through the model.", "num_steps"),
)


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP llavakit_{name} {about}", f"# TYPE llavakit_{name} {kind}"]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
