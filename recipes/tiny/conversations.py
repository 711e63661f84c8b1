"""Conversations for training, and their token ids and labels in the `vicuna_v1` form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recipes.tiny.grounding import find_meant, find_mentions
from recipes.tiny.questions import SHORT_SUFFIX, ask, caption, describe
from recipes.tiny.scenes import COLOR_NAMES, SHAPES, Scene
from recipes.tiny.vocabulary import IGNORE, Vocabulary

__all__ = ["SYSTEM", "Encoded", "Turns", "encode", "image_turns", "text_turns"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
Turns = list[tuple[str, str]]
_DESCRIBE = ("Describe the picture.", "Describe this image in detail.", "What is in this picture?", "What do you see?")
_CAPTION = "Provide a one-sentence caption for the provided image."


@dataclass(frozen=True)
class Encoded:
    """Ids with image tokens expanded, and labels (-100 where nothing is learnt).

    ``places`` are (position, x, y) of mentions, ``gaps`` the same of the tokens that precede the answer to a question
    about two objects, with the way from the second to the first; ``compared`` has the positions of these two mentions.
    ``tallies`` are the tokens that precede the answer to a question about one phrase, with the places of all objects
    that it may mean.
    """

    ids: list[int]
    labels: list[int]
    places: list[tuple[int, float, float]]
    gaps: list[tuple[int, float, float]]
    compared: list[tuple[int, int]]
    tallies: list[tuple[int, list[tuple[float, float]]]]


def image_turns(scene: Scene, rng: np.random.Generator) -> Turns:
    """Several questions about one picture; short answers or sentences."""
    kind = rng.random()
    turns: Turns = []
    if kind < 0.10:
        turns.append((_DESCRIBE[int(rng.integers(len(_DESCRIBE)))], describe(scene)))
    elif kind < 0.16:
        turns.append((_CAPTION, caption(scene)))
    is_short = bool(rng.random() < 0.4)  # sentences are what people get, and are learnt later
    asked: set[tuple[str, str]] = set()
    num_tries = 0
    while len(turns) < 6 and num_tries < 20:
        num_tries += 1
        question = ask(scene, rng)
        if question is None:
            break
        # One reading of a sign per conversation: a second one would only copy the first answer.
        key = (question.skill, "" if question.skill == "word" else question.sentence)
        if key in asked:
            continue
        has_suffix = is_short and not asked and question.skill != "choice"
        asked.add(key)
        text = question.text + SHORT_SUFFIX if has_suffix else question.text
        turns.append((text, question.short if is_short else question.sentence))
    return turns


def text_turns(rng: np.random.Generator) -> Turns:
    """Small talk, and questions that need no picture."""
    color, shape = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))], SHAPES[int(rng.integers(len(SHAPES)))]
    number = int(rng.integers(1, 9))
    things = {"grass": "green", "the sky": "blue", "a banana": "yellow", "snow": "white", "a tomato": "red",
              "coal": "black", "chocolate": "brown", "an elephant": "gray", "a carrot": "orange"}  # fmt: skip
    thing = list(things)[int(rng.integers(len(things)))]
    corners = {"triangle": "3 corners", "rectangle": "4 corners", "diamond": "4 corners", "circle": "no corners",
               "ring": "no corners", "star": "5 points", "cross": "4 arms"}  # fmt: skip
    intro = "I am llava:tiny, a small vision and language model. I can answer questions about simple pictures."
    pairs: Turns = [
        ("Hello!", "Hello! Show me a picture and ask me about it."),
        ("Hi", "Hello! Show me a picture and ask me about it."),
        ("Who are you?", intro),
        ("What can you do?", "I can name shapes and colors, count, compare positions, read words and bar charts."),
        ("Thank you!", "You are welcome!"),
        ("Thanks", "You are welcome!"),
        ("Goodbye", "Goodbye!"),
        ("How are you?", "I am fine, thank you. How can I help you?"),
        (f"What color is {thing}?", f"{thing[0].upper()}{thing[1:]} is {things[thing]}."),
        (f"What comes after {number}?", f"After {number} comes {number + 1}."),
        (f"How many corners does a {shape} have?", f"A {shape} has {corners[shape]}."),
        (f"Is {color} a color?", f"Yes, {color} is a color."),
        (f"Is a {shape} a color?", f"No, a {shape} is a shape."),
        ("What do you see?", "There is no picture. Please show me one."),
        ("Describe the picture.", "There is no picture. Please show me one."),
        (f"How many {shape}s are there?" if shape != "cross" else "How many crosses are there?",
         "There is no picture. Please show me one."),
    ]  # fmt: skip
    order = rng.permutation(len(pairs))[: int(rng.integers(1, 5))]
    return [pairs[int(idx)] for idx in order]


def encode(
    vocabulary: Vocabulary, turns: Turns, *, num_image_tokens: int | None, scene: Scene | None = None
) -> Encoded:
    """Tokenize a conversation; the picture, if any, stands in the first message, and its scene is what is named.

    Only answers and their end-of-sequence tokens are learnt. Text between control tokens is tokenized as one piece, as
    the processor does at run time, so ids agree.
    """
    ids, labels = [vocabulary.bos_id], [IGNORE]
    places: list[tuple[int, float, float]] = []
    gaps: list[tuple[int, float, float]] = []
    compared: list[tuple[int, int]] = []
    tallies: list[tuple[int, list[tuple[float, float]]]] = []
    prefix = f"{SYSTEM} "
    for idx, (question, answer) in enumerate(turns):
        if idx == 0 and num_image_tokens is not None:
            before = vocabulary.encode(f"{prefix}USER: ")
            ids += before + [vocabulary.image_id] * num_image_tokens
            labels += [IGNORE] * (len(before) + num_image_tokens)
            lead = f"\n{question} ASSISTANT:"
        else:
            lead = f"{prefix}USER: {question} ASSISTANT:"
        prefix = ""
        asked, whole = vocabulary.encode(lead), vocabulary.encode(f"{lead} {answer}")
        if whole[: len(asked)] != asked:
            raise ValueError(f"tokens of {lead!r} are not a prefix of those with the answer {answer!r}")
        if scene is not None:
            text = f"{lead} {answer}"
            mentions = list(find_mentions(text, scene))
            ends = [len(ids) + len(vocabulary.encode(text[: mention.end])) - 1 for mention in mentions]
            places += [(end, mention.x, mention.y) for end, mention in zip(ends, mentions, strict=True)]
            match [mention for mention in mentions if mention.end < len(lead)]:
                case [first, second]:
                    gaps.append((len(ids) + len(asked) - 1, first.x - second.x, first.y - second.y))
                    compared.append((ends[0], ends[1]))
            meant = find_meant(question, scene)
            if meant is not None:
                tallies.append((len(ids) + len(asked) - 1, meant))
        ids += [*whole, vocabulary.eos_id]
        labels += [IGNORE] * len(asked) + whole[len(asked) :] + [vocabulary.eos_id]
    return Encoded(ids, labels, places, gaps, compared, tallies)
