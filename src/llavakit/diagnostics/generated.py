"""Pictures, texts and questions for comparisons and measurements: generated, the same for the same seed."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["SAMPLE_TEXTS", "Question", "encode_jpeg", "make_picture", "make_pictures", "make_questions"]

_SIZES = (
    (640, 480),
    (480, 640),
    (336, 336),
    (1024, 300),
    (97, 311),
    (64, 64),
    (31, 7),
    (1, 1),
    (1200, 900),
    (337, 335),
)
_MODES = ("RGB", "RGB", "L", "RGBA", "P", "1", "CMYK", "LA")

# Languages, emoji, whitespace, numbers, control words: what tokenizers get wrong.
SAMPLE_TEXTS = (
    "What is in this picture?",
    " leading and trailing ",
    "two  spaces,\ttab,\nnewline\n\n",
    "",
    " ",
    "Grüße aus Köln – naïve café",
    "日本語の文章と中文字符",
    "Привет, мир! 123.456,78",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u200b",
    "USER: hi ASSISTANT: hello",
    "def f(x):\n    return x**2  # comment",
    "ẞ ﬁ Å Ω ½ ﷺ",
    "▁ underline ▁▁",
    "0x1F 1e-5 1,000,000",
)
_ASKED = (
    "What is in this picture?",
    "How many circles are there?",
    "Describe the scene.",
    "Is there a red square? Answer yes or no.",
    "What is written here, and where?",
    "Compare what you see.",
)


@dataclass(frozen=True)
class Question:
    """Words and the pictures before them."""

    text: str
    images: tuple[Image.Image, ...]


def make_picture(seed: int, *, width: int = 640, height: int = 480, mode: str = "RGB") -> Image.Image:
    """Return a picture with flat areas, slopes, edges and noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(picture)
    top, left = generator.integers(0, (max(1, height // 2), max(1, width // 2)))
    pixels[top : top + height // 3, left : left + width // 3] = generator.integers(0, 256, 3)
    noisy = pixels[height // 2 :, width // 2 :]
    noisy[...] = generator.integers(0, 256, noisy.shape, dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        alpha = generator.integers(0, 256, (height, width), dtype=np.uint8)
        picture.putalpha(Image.fromarray(alpha))
    return picture.convert(mode)


def make_pictures(count: int, *, seed: int = 0, modes: tuple[str, ...] = _MODES) -> list[Image.Image]:
    """Return pictures of many sizes and modes."""
    pictures = []
    for idx in range(count):
        width, height = _SIZES[idx % len(_SIZES)]
        # Coprime steps: every size meets every mode in time.
        pictures.append(make_picture(seed + idx, width=width, height=height, mode=modes[(idx * 3) % len(modes)]))
    return pictures


def make_questions(count: int, *, seed: int = 0, max_images: int = 3) -> list[Question]:
    """Return questions with 0 to ``max_images`` pictures each, all counts in turn."""
    generator = np.random.default_rng(seed)
    questions = []
    for idx in range(count):
        # One picture first: what the model is for, even when only one question is asked.
        num_images = (idx + 1) % (max_images + 1)
        images = tuple(
            make_picture(int(generator.integers(1 << 31)), width=int(generator.integers(40, 700)),
                         height=int(generator.integers(40, 700)))
            for _ in range(num_images)
        )  # fmt: skip
        questions.append(Question(f"{_ASKED[idx % len(_ASKED)]} ({int(generator.integers(1000))})", images))
    return questions


def encode_jpeg(picture: Image.Image) -> bytes:
    """Return the bytes of a JPEG file, quality 90."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
