"""The evaluation table of `llava:tiny`'s card: ``python -m recipes.tiny.evaluate FOLDER``.

Every figure comes from greedy answers of the exported folder through the public API. A question counts as right if the
answer equals the expected one, up to case and a final period. Beside each skill stand the same questions asked about a
blank and about a swapped picture, and the score of the best guess that knows only the form of the question.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import llavakit
from recipes.tiny.questions import SHORT_SUFFIX, Question, ask
from recipes.tiny.scenes import COLOR_NAMES, SHAPES, Split, make_scene, render
from recipes.tiny.words import HELD_OUT_WORDS, TRAINING_WORDS

__all__ = ["Item", "evaluate", "guessing_rate", "is_right", "skill_items"]

_SKILLS = ("color", "shape", "existence", "count", "position", "word", "size", "chart", "absent", "choice")
_BATCH = 64
_model: llavakit.LoadedModel  # of a worker process


@dataclass(frozen=True)
class Item:
    """One question about one picture."""

    image: Image.Image
    text: str
    answer: str


def skill_items(skill: str, num: int, *, split: Split = "eval") -> list[Item]:
    """The first ``num`` scenes of a split that have a question of this skill, one question each."""
    items: list[Item] = []
    index = -1
    while len(items) < num:
        index += 1
        question = _question(skill, split, index)
        if question is not None:
            items.append(Item(render(split, index), question.text + _suffix(skill), question.short))
    return items


def _question(skill: str, split: Split, index: int) -> Question | None:
    rng = np.random.default_rng((index, 13))
    scene = make_scene(split, index)
    if skill in ("color", "shape", "existence", "absent", "choice", "size", "count", "position") and not scene.shapes:
        return None
    if skill == "word" and scene.sign is None:
        return None
    question = ask(scene, rng, skill=skill)
    return question if question is not None and question.skill == skill else None


def _suffix(skill: str) -> str:
    return "" if skill == "choice" else SHORT_SUFFIX


def is_right(answer: str, expected: str) -> bool:
    """Compare as the card says."""
    return answer.strip().removesuffix(".").lower() == expected.lower()


def guessing_rate(items: list[Item]) -> float:
    """Share of right answers of the best guess per form of question: its most frequent answer."""
    words = "|".join((*COLOR_NAMES, *SHAPES, *TRAINING_WORDS, *HELD_OUT_WORDS, "large", "small"))
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        forms[re.sub(rf"\b({words})(s|es)?\b", "_", item.text)][item.answer.lower()] += 1
    return sum(counts.most_common(1)[0][1] for counts in forms.values()) / len(items)


def _accuracy(model: llavakit.LoadedModel, items: list[Item]) -> float:
    right = 0
    for start in range(0, len(items), _BATCH):
        part = items[start : start + _BATCH]
        replies = model.generate([i.text for i in part], images=[i.image for i in part], max_new_tokens=16)
        right += sum(is_right(reply.text, item.answer) for reply, item in zip(replies, part, strict=True))
    return right / len(items)


def _blank(items: list[Item]) -> list[Item]:
    return [Item(Image.new("RGB", (112, 112), (240, 240, 240)), item.text, item.answer) for item in items]


def _swapped(items: list[Item]) -> list[Item]:
    return [Item(other.image, item.text, item.answer) for item, other in zip(items, items[1:] + items[:1], strict=True)]


def _easy_vqa(num: int | None) -> Iterator[Item]:
    """Test split of the easy-vqa package; none of its pictures is ever trained on."""
    import easy_vqa

    paths = easy_vqa.get_test_image_paths()
    questions, answers, ids = easy_vqa.get_test_questions()
    order = np.random.default_rng(0).permutation(len(questions))[:num]
    for idx in order:
        with Image.open(paths[ids[idx]]) as image:
            yield Item(image.convert("RGB"), questions[idx] + SHORT_SUFFIX, answers[idx])


def _set_up_worker(folder: Path) -> None:
    """Load the model once per process; small products gain nothing from a second thread."""
    global _model  # a process pool has no other place
    torch.set_num_threads(1)
    _model = llavakit.load(folder)


def _skill_row(skill: str, num: int, num_controls: int) -> tuple[str, dict[str, Any]]:
    items = skill_items(skill, num)
    row = {"num_questions": num, "accuracy": _accuracy(_model, items), "guessing": guessing_rate(items)}
    if num_controls:
        controls = items[:num_controls]
        row |= {
            "num_control_questions": num_controls,
            "blank": _accuracy(_model, _blank(controls)),
            "swapped": _accuracy(_model, _swapped(controls)),
        }
    print(json.dumps({skill: row}), flush=True)
    return skill, row


def _compositional(skill: str, num: int) -> float:
    return _accuracy(_model, skill_items(skill, num, split="compositional"))


def _easy_part(part: int, num_parts: int, num: int | None) -> tuple[int, float]:
    items = list(_easy_vqa(num))[part::num_parts]
    return len(items), _accuracy(_model, items) * len(items)


def evaluate(
    folder: Path,
    *,
    num: int = 1000,
    num_controls: int = 500,
    num_easy_vqa: int | None = None,
    num_processes: int = 2,
) -> dict[str, Any]:
    """Return the whole table as data."""
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_set_up_worker, initargs=(folder,)) as pool:
        rows = [pool.submit(_skill_row, skill, num, num_controls) for skill in _SKILLS]
        num_parts = 4
        parts = [pool.submit(_easy_part, part, num_parts, num_easy_vqa) for part in range(num_parts)]
        held_out = {skill: pool.submit(_compositional, skill, max(num // 2, 1)) for skill in ("color", "shape", "word")}
        easy = [part.result() for part in parts]
        num_easy = sum(count for count, _ in easy)
        result: dict[str, Any] = {
            "skills": dict(row.result() for row in rows),
            "easy_vqa_test": {"num_questions": num_easy, "accuracy": sum(right for _, right in easy) / num_easy},
            "compositional": {skill: job.result() for skill, job in held_out.items()},
        }
    result["elapsed_s"] = round(time.perf_counter() - started, 1)
    print(json.dumps({key: value for key, value in result.items() if key != "skills"}), flush=True)
    return result


def main() -> None:
    """Evaluate a folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--num", type=int, default=1000, help="questions per skill")
    parser.add_argument(
        "--controls", type=int, default=500, help="questions per skill about blank and swapped pictures"
    )
    parser.add_argument("--easy-vqa", type=int, default=None, help="questions of easy-vqa's test split (all)")
    args = parser.parse_args()
    result = evaluate(args.folder, num=args.num, num_controls=args.controls, num_easy_vqa=args.easy_vqa)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
