"""Both files of a GGUF pair, laid out: headers, and which type every tensor gets where."""

from __future__ import annotations

from llavakit.conversion.gguf_metadata import TextExtras, projector_metadata, text_metadata
from llavakit.core.config import LlavaConfig
from llavakit.core.shapes import expected_tensors
from llavakit.weights.gguf_writer import plan_gguf
from llavakit.weights.mixtures import Mixture, choose_type, choose_vision_type
from llavakit.weights.names import to_gguf
from llavakit.weights.streamed_file import FilePlan

__all__ = ["plan_pair"]


def plan_pair(
    config: LlavaConfig, mixture: Mixture, extras: TextExtras, *, vision_dtype: str
) -> tuple[FilePlan, FilePlan]:
    """Lay out the language model and the projector.

    Raises
    ------
    ConfigError
        If the format cannot say what the configuration says.
    """
    shapes = expected_tensors(config)
    text_names = [name for name in shapes if name.startswith(("language_model", "lm_head"))]
    text = plan_gguf(
        text_metadata(config, mixture, extras),
        [(to_gguf(name), name, choose_type(name, shapes[name], mixture, config), shapes[name]) for name in text_names],
    )
    vision = plan_gguf(
        projector_metadata(config, dtype=vision_dtype, name=f"{extras.name} projector"),
        [
            (to_gguf(name), name, choose_vision_type(name, shape, vision_dtype), shape)
            for name, shape in shapes.items()
            if name not in text_names
        ],
    )
    return text, vision
