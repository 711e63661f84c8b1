"""From a model that was found to its opened files, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llavakit.weights.checkpoint import Checkpoint, open_checkpoint
from llavakit.weights.gguf_checkpoint import GgufVocabulary, open_gguf_checkpoint
from llavakit.weights.store import ResolvedModel

__all__ = ["OpenedModel", "open_resolved"]


@dataclass(frozen=True)
class OpenedModel:
    """A model's files, opened.

    Attributes
    ----------
    checkpoint : Checkpoint
    processor_folder : Path, optional
        Where processor and tokenizer files lie; GGUF files have none beside them.
    vocabulary : GgufVocabulary, optional
        Of GGUF files.
    preset : str, optional
        What a GGUF file of ours says to use.
    """

    checkpoint: Checkpoint
    processor_folder: Path | None
    vocabulary: GgufVocabulary | None
    preset: str | None = None

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        return tuple(sorted({tensor.file.path for tensor in self.checkpoint.tensors.values()}))


def open_resolved(found: ResolvedModel) -> OpenedModel:
    """Open a model's files.

    Raises
    ------
    WeightsError, ConfigError, ModelNotFoundError
        As `open_checkpoint` and `open_gguf_checkpoint`.
    """
    if found.gguf_file is None:
        return OpenedModel(open_checkpoint(found.folder, vision_folder=found.vision_folder), found.folder, None)
    checkpoint, vocabulary = open_gguf_checkpoint(found.gguf_file, projector=found.mmproj_file)
    return OpenedModel(checkpoint, None, vocabulary, vocabulary.preset)
