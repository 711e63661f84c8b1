"""Prompts that several tests ask: with a picture, with a picture and an answer, without."""

from __future__ import annotations

from PIL import Image

from llavakit.diagnostics.quality import QualityPrompt
from tests.conftest import REPOSITORY

PICTURE = Image.open(REPOSITORY / "examples" / "shapes.png")
PROMPTS = [
    QualityPrompt("How many red circles are there?", (PICTURE,)),
    QualityPrompt("What color is the star?", (PICTURE,), "Blue"),
    QualityPrompt("Where is it?"),
]
