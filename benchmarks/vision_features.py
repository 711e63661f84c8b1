"""What the language model sees of a picture: llavakit's and llama.cpp's features of one GGUF pair beside transformers'.

    python -m benchmarks.vision_features --model MODEL.gguf --peer PEER_FOLDER

transformers computes in float32 on the file's own weights, expanded. Every side gets the same bytes of pictures: such
as have the tower's size, where nothing is resized, and such as have to be fitted into a square first, which the
reference does as LLaVA-1.5 was trained (padded with the mean colour, Pillow's bicubic). Given are the cosine of
corresponding rows, mean and least, and the norm of the difference over that of transformers' features.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import llavakit
from benchmarks.common import ROOT, make_manifest, make_table, write_result
from benchmarks.cpu_peers import Side
from llavakit.diagnostics.generated import make_picture
from llavakit.diagnostics.reference import Reference
from llavakit.weights.gguf_checkpoint import find_projector

_COLUMNS = ("model", "pictures", "features of", "mean cosine", "least cosine", "relative error")
_NUM_PICTURES = 4
_RESIZED = (640, 480)


def compare(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Compare features (rows, D) row by row."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    return {
        "mean cosine": round(float(cosines.mean()), 7), "least cosine": round(float(cosines.min()), 7),
        "relative error": float(f"{error:.3g}"),
    }  # fmt: skip


def make_pictures(size: int) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield kinds of pictures."""
    yield f"{size} x {size}", [make_picture(idx, width=size, height=size) for idx in range(_NUM_PICTURES)]
    width, height = _RESIZED
    yield f"{width} x {height}", [make_picture(idx, width=width, height=height) for idx in range(_NUM_PICTURES)]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with its projector beside it")
    parser.add_argument("--peer", type=Path, required=True, help="the folder that benchmarks.cpu_peers built")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--label", help="what to call the model in the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = llavakit.load(options.model, device="cpu", preset="original")
    label = options.label or options.model.stem
    config = loaded.config
    width = config.text_config.hidden_size
    reference = Reference(loaded.model, options.model.parent, is_shared=True, is_expanded_on_use=True)
    theirs = Side([str(options.peer / "bin/python"), str(ROOT / "benchmarks/llama_cpp_worker.py")])
    projector = find_projector(options.model, width)
    theirs.ask(
        "load", model=str(options.model), projector=str(projector), threads=options.threads, context=512, sequences=1
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "pixels", Path(folder) / "features"
        for kind, pictures in make_pictures(config.vision_config.image_size):
            found: dict[str, list[np.ndarray]] = {"transformers": [], "llavakit": [], "llama.cpp": []}
            for picture in pictures:
                values = torch.from_numpy(loaded.prepare("?", images=[picture]).pixel_values)
                found["transformers"].append(reference.encode_images(values)[0].float().numpy())
                found["llavakit"].append(loaded.model.encode_images(values)[0].float().numpy())
                raw.write_bytes(picture.convert("RGB").tobytes())
                theirs.ask("picture", pixels=str(raw), size=picture.width, height=picture.height)
                theirs.ask("save_features", path=str(out), width=width)
                found["llama.cpp"].append(np.fromfile(out, dtype=np.float32).reshape(-1, width))
            expected = np.concatenate(found.pop("transformers"))
            rows += [
                {"model": label, "pictures": kind, "features of": side, **compare(np.concatenate(parts), expected)}
                for side, parts in found.items()
            ]
    theirs.close()
    manifest = make_manifest(num_threads=options.threads)
    write_result("vision_features", manifest, rows)
    print(f"{label}; commit {manifest['commit']}\n\n{make_table(rows, _COLUMNS)}")


if __name__ == "__main__":
    main()
