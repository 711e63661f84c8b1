"""``llavakit pull``, ``list``, ``show`` and ``rm``: the local store."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.cli.console import Console
from llavakit.cli.progress import human_bytes, pull_with_progress
from llavakit.cli.tables import print_pairs, print_table
from llavakit.core.errors import ConfigError
from llavakit.core.wording import counted

if TYPE_CHECKING:
    import argparse

    from llavakit.processing.presets import Preset

__all__ = ["list_all", "pull", "remove", "show"]

_YES = ("y", "yes")
_MAX_CARD_BYTES = 1 << 16


def pull(options: argparse.Namespace, console: Console) -> int:
    """Fetch a model."""
    found = pull_with_progress(options.model, console, is_quiet=options.quiet or options.json)
    num_bytes = _size_of(found.folder) + (_size_of(found.vision_folder) if found.vision_folder else 0)
    if options.json:
        _print_json(
            console,
            {"model": options.model, "source": found.source, "folder": str(found.folder), "num_bytes": num_bytes},
        )
    else:
        console.line(f"{options.model} is here: {human_bytes(num_bytes)} in {found.folder}")
    return 0


def list_all(options: argparse.Namespace, console: Console) -> int:
    """List what is in the store."""
    from llavakit.weights.store import list_models

    models = list_models()
    if options.json:
        _print_json(console, {"models": [{**asdict(model), "folder": str(model.folder)} for model in models]})
        return 0
    rows = [
        (
            model.name,
            human_bytes(model.num_bytes),
            "embedded" if model.hub_id is None else "complete" if model.is_complete else "incomplete: pull it again",
            model.hub_id or "",
        )
        for model in models
    ]
    print_table(console, [("name", "left"), ("size", "right"), ("state", "left"), ("Hugging Face id", "left")], rows)
    return 0


def show(options: argparse.Namespace, console: Console) -> int:
    """Show what a model is."""
    content = _describe(options.model, options.mmproj)
    if options.json:
        _print_json(console, content)
        return 0
    text, vision = content["config"]["text_config"], content["config"]["vision_config"]
    pairs = [
        ("model", content["model"]),
        ("folder", content["folder"]),
        ("card", content["card"] or "none"),
        ("licence", content["licence"] or "not stated in the model's files"),
        ("dialect", content["dialect"]),
        ("parameters", f"{content['num_parameters']:,} ({_counted(content['num_parameters_by_part'])})"),
        ("stored as", f"{', '.join(content['storage_dtypes'])}, {human_bytes(content['num_bytes'])}"),
        ("context", f"{text['max_position_embeddings']} tokens, {human_bytes(content['kv_bytes_per_token'])} each"),
        (
            "pictures",
            f"{vision['image_size']}x{vision['image_size']} pixels, {content['num_image_tokens']} tokens each",
        ),
        (
            "vision",
            f"{content['num_vision_blocks']} of {vision['num_hidden_layers']} blocks, width {vision['hidden_size']}",
        ),
        (
            "language",
            f"{text['num_hidden_layers']} layers, width {text['hidden_size']}, {text['num_attention_heads']} heads, "
            f"{text['vocab_size']} tokens",
        ),
    ]
    for preset in content["presets"]:
        mark = " (default)" if preset["is_default"] else ""
        pairs += [("", ""), (f"preset {preset['name']}{mark}", ""), ("  pictures", _pixels(preset["image"]))]
        pairs.append(("  template", preset["template"]))
        pairs.append(("  prompt", preset["prompt"].replace("\n", "\\n")))
    if content["num_skipped_tensors"]:
        num_skipped = counted(content["num_skipped_tensors"], "tensor")
        pairs += [("", ""), ("not used", f"{num_skipped} of the files; listed by --json")]
    print_pairs(console, pairs)
    return 0


def remove(options: argparse.Namespace, console: Console) -> int:
    """Remove a model, after asking."""
    from llavakit.weights import store

    # What is not in the store cannot be lost: then the store says what is wrong, without a question before.
    is_stored = any(options.model in (model.name, model.hub_id) for model in store.list_models() if model.hub_id)
    if is_stored and not options.yes:
        if options.json or not console.is_input_terminal:
            raise ConfigError("removing a model needs a yes, and nobody can be asked here. Add --yes.")
        console.tell(f"Remove {options.model} from this machine? [y/N] ")
        if console.stdin.readline().strip().lower() not in _YES:
            console.note("kept")
            return 0
    num_bytes = store.remove(options.model)
    if options.json:
        _print_json(console, {"model": options.model, "num_freed_bytes": num_bytes})
    else:
        console.line(f"removed {options.model}: {human_bytes(num_bytes)} are free again")
    return 0


def _describe(name: str, mmproj: str | None) -> dict[str, Any]:
    """Gather what is known of a model without loading its weights."""
    from llavakit.core.shapes import count_parameters, kv_bytes_per_token
    from llavakit.processing.presets import default_preset_name, load_presets
    from llavakit.weights.opening import open_resolved
    from llavakit.weights.store import resolve

    found = resolve(name, allow_download=False, mmproj=mmproj)
    opened = open_resolved(found)
    checkpoint, config = opened.checkpoint, opened.checkpoint.config
    default = default_preset_name(opened.processor_folder)
    presets = load_presets(opened.processor_folder, config)
    # What else lies in the folder of a GGUF file may be anybody's.
    card, licence = (None, None) if found.gguf_file is not None else _card_and_licence(found.folder)
    by_part: dict[str, int] = {}
    for tensor_name, tensor in checkpoint.tensors.items():
        part = tensor_name.split(".", maxsplit=1)[0]
        size = 1
        for length in tensor.shape:
            size *= length
        by_part[part] = by_part.get(part, 0) + size
    return {
        "model": name,
        "source": found.source,
        "folder": str(found.folder),
        "weight_files": [str(file) for file in opened.weight_files],
        "vision_folder": str(found.vision_folder) if found.vision_folder else None,
        "card": card,
        "licence": licence,
        "dialect": str(checkpoint.dialect.value),
        "num_parameters": count_parameters(config),
        "num_parameters_by_part": by_part,
        "storage_dtypes": sorted(str(dtype) for dtype in checkpoint.storage_dtypes),
        "num_bytes": checkpoint.num_bytes,
        "kv_bytes_per_token": kv_bytes_per_token(config, config.dtype),
        "num_image_tokens": config.num_image_tokens,
        "num_vision_blocks": config.num_vision_blocks,
        "config": asdict(config),
        "presets": [
            {
                "name": preset.name,
                "is_default": preset.name == default,
                "image": asdict(preset.image),
                "template": preset.template,
                "prompt": _sample_prompt(preset),
            }
            for preset in presets.values()
        ],
        "num_skipped_tensors": len(checkpoint.skipped),
        "skipped_tensors": [{"name": skipped, "reason": reason} for skipped, reason in checkpoint.skipped],
    }


def _sample_prompt(preset: Preset) -> str:
    """Return the prompt of one question about one picture, with names in the places of what varies."""
    from llavakit.core.types import ImagePart, Message, Role, TextPart
    from llavakit.processing.chat import ImageSegment, TextSegment, render

    question = Message(Role.USER, (ImagePart("picture"), TextPart("{question}")))
    return "".join(
        segment.text if isinstance(segment, TextSegment) else "<image>" if isinstance(segment, ImageSegment) else "</s>"
        for segment in render([question], preset.template)
    )


def _card_and_licence(folder: Path) -> tuple[str | None, str | None]:
    """Return the path of the model card, and its licence: from the card's header, else the licence file's path."""
    card = next((folder / name for name in ("README.md", "CARD.md", "card.md") if (folder / name).is_file()), None)
    licence = next((str(file) for file in sorted(folder.glob("LICENSE*")) if file.is_file()), None)
    if card is not None:
        with card.open(encoding="utf-8", errors="replace") as file:
            header = file.read(_MAX_CARD_BYTES)
        if header.startswith("---"):
            for line in header[3:].split("\n---", maxsplit=1)[0].splitlines():
                key, _, value = line.partition(":")
                if key.strip() in ("license", "license_name") and value.strip():
                    licence = value.strip().strip("'\"")
    return (str(card) if card else None), licence


def _pixels(image: dict[str, Any]) -> str:
    size = image["image_size"]
    how = {
        "pad": f"padded to a square with the mean colour, resized to {size}x{size}",
        "crop": f"shortest edge to {image['shortest_edge']}, middle {size}x{size} cut out",
        "stretch": f"stretched to {size}x{size}",
    }[image["mode"]]
    filters = ("nearest", "Lanczos", "bilinear", "bicubic", "box", "Hamming")
    return f"{how}, {filters[image['resample']]}"


def _counted(by_part: dict[str, int]) -> str:
    names = {"vision_tower": "vision", "multi_modal_projector": "projector"}
    totals: dict[str, int] = {}
    for part, count in by_part.items():
        name = names.get(part, "language")
        totals[name] = totals.get(name, 0) + count
    return ", ".join(f"{name} {count:,}" for name, count in totals.items())


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _print_json(console: Console, content: dict[str, Any]) -> None:
    console.line(json.dumps(content, ensure_ascii=False))
