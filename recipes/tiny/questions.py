"""Questions about a scene, with their answers in two manners: one word, or a sentence.

A manner is chosen per conversation, as in LLaVA's mixture: with the suffix "Answer the question using a single word
or phrase." on the first question every answer is short; without it answers are sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipes.tiny.scenes import COLOR_NAMES, SHAPES, Scene, Shape
from recipes.tiny.words import TRAINING_WORDS

__all__ = ["SHORT_SUFFIX", "SKILLS", "Question", "ask", "caption", "describe"]

SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."
LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer and its sentence."""

    skill: str
    text: str
    short: str
    sentence: str


Asker = Callable[[Scene, np.random.Generator], Question | None]


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _one(rng: np.random.Generator, shapes: list[Shape] | tuple[Shape, ...]) -> Shape:
    return shapes[int(rng.integers(len(shapes)))]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _name(shape: Shape) -> str:
    return f"{shape.color} {shape.shape}"


def _unique_names(scene: Scene) -> list[Shape]:
    names = [_name(shape) for shape in scene.shapes]
    return [shape for shape in scene.shapes if names.count(_name(shape)) == 1]


def _noun(scene: Scene, shape: Shape, rng: np.random.Generator) -> str | None:
    """A phrase that means this object only, without its colour."""
    if len(scene.shapes) == 1 and rng.random() < 0.4:
        return _pick(rng, ("shape", "object"))
    same = [other for other in scene.shapes if other.shape == shape.shape]
    if len(same) == 1:
        return shape.shape
    if len([other for other in same if other.is_large == shape.is_large]) == 1:
        return f"{'large' if shape.is_large else 'small'} {shape.shape}"
    return None


def ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What colour is the star?"""
    if not scene.shapes:
        return None
    shape = _one(rng, scene.shapes)
    noun = _noun(scene, shape, rng)
    if noun is None:
        return None
    text = _pick(rng, (f"What color is the {noun}?", f"What is the color of the {noun}?", f"what color is the {noun}?",
                       f"what is the color of the {noun}?", f"Which color does the {noun} have?"))  # fmt: skip
    return Question("color", text, shape.color.capitalize(), f"The {noun} is {shape.color}.")


def ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What shape is the red object?"""
    unique = [s for s in scene.shapes if [o.color for o in scene.shapes].count(s.color) == 1]
    if not unique:
        return None
    shape = _one(rng, unique)
    if len(scene.shapes) == 1 and rng.random() < 0.5:
        text = _pick(rng, ("what shape is in the image?", "what shape does the image contain?",
                           "what shape is present?",
                           "What shape is in the picture?", "What shape is shown?"))  # fmt: skip
        return Question("shape", text, shape.shape.capitalize(), f"There is {_article(shape.color)} {shape.shape}.")
    text = _pick(rng, (f"what is the {shape.color} shape?", f"What shape is the {shape.color} object?",
                       f"What is the {shape.color} object?", f"Which shape is {shape.color}?"))  # fmt: skip
    return Question("shape", text, shape.shape.capitalize(), f"The {shape.color} shape is a {shape.shape}.")


