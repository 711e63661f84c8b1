"""Conversations as Jinja templates, for programs that prepare prompts by them: one pair per preset.

In a folder a message's content is a list of blocks, as in llava-hf's checkpoints. In a GGUF file it is text: programs
of llama.cpp's world put the picture's mark into the user's text themselves.
"""

from __future__ import annotations

from llavakit.processing.chat import TEMPLATES

__all__ = ["FOLDER_TEMPLATES", "GGUF_TEMPLATES"]

_SYSTEM = (TEMPLATES["vicuna_v1"] or "").replace("'", "\\'") + " "
_END = "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"


def _of_blocks(*, before: str, after_answer: str) -> str:
    """Pictures first and words after, as in the published folders; where training needs answers, they are marked."""
    return (
        "{% for message in messages %}"
        + before
        + "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
        "{% for block in message['content'] %}"
        "{% if block['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
        "{% for block in message['content'] %}{% if block['type'] == 'text' %}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ block['text'] + '" + after_answer + "' }}{% endgeneration %}"
        "{% else %}{{ block['text'] + ' ' }}{% endif %}"
        "{% endif %}{% endfor %}" + _END
    )


def _of_text(*, before: str, after_answer: str) -> str:
    return (
        "{% for message in messages %}" + before + "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + '" + after_answer + "' }}"
        "{% endif %}" + _END
    )


_SAY_SYSTEM = "{% if loop.first and message['role'] != 'system' %}{{ '" + _SYSTEM + "' }}{% endif %}"
_BY_PRESET = {
    "original": {"before": _SAY_SYSTEM, "after_answer": "</s>"},
    "hf": {"before": "", "after_answer": " "},
}
FOLDER_TEMPLATES = {preset: _of_blocks(**parts) for preset, parts in _BY_PRESET.items()}
"""For ``chat_template.jinja``, by preset."""
GGUF_TEMPLATES = {preset: _of_text(**parts) for preset, parts in _BY_PRESET.items()}
"""For ``tokenizer.chat_template``, by preset."""
