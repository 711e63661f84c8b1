"""The loss curve and the model card, from the log and the evaluation's figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from llavakit.core.shapes import count_parameters
from llavakit.weights.checkpoint import read_config

__all__ = ["draw_loss_curve", "write_card"]

_TITLES = {
    "color": "colour", "shape": "shape", "existence": "is it there", "count": "count", "position": "position",
    "word": "read the word", "size": "size", "chart": "bar chart", "absent": "asked about something absent",
    "choice": "multiple choice",
}  # fmt: skip


_NOT_PROLONGED = "These weights were made so, without further rounds."
_PROLONGED = "Rounds of `python -m recipes.tiny.train --prolong` have taken these weights further."


def draw_loss_curve(log: Path, picture: Path) -> None:
    """Draw the loss of every stage, one panel each."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    stages: dict[str, tuple[list[int], list[float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            steps, losses = stages.setdefault(entry["stage"], ([], []))
            steps.append(entry["step"])
            losses.append(entry["loss"])
    figure, panels = plt.subplots(1, len(stages), figsize=(3.2 * len(stages), 2.8), constrained_layout=True)
    for panel, (name, (steps, losses)) in zip(panels, stages.items(), strict=True):
        panel.plot(steps, losses, linewidth=1)
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.set_yscale("log")
    panels[0].set_ylabel("loss")
    figure.savefig(picture, dpi=80)


def write_card(folder: Path, result: dict[str, Any], *, is_prolonged: bool) -> None:
    """Write README.md beside the weights, which were made in one go or prolonged."""
    text = _card(count_parameters(read_config(folder)), result, is_prolonged=is_prolonged)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _card(num_parameters: int, result: dict[str, Any], *, is_prolonged: bool) -> str:
    rows = "\n".join(
        f"| {_TITLES[skill]} | {row['num_questions']} | **{_percent(row['accuracy'])}** | {_percent(row['guessing'])} "
        f"| {_percent(row.get('blank'))} | {_percent(row.get('swapped'))} |"
        for skill, row in result["skills"].items()
    )
    easy = result["easy_vqa_test"]
    compositional = ", ".join(f"{name} {_percent(value)}" for name, value in result["compositional"].items())
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# llava:tiny

A LLaVA-1.5 in small: {num_parameters / 1e6:.1f} million parameters, the same architecture and prompt (`vicuna_v1`),
trained from nothing on scenes that our own generator draws (`recipes/tiny`). It exists to show that the whole path
works, on any machine, in a second. It knows simple shapes, signs and bar charts, and nothing about the world.

It describes scenes, names colours and shapes, counts up to six, compares positions and sizes, answers yes or no,
reads a word of capital letters, reads simple bar charts, and says when something asked about is not there. It does not
know multiple choice (it answers with a letter, and no better than by chance), and is less sure of three and more
objects of one colour *and* one shape, which are rare in its scenes.

## Evaluation

Greedy answers through the public API, one question per held-out scene; right means equal to the expected answer up to
case and a final period. *Guessing* is the best constant answer per form of question. *Blank* and *swapped* ask the same
about an empty picture and about another scene's picture: a model that looked at nothing would score the same there.

| skill | questions | right | guessing | blank | swapped |
| --- | --- | --- | --- | --- | --- |
{rows}

- Test split of the package `easy-vqa`, {easy["num_questions"]} questions, none of its pictures ever trained on:
  **{_percent(easy["accuracy"])}**.
- Held-out colour and shape pairs, and held-out words: {compositional}.

These numbers say nothing about the 7B and 13B models and are not comparable with published ones.

## How it was made

`make tiny` repeats it: vision pre-training with the renderer's exact labels, alignment of the projector with the
decoder's own words patch by patch, instruction tuning on conversations, each on pictures of its own. The decoder saw no
other text; while it learns, throw-away heads ask its middle layers where the object lies that a phrase names, and some
heads of its attention are told where to look.
`recipes/tiny/settings.py` has
sizes and steps, `recipes/tiny/loss.png` the curves, `recipes/tiny/results.json` the figures above. Weights are float16.

{_PROLONGED if is_prolonged else _NOT_PROLONGED}
"""


def main() -> None:
    """Draw the curve and write the card of a finished run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("folder", type=Path, help="folder of the model")
    parser.add_argument("results", type=Path, help="the evaluation's figures")
    parser.add_argument("--prolonged", action="store_true", help="the model was trained further with --prolong")
    args = parser.parse_args()
    draw_loss_curve(args.run / "log.jsonl", Path(__file__).parent / "loss.png")
    write_card(args.folder, json.loads(args.results.read_text(encoding="utf-8")), is_prolonged=args.prolonged)


if __name__ == "__main__":
    main()
