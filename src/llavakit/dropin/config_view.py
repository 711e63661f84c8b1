"""The model's configuration as code written for transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from llavakit.core.config import LlavaConfig, TextConfig, VisionConfig
from llavakit.core.errors import UnsupportedAttributeError
from llavakit.dropin.attributes import missing_attribute

__all__ = ["ConfigView", "view_config"]


class ConfigView:
    """Reads a configuration under transformers' names. Nothing can be changed; setting the present value does nothing.

    Attributes
    ----------
    text_config, vision_config : ConfigView
        Of the whole model's configuration.

    Raises
    ------
    UnsupportedAttributeError
        For an attribute that is not there, or that is set to another value.
    """

    def __init__(self, config: LlavaConfig | TextConfig | VisionConfig, extras: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_extras", dict(extras))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and name not in ("_config", "_extras"):  # absent while an instance is unpickled
            if name in self._extras:
                return self._extras[name]
            if hasattr(self._config, name):
                return getattr(self._config, name)
        raise missing_attribute("config", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(self, name):
            raise missing_attribute("config", name)
        if value != (found := getattr(self, name)):
            raise UnsupportedAttributeError(
                f"config.{name} is {found!r} and cannot be set to {value!r}: a model is what its config.json says. "
                "Settings of generate() belong into generation_config.",
                name=name,
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigView) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"config({self.to_dict()!r})"

    def get_text_config(self) -> ConfigView:
        """Return the decoder's part."""
        return self._extras.get("text_config", self)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict of its own."""
        values = {field.name: getattr(self._config, field.name) for field in fields(self._config)} | self._extras
        return {name: value.to_dict() if isinstance(value, ConfigView) else value for name, value in values.items()}


def view_config(config: LlavaConfig, *, name_or_path: str) -> ConfigView:
    """Return transformers' view of a model's configuration."""
    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = ConfigView(config.text_config, {"model_type": "llama", "use_cache": True, **tokens})
    vision = ConfigView(config.vision_config, {"model_type": "clip_vision_model"})
    return ConfigView(
        config,
        {
            "text_config": text,
            "vision_config": vision,
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": config.image_token_id,
            "image_seq_length": config.num_image_tokens,
            "tie_word_embeddings": config.text_config.tie_word_embeddings,
            "is_encoder_decoder": False,
            "use_cache": True,
            "_name_or_path": name_or_path,
            "name_or_path": name_or_path,
        },
    )
