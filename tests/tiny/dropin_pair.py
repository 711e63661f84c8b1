"""llavakit's and transformers' classes over one folder, pictures, and a web server for them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny import make_tiny_llava

__all__ = ["Pair", "load_pair", "make_picture", "png_bytes", "serve_pictures"]


@dataclass
class Pair:
    """The same checkpoint under both libraries."""

    folder: Path
    model: Any
    processor: Any
    their_model: Any
    their_processor: Any


def load_pair(folder: Path, **overrides: Any) -> Pair:
    """Write a tiny model, pictures of 56 pixels and 16 tokens, and load it twice."""
    import transformers

    from llavakit import AutoProcessor, LlavaForConditionalGeneration
    from llavakit.processing.sources import SourcePolicy

    make_tiny_llava(folder, vision_image_size=56, **overrides)
    policy = SourcePolicy(allow_http=True, allow_private_hosts=True)
    return Pair(
        folder=folder,
        model=LlavaForConditionalGeneration.from_pretrained(folder),
        processor=AutoProcessor.from_pretrained(folder, source_policy=policy),
        their_model=transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="sdpa"
        ).eval(),
        their_processor=transformers.AutoProcessor.from_pretrained(folder, backend="pil"),
    )


def make_picture(seed: int, *, width: int = 80, height: int = 64) -> Image.Image:
    """Return a smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@contextmanager
def serve_pictures(pictures: dict[str, bytes]) -> Iterator[str]:
    """Serve files by name from this machine; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pictures.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
