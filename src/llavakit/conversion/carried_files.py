"""What a folder in the llava-hf format says beside its weights, taken over as it is: pictures, tokens, templates.

A conversion changes weights. How pictures and prompts are prepared is the model's own, and other programs read it.
"""

from __future__ import annotations

from pathlib import Path

from llavakit.core.errors import ConfigError

__all__ = ["TEMPLATE_FILES", "read_carried_files"]

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_NAMES = (
    "preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json", *TEMPLATE_FILES,
)  # fmt: skip


def read_carried_files(folder: Path) -> dict[str, str]:
    """Return name and text of each of these files that is there.

    Raises
    ------
    ConfigError
        If one cannot be read.
    """
    texts = {}
    for name in _NAMES:
        try:
            if (folder / name).is_file():
                texts[name] = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name} of {folder.name!r} cannot be read ({error}). Fetch the model again.") from error
    return texts
