"""The Python surface: load a model, ask it about pictures."""

from llavakit.api.loaded_model import LoadedModel, Stream
from llavakit.api.loading import load

__all__ = ["LoadedModel", "Stream", "load"]