def ask_existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is there a green star? Half of the answers are no; half of those share colour and shape with other objects."""
    wanted = bool(rng.random() < 0.5)
    color, shape = _candidate(scene, rng, is_present=wanted)
    kind = rng.random()
    if kind < 0.6:
        phrase, present = f"{color} {shape}", any((s.color, s.shape) == (color, shape) for s in scene.shapes)
    elif kind < 0.8:
        phrase, present = shape, any(s.shape == shape for s in scene.shapes)
    else:
        phrase, present = f"{color} shape", any(s.color == color for s in scene.shapes)
    return _yes_no_existence(phrase, present, rng)


def _candidate(scene: Scene, rng: np.random.Generator, *, is_present: bool) -> tuple[str, str]:
    if scene.shapes and is_present:
        shape = _one(rng, scene.shapes)
        return shape.color, shape.shape
    color, kind = _pick(rng, COLOR_NAMES), _pick(rng, SHAPES)
    if scene.shapes and rng.random() < 0.7:
        other = _one(rng, scene.shapes)
        if rng.random() < 0.5:
            color = other.color
        else:
            kind = other.shape
    return color, kind


def _yes_no_existence(phrase: str, present: bool, rng: np.random.Generator) -> Question:
    negated = bool(rng.random() < 0.25)
    if negated:
        text = _pick(rng, (f"is there not a {phrase}?", f"is there not a {phrase} in the image?",
                           f"is no {phrase} present?",
                           f"does the image not contain a {phrase}?"))  # fmt: skip
    else:
        text = _pick(rng, (f"is there a {phrase}?", f"is there a {phrase} in the image?", f"is a {phrase} present?",
                           f"does the image contain a {phrase}?", f"Is there {_article(phrase)} in the picture?",
                           f"Do you see {_article(phrase)}?"))  # fmt: skip
    yes = present != negated
    sentence = f"there is {_article(phrase)}." if present else f"there is no {phrase}."
    return Question("existence", text, "Yes" if yes else "No", f"{'Yes' if yes else 'No'}, {sentence}")


def ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many red circles are there? Absent things are asked about too."""
    if not scene.shapes:
        return None
    kind = rng.random()
    if kind < 0.3:
        phrase, count = _pick(rng, ("objects", "shapes")), len(scene.shapes)
    elif kind < 0.55:
        phrase = _one(rng, scene.shapes).shape if rng.random() < 0.85 else _pick(rng, SHAPES)
        phrase, count = _plural(phrase), sum(s.shape == phrase for s in scene.shapes)
    elif kind < 0.75:
        color = _one(rng, scene.shapes).color if rng.random() < 0.85 else _pick(rng, COLOR_NAMES)
        phrase, count = f"{color} {_pick(rng, ('objects', 'shapes'))}", sum(s.color == color for s in scene.shapes)
    else:
        color, shape = _candidate(scene, rng, is_present=bool(rng.random() < 0.75))
        phrase = f"{color} {_plural(shape)}"
        count = sum((s.color, s.shape) == (color, shape) for s in scene.shapes)
    return _how_many(phrase, count, rng)


