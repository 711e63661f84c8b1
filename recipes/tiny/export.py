"""Write a trained model as a folder in the llava-hf format, as the package embeds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from llavakit.conversion.chat_templates import FOLDER_TEMPLATES
from llavakit.conversion.hf_folder import hf_files, unused_tensors
from llavakit.model.llava import Llava
from llavakit.weights.names import to_hf_legacy

__all__ = ["export", "load_checkpoint"]


def export(model: Llava, tokenizer_file: Path, folder: Path) -> None:
    """Write config, weights (float16), tokenizer and processor files.

    The last vision block and the final norm, which LLaVA never runs, are written too (zeros and the identity),
    because other programs expect a whole CLIP tower in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    tensors = {to_hf_legacy(name): tensor.detach().half().numpy() for name, tensor in model.state_dict().items()}
    for name, (shape, is_ones) in unused_tensors(config).items():
        tensors[name] = np.full(shape, is_ones, np.float16)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    (folder / "model.safetensors").chmod(0o644)
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    for name, content in hf_files(config, dtype="float16", preset="original").items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # The conversations it was trained on: with the template of llava-hf's checkpoints it answers nonsense.
    (folder / "chat_template.jinja").write_text(FOLDER_TEMPLATES["original"], encoding="utf-8")


def load_checkpoint(model: Llava, file: Path) -> None:
    """Fill the model from a checkpoint of the trainer."""
    model.load_state_dict(torch.load(file, weights_only=True)["model"])
