"""A random-weight LLaVA in the llava-hf folder format, small enough for every test.

The folder is written by transformers, so that its dialect is the real one; the tokenizer is a byte-level
fallback vocabulary in the manner of LLaMA's tokenizer.json, with a few merges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CHAT_TEMPLATE", "VOCAB_SIZE", "make_tiny_llava", "tiny_config", "write_processor_files"]

_WORDS = ["▁USER", "▁ASSISTANT", "▁What", "▁is", "▁the", "▁a", "▁red", "▁circle", "▁picture", "▁this", "▁in", "▁of"]
_CHARS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-\n"
IMAGE_SIZE = 28
PATCH_SIZE = 14

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] != 'assistant' %}{{ content['text'] + ' ' }}"
    "{% else %}{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _tokenizer_json() -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [char for char in dict.fromkeys(_CHARS) if char != "\n"]
    merges: list[list[str]] = []
    for word in _WORDS:
        current = word[0]
        for char in word[1:]:
            pair = [current, char]
            current += char
            if pair not in merges:
                merges.append(pair)
            if current not in pieces:
                pieces.append(current)
    vocab = {piece: idx for idx, piece in enumerate(pieces)}
    specials = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    ids = {**vocab, "<image>": len(vocab), "<pad>": len(vocab) + 1}
    added = [
        {"id": ids[text], "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for text in specials
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


_TOKENIZER = _tokenizer_json()
IMAGE_TOKEN_ID: int = len(_TOKENIZER["model"]["vocab"])
VOCAB_SIZE: int = -(-(IMAGE_TOKEN_ID + 2) // 64) * 64


def write_processor_files(folder: Path, *, image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE) -> None:
    """Write tokenizer, image processor, processor and chat template as llava-hf repositories have them."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    files: dict[str, Any] = {
        "tokenizer.json": _TOKENIZER,
        "tokenizer_config.json": {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "pad_token": "<pad>", "clean_up_tokenization_spaces": False, "legacy": False,
            "model_max_length": 1000000000000000019884624838656, "padding_side": "left",
            "tokenizer_class": "LlamaTokenizer", "image_token": "<image>",
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": image_size},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": image_size, "width": image_size},
            "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, "image_mean": mean,
            "image_std": std, "do_convert_rgb": True,
        },
        "processor_config.json": {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": patch_size,
            "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def tiny_config(**overrides: Any) -> Any:
    """Return transformers' LlavaConfig of the tiny model; overrides go to the text (``text_*``) or vision part."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": IMAGE_TOKEN_ID + 1, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 16,
    }  # fmt: skip
    text.update({key[5:]: value for key, value in overrides.items() if key.startswith("text_")})
    vision.update({key[7:]: value for key, value in overrides.items() if key.startswith("vision_")})
    return LlavaConfig(
        text_config=LlamaConfig(**text).to_dict(),
        vision_config=CLIPVisionConfig(**vision).to_dict(),
        image_token_index=IMAGE_TOKEN_ID,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=False,
    )


def make_tiny_llava(folder: Path, *, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Any:
    """Write a tiny model with random weights to ``folder``; return transformers' model of it.

    The weights are drawn wide enough (standard deviation 0.2 at width 64) that attention and logits are far from
    uniform, so that a wrong stage cannot hide.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = tiny_config(**overrides)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    write_processor_files(
        folder, image_size=config.vision_config.image_size, patch_size=config.vision_config.patch_size
    )
    return model
