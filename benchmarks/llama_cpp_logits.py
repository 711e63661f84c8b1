"""Next-token probabilities of a GGUF file here and in llama.cpp.

    python -m benchmarks.llama_cpp_logits --model MODEL.gguf --peer PEER_FOLDER

Both compute the logits of every position of the same token ids; both round activations to 8 bits for the products, each
in its own way, so that the answers are close and not equal. Given are the share of positions with the same likeliest
token, and the divergence of one's probabilities from the other's; and both beside products in float32 of the same
weights, which says who is nearer to what the file means.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llavakit
from benchmarks.common import ROOT, make_manifest, make_table, write_result
from benchmarks.cpu_peers import Side
from llavakit.core.types import SamplingParams
from llavakit.diagnostics.generated import make_questions
from llavakit.model.layers import Linear
from llavakit.model.llava import Llava


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Agreement of the likeliest tokens, and the divergence KL(theirs || ours) in nats, over rows of logits."""
    a, b = (torch.from_numpy(rows).double().log_softmax(-1) for rows in (ours, theirs))
    divergence = (b.exp() * (b - a)).sum(-1)
    return {
        "same likeliest token": float((a.argmax(-1) == b.argmax(-1)).double().mean()),
        "mean divergence": float(divergence.mean()),
        "greatest divergence": float(divergence.max()),
    }


@torch.inference_mode()
def expanded_logits(model: Llava, ids: list[int]) -> np.ndarray:
    """Logits of every position with every product in float32 of the expanded weights."""

    def multiply(self: Linear, x: torch.Tensor) -> torch.Tensor:
        if self.matrix is None:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        return torch.nn.functional.linear(x, self.matrix.expand(), self.bias)

    plain = Linear.multiply
    Linear.multiply = multiply  # type: ignore[method-assign]
    try:
        tokens = torch.tensor([ids])
        rows: torch.Tensor = model(model.embed(tokens, None), torch.arange(len(ids))[None])[0]
    finally:
        Linear.multiply = plain  # type: ignore[method-assign]
    return rows.float().numpy()


def make_sequences(loaded: llavakit.LoadedModel, num_positions: int) -> list[list[int]]:
    """Questions without pictures, each with the model's own answer, until there are enough positions."""
    sequences: list[list[int]] = []
    for seed in itertools.count():
        for question in make_questions(8, seed=seed, max_images=0):
            if sum(map(len, sequences)) >= num_positions:
                return sequences
            answer = loaded.chat(question.text, sampling=SamplingParams(max_new_tokens=48, ignore_eos=True))
            sequences.append([*loaded.prepare(question.text).token_ids, *answer.token_ids])
    return sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with its projector beside it")
    parser.add_argument("--peer", type=Path, required=True, help="the folder that benchmarks.cpu_peers built")
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--label", help="what to call the model in the results")
    options = parser.parse_args()
    loaded = llavakit.load(options.model, device="cpu")
    vocab_size = loaded.config.text_config.vocab_size
    sequences = make_sequences(loaded, options.positions)
    length = max(len(ids) for ids in sequences)
    theirs_side = Side([str(options.peer / "bin/python"), str(ROOT / "benchmarks/llama_cpp_worker.py")])
    ours_side = Side([sys.executable, "-m", "benchmarks.llavakit_worker"])
    for side in (theirs_side, ours_side):
        side.ask(
            "load", model=str(options.model), projector="", threads=options.threads, context=length + 8, sequences=1
        )
    found: dict[str, list[np.ndarray]] = {"ours": [], "theirs": [], "float32": []}
    with tempfile.TemporaryDirectory() as folder:
        for ids in sequences:
            for name, side in (("ours", ours_side), ("theirs", theirs_side)):
                file = Path(folder) / name
                width = side.ask("logits", ids=ids, path=str(file))["width"]
                found[name].append(np.fromfile(file, dtype=np.float32).reshape(-1, width)[:, :vocab_size])
            found["float32"].append(expanded_logits(loaded.model, ids))
    for side in (theirs_side, ours_side):
        side.close()
    rows_of = {name: np.concatenate(parts) for name, parts in found.items()}
    num = len(rows_of["ours"])
    rows: list[dict[str, Any]] = [
        {"compared": title, "positions": num, **compare(rows_of[one], rows_of[other])}
        for title, one, other in (
            ("llavakit with llama.cpp", "ours", "theirs"),
            ("llavakit with float32 products", "ours", "float32"),
            ("llama.cpp with float32 products", "theirs", "float32"),
        )
    ]
    manifest = make_manifest(num_threads=options.threads)
    label = options.label or options.model.stem
    write_result("llama_cpp_logits", manifest, [{"model": label, **row} for row in rows])
    print(f"{label}; commit {manifest['commit']}\n")
    print(make_table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