def ask_tally(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many of one colour, of one shape, or of both: to practise, since it is learnt last; mostly of several."""
    way = rng.choice(("color", "shape", "both"), p=(0.25, 0.2, 0.55))
    if way == "color":
        phrases = [f"{shape.color} {_pick(rng, ('objects', 'shapes'))}" for shape in scene.shapes]
        kinds = [shape.color for shape in scene.shapes]
    elif way == "shape":
        kinds = phrases = [_plural(shape.shape) for shape in scene.shapes]
    else:
        kinds = phrases = [f"{shape.color} {_plural(shape.shape)}" for shape in scene.shapes]
    if not kinds:
        return None
    several = [idx for idx, kind in enumerate(kinds) if kinds.count(kind) > 1]
    options = several if several and rng.random() < 0.7 else list(range(len(kinds)))
    idx = options[int(rng.integers(len(options)))]
    return _how_many(phrases[idx], kinds.count(kinds[idx]), rng, skill="tally")


def _how_many(phrase: str, count: int, rng: np.random.Generator, *, skill: str = "count") -> Question:
    text = _pick(rng, (f"How many {phrase} are there?", f"How many {phrase} are in the picture?",
                       f"What is the number of {phrase}?", f"How many {phrase} do you see?"))  # fmt: skip
    if count == 0:
        sentence = f"There are no {phrase}."
    elif count == 1:
        sentence = f"There is 1 {_singular(phrase)}."
    else:
        sentence = f"There are {count} {phrase}."
    return Question(skill, text, str(count), sentence)


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _singular(phrase: str) -> str:
    return phrase.removesuffix("es") if phrase.endswith("crosses") else phrase.removesuffix("s")


# Comparing two places takes longest to learn.
_WHERE_SHARE = 0.3


def ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where is it, alone or beside another."""
    unique = _unique_names(scene)
    if not unique:
        return None
    if len(unique) < 2 or rng.random() < _WHERE_SHARE:
        return _where(scene, _one(rng, unique), rng)
    first, second = (unique[int(i)] for i in rng.permutation(len(unique))[:2])
    return _relation(first, second, rng)


def _cell(value: float) -> int | None:
    """Third of the picture, or None too close to a border to tell."""
    if min(abs(value - 1 / 3), abs(value - 2 / 3)) < 0.04:
        return None
    return int(value * 3)


def _where(scene: Scene, shape: Shape, rng: np.random.Generator) -> Question | None:
    column, row = _cell(shape.x), _cell(shape.y)
    if column is None or row is None:
        return None
    vertical, horizontal = ("top", "", "bottom")[row], ("left", "", "right")[column]
    place = f"{vertical} {horizontal}".strip() or "center"
    is_only = [other.shape for other in scene.shapes].count(shape.shape) == 1
    name = shape.shape if is_only and rng.random() < 0.4 else _name(shape)
    text = _pick(rng, (f"Where is the {name}?", f"Where in the picture is the {name}?"))
    inside = "in the center" if place == "center" else f"at the {place}"
    return Question("position", text, place.capitalize(), f"The {name} is {inside}.")


def _relation(first: Shape, second: Shape, rng: np.random.Generator) -> Question | None:
    is_horizontal = bool(rng.random() < 0.5)
    gap = first.x - second.x if is_horizontal else first.y - second.y
    if abs(gap) < 0.12:
        return None
    words = ("to the left of", "to the right of") if is_horizontal else ("above", "below")
    truth = words[0] if gap < 0 else words[1]
    short = {"to the left of": "Left", "to the right of": "Right", "above": "Above", "below": "Below"}[truth]
    a, b = _name(first), _name(second)
    if rng.random() < 0.5:
        options = "to the left or to the right of" if is_horizontal else "above or below"
        return Question("position", f"Is the {a} {options} the {b}?", short, f"The {a} is {truth} the {b}.")
    asked = words[int(rng.integers(2))]
    answer = "Yes" if asked == truth else "No"
    return Question("position", f"Is the {a} {asked} the {b}?", answer, f"{answer}, the {a} is {truth} the {b}.")


def ask_size(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Small or large, alone or compared."""
    unique = _unique_names(scene)
    if not unique or scene.kind == "single":
        return None
    if len(unique) > 1 and rng.random() < 0.5:
        first, second = (unique[int(i)] for i in rng.permutation(len(unique))[:2])
        if first.is_large == second.is_large:
            return None
        bigger = first if first.is_large else second
        asked = _pick(rng, ("bigger", "smaller"))
        chosen = bigger if asked == "bigger" else (second if bigger is first else first)
        text = f"Which is {asked}, the {_name(first)} or the {_name(second)}?"
        return Question("size", text, _name(chosen).capitalize(), f"The {_name(chosen)} is {asked}.")
    shape = _one(rng, unique)
    size = "large" if shape.is_large else "small"
    return Question(
        "size", f"Is the {_name(shape)} large or small?", size.capitalize(), f"The {_name(shape)} is {size}."
    )


def ask_word(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What does the sign say?"""
    if scene.sign is None:
        if rng.random() < 0.85:
            return None
        return Question("word", "What does the sign say?", "Unanswerable", "There is no sign in the picture.")
    word = scene.sign.word
    kind = rng.random()
    if kind < 0.75:
        text = _pick(rng, ("What does the sign say?", "What word is written in the picture?", "Read the word.",
                           "Which word is shown?", "What is written here?"))  # fmt: skip
        return Question("word", text, word, f'The sign says "{word}".')
    if kind < 0.87:
        return Question("letter", "What is the first letter of the word?", word[0], f'The first letter is "{word[0]}".')
    asked = word if rng.random() < 0.5 else _pick(rng, TRAINING_WORDS)
    answer = "Yes" if asked == word else "No"
    return Question("letter", f'Is the word "{asked}"?', answer, f'{answer}, the sign says "{word}".')


def ask_chart(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Tallest, shortest, value, number of bars."""
    if not scene.bars:
        return None
    kind = rng.random()
    ordered = sorted(scene.bars, key=lambda bar: bar.value)
    if kind < 0.4:
        asked, bar = ("tallest", ordered[-1]) if rng.random() < 0.6 else ("shortest", ordered[0])
        text = _pick(rng, (f"Which bar is the {asked}?", f"What color is the {asked} bar?"))
        return Question("chart", text, bar.color.capitalize(), f"The {bar.color} bar is the {asked}.")
    if kind < 0.75:
        bar = scene.bars[int(rng.integers(len(scene.bars)))]
        text = _pick(rng, (f"What is the value of the {bar.color} bar?", f"How tall is the {bar.color} bar?"))
        return Question("chart", text, str(bar.value), f"The value of the {bar.color} bar is {bar.value}.")
    if kind < 0.9:
        return Question("chart", "How many bars are there?", str(len(scene.bars)), f"There are {len(scene.bars)} bars.")
    first, second = (scene.bars[int(i)] for i in rng.permutation(len(scene.bars))[:2])
    answer = "Yes" if first.value > second.value else "No"
    sentence = f"{answer}, the {first.color} bar is {'taller' if answer == 'Yes' else 'shorter'}."
    return Question("chart", f"Is the {first.color} bar taller than the {second.color} bar?", answer, sentence)


def ask_absent(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question about something that is not there."""
    color, shape = _candidate(scene, rng, is_present=False)
    if any((s.color, s.shape) == (color, shape) for s in scene.shapes):
        return None
    thing = f"{color} {shape}"
    text = _pick(rng, (f"Where is the {thing}?", f"Is the {thing} large or small?", f"How big is the {thing}?"))
    return Question("absent", text, "Unanswerable", f"There is no {thing} in the picture.")


def ask_choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Multiple choice over colours or shapes; answered with a letter."""
    inner = ask_color(scene, rng) if rng.random() < 0.5 else ask_shape(scene, rng)
    if inner is None:
        return None
    pool = COLOR_NAMES if inner.skill == "color" else SHAPES
    wrong = [name.capitalize() for name in pool if name.capitalize() != inner.short]
    options = [inner.short, *(wrong[int(i)] for i in rng.permutation(len(wrong))[:3])]
    options = [options[int(i)] for i in rng.permutation(4)]
    letter = "ABCD"[options.index(inner.short)]
    lines = "".join(f"\n{name}. {option}" for name, option in zip("ABCD", options, strict=True))
    return Question("choice", f"{inner.text}{lines}{LETTER_SUFFIX}", letter, letter)


def describe(scene: Scene) -> str:
    """A description of several sentences, in reading order."""
    if scene.bars:
        parts = [f"a {bar.color} bar of {bar.value}" for bar in scene.bars]
        return f"A bar chart with {len(parts)} bars: {_join(parts)}."
    objects = sorted(scene.shapes, key=lambda s: (s.y > 0.5, s.x))
    sentences = []
    if scene.sign is not None:
        sentences.append(f'A sign that says "{scene.sign.word}".')
    for shape in objects:
        side = "left" if shape.x < 0.5 else "right"
        level = "top" if shape.y < 0.5 else "bottom"
        size = "large" if shape.is_large else "small"
        sentences.append(f"There is a {size} {_name(shape)} at the {level} {side}.")
    return " ".join(sentences)


def caption(scene: Scene) -> str:
    """One sentence."""
    if scene.bars:
        return f"A bar chart with {len(scene.bars)} bars: {_join([bar.color for bar in scene.bars])}."
    objects = sorted(scene.shapes, key=lambda s: (s.y > 0.5, s.x))
    parts = [_article(_name(shape)) for shape in objects]
    if scene.sign is not None:
        parts.insert(0, f'a sign that says "{scene.sign.word}"')
    text = _join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


SKILLS: dict[str, Asker] = {
    "color": ask_color, "shape": ask_shape, "existence": ask_existence, "count": ask_count, "position": ask_position,
    "size": ask_size, "word": ask_word, "chart": ask_chart, "absent": ask_absent, "choice": ask_choice,
    "tally": ask_tally,
}  # fmt: skip
_WEIGHTS = {
    "shapes": {"color": 32, "shape": 14, "existence": 24, "count": 48, "tally": 34, "position": 26, "size": 7,
               "absent": 4, "choice": 3, "word": 1},
    "single": {"color": 23, "shape": 23, "existence": 30, "count": 4, "position": 14},
    "sign": {"word": 62, "color": 8, "shape": 8, "existence": 8, "count": 8, "position": 6},
    "chart": {"chart": 92, "existence": 4, "word": 2, "absent": 2},
}  # fmt: skip


def ask(scene: Scene, rng: np.random.Generator, *, skill: str | None = None) -> Question | None:
    """Ask one question: of a given skill (None where the scene has no such question), or of the kind's mixture."""
    if skill is not None:
        for _ in range(8):
            question = SKILLS[skill](scene, rng)
            if question is not None:
                return question
        return None
    weights = _WEIGHTS[scene.kind]
    names = list(weights)
    odds = np.array([weights[name] for name in names], dtype=float)
    for _ in range(20):
        question = SKILLS[names[int(rng.choice(len(names), p=odds / odds.sum()))]](scene, rng)
        if question is not None:
            return question
    return None
