"""What every type costs llava:tiny: converts it, and measures divergence, agreement and perplexity with intervals.

    python -m benchmarks.tiny_quality

Questions are those of the recipe's evaluation, about scenes nothing was trained on: every skill, descriptions in
several sentences, and small talk without pictures; the scored answers are the right ones. The mixtures are also made
with the importance of columns, calibrated on questions about training scenes. `right answers` is what people mean by
quality: of the questions with a short answer, how many are answered as expected.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import llavakit
from benchmarks.common import make_manifest, make_table, write_result
from llavakit.conversion.convert import convert
from llavakit.diagnostics.calibrate import calibrate_model
from llavakit.diagnostics.quality import Estimate, QualityGroup, QualityPrompt, measure_quality
from recipes.tiny.conversations import text_turns
from recipes.tiny.evaluate import Item, is_right, skill_items
from recipes.tiny.questions import describe
from recipes.tiny.scenes import Split, make_scene, render

_SKILLS = ("color", "shape", "existence", "count", "position", "word", "size", "chart", "absent", "choice")
_TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
_CALIBRATED = ("q4_k_m", "q3_k_m", "q2_k")
_COLUMNS = (
    "type", "MB", "prompts", "divergence", "same token", "perplexity ratio", "right answers",
)  # fmt: skip
_BATCH = 50


def make_prompts(split: Split, items: list[Item], *, num_descriptions: int, num_talks: int) -> list[QualityPrompt]:
    """Return prompts with their right answers."""
    prompts = [QualityPrompt(item.text, (item.image,), item.answer) for item in items]
    prompts += [
        QualityPrompt("Describe the picture in detail.", (render(split, idx),), describe(make_scene(split, idx)))
        for idx in range(num_descriptions)
    ]
    rng = np.random.default_rng(0 if split == "eval" else 1)
    for _ in range(num_talks):
        prompts += [QualityPrompt(text, (), answer) for text, answer in text_turns(rng)[:1]]
    return prompts


def count_right(model: llavakit.LoadedModel, items: list[Item]) -> float:
    """Return the share of right answers."""
    num_right = 0
    for start in range(0, len(items), _BATCH):
        part = items[start : start + _BATCH]
        replies = model.generate([one.text for one in part], images=[one.image for one in part], max_new_tokens=16)
        num_right += sum(is_right(reply.text, one.answer) for reply, one in zip(replies, part, strict=True))
    return num_right / len(items)


def make_models(folder: Path, importance: dict[str, np.ndarray]) -> Iterator[tuple[str, Path]]:
    """Convert llava:tiny to every type; yield what to call it and its file."""
    for name in _TYPES:
        file = folder / f"tiny-{name}.gguf"
        convert("llava:tiny", file, type_name=name)
        yield name, file
    for name in _CALIBRATED:
        file = folder / f"tiny-{name}-calibrated.gguf"
        convert("llava:tiny", file, type_name=name, importance=importance)
        yield f"{name}, calibrated", file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=30, help="of every skill")
    options = parser.parse_args()
    exact = llavakit.load("llava:tiny", device="cpu")
    items = [item for skill in _SKILLS for item in skill_items(skill, options.questions)]
    prompts = make_prompts("eval", items, num_descriptions=2 * options.questions, num_talks=4 * options.questions)
    seen = [item for skill in _SKILLS for item in skill_items(skill, options.questions // 2, split="train")]
    calibration = calibrate_model(
        exact, prompts=make_prompts("train", seen, num_descriptions=options.questions, num_talks=options.questions)
    )
    manifest = make_manifest(num_threads=2)
    rows: list[dict[str, Any]] = []
    exact_right = count_right(exact, items)
    print(f"llava:tiny itself answers {exact_right:.1%} as expected")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in make_models(Path(folder), dict(calibration.importance)):
            loaded = llavakit.load(file, device="cpu")
            report = measure_quality(exact, loaded, prompts=prompts)
            right = count_right(loaded, items)
            shown = {"type": name, "MB": f"{report.quantized_bytes / 1e6:.1f}", "right answers": f"{right:.1%}"}
            rows.append({**shown, "exact right answers": exact_right, "right": right, "report": asdict(report)})
            for group in report.groups:
                print(make_table([{**shown, **_show(group)}], _COLUMNS).splitlines()[-1], flush=True)
    write_result("tiny_quality", manifest, rows)
    shown_rows = [
        {**row, **_show(QualityGroup(**{**group, **_estimates(group)}))}
        for row in rows
        for group in row["report"]["groups"]
    ]
    print(f"\nllava:tiny, commit {manifest['commit']}\n\n{make_table(shown_rows, _COLUMNS)}")


def _estimates(group: dict[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**group[name]) for name in ("divergence", "agreement", "perplexity_ratio")}


def _show(group: QualityGroup) -> dict[str, Any]:
    divergence, agreement, ratio = group.divergence, group.agreement, group.perplexity_ratio
    return {
        "prompts": group.name,
        "divergence": f"{divergence.value:.2g} ({divergence.low:.2g} to {divergence.high:.2g})",
        "same token": f"{agreement.value:.2%} ({agreement.low:.2%} to {agreement.high:.2%})",
        "perplexity ratio": f"{ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})",
    }


if __name__ == "__main__":
    main()
