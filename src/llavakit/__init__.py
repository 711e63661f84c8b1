"""LLaVA-1.5: ask questions about pictures.

``import llavakit`` is cheap: it loads no torch and none of its own layers. A name below is imported from
its home when it is first used (PEP 562), so that the command line can print its help at once.
"""

from __future__ import annotations

from llavakit.core.version import __version__
from llavakit.core.waiting import wait_briefly

# Type checkers take this name for true. `typing` itself would be half of the import's time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from llavakit.api import LoadedModel as LoadedModel
    from llavakit.api import Stream as Stream
    from llavakit.api import load as load
    from llavakit.core.errors import AccessError as AccessError
    from llavakit.core.errors import BadImageError as BadImageError
    from llavakit.core.errors import CapacityError as CapacityError
    from llavakit.core.errors import ConfigError as ConfigError
    from llavakit.core.errors import ConstraintError as ConstraintError
    from llavakit.core.errors import ContextOverflowError as ContextOverflowError
    from llavakit.core.errors import DiskFullError as DiskFullError
    from llavakit.core.errors import DownloadError as DownloadError
    from llavakit.core.errors import FormatError as FormatError
    from llavakit.core.errors import ImageSourceError as ImageSourceError
    from llavakit.core.errors import LlavakitError as LlavakitError
    from llavakit.core.errors import MissingDependencyError as MissingDependencyError
    from llavakit.core.errors import MissingTensorError as MissingTensorError
    from llavakit.core.errors import ModelNotFoundError as ModelNotFoundError
    from llavakit.core.errors import NonFiniteError as NonFiniteError
    from llavakit.core.errors import OverloadedError as OverloadedError
    from llavakit.core.errors import PromptError as PromptError
    from llavakit.core.errors import RefusedError as RefusedError
    from llavakit.core.errors import RequestError as RequestError
    from llavakit.core.errors import SamplingError as SamplingError
    from llavakit.core.errors import ShapeError as ShapeError
    from llavakit.core.errors import StoreError as StoreError
    from llavakit.core.errors import UnexpectedTensorError as UnexpectedTensorError
    from llavakit.core.errors import UnloadedError as UnloadedError
    from llavakit.core.errors import UnsupportedAttributeError as UnsupportedAttributeError
    from llavakit.core.errors import UnsupportedFieldError as UnsupportedFieldError
    from llavakit.core.errors import WeightsError as WeightsError
    from llavakit.core.types import GenerationResult as GenerationResult
    from llavakit.core.types import Message as Message
    from llavakit.core.types import SamplingParams as SamplingParams
    from llavakit.core.types import Timings as Timings
    from llavakit.core.types import TokenEvent as TokenEvent
    from llavakit.core.types import TokenLogprob as TokenLogprob
    from llavakit.dropin import AutoModelForImageTextToText as AutoModelForImageTextToText
    from llavakit.dropin import AutoProcessor as AutoProcessor
    from llavakit.dropin import BitsAndBytesConfig as BitsAndBytesConfig
    from llavakit.dropin import GenerationConfig as GenerationConfig
    from llavakit.dropin import LlavaForConditionalGeneration as LlavaForConditionalGeneration
    from llavakit.dropin import LlavaProcessor as LlavaProcessor
    from llavakit.dropin import pipeline as pipeline
    from llavakit.processing.sources import SourcePolicy as SourcePolicy

_ERRORS = (
    "AccessError", "BadImageError", "CapacityError", "ConfigError", "ConstraintError", "ContextOverflowError",
    "DiskFullError", "DownloadError", "FormatError", "ImageSourceError", "LlavakitError", "MissingDependencyError",
    "MissingTensorError", "ModelNotFoundError", "NonFiniteError", "OverloadedError", "PromptError", "RefusedError",
    "RequestError", "SamplingError", "ShapeError", "StoreError", "UnexpectedTensorError", "UnloadedError",
    "UnsupportedAttributeError", "UnsupportedFieldError", "WeightsError",
)  # fmt: skip

_HOMES = {
    "AutoModelForImageTextToText": "llavakit.dropin",
    "AutoProcessor": "llavakit.dropin",
    "BitsAndBytesConfig": "llavakit.dropin",
    "GenerationConfig": "llavakit.dropin",
    "GenerationResult": "llavakit.core.types",
    "LlavaForConditionalGeneration": "llavakit.dropin",
    "LlavaProcessor": "llavakit.dropin",
    "LoadedModel": "llavakit.api",
    "Message": "llavakit.core.types",
    "SamplingParams": "llavakit.core.types",
    "SourcePolicy": "llavakit.processing.sources",
    "Stream": "llavakit.api",
    "Timings": "llavakit.core.types",
    "TokenEvent": "llavakit.core.types",
    "TokenLogprob": "llavakit.core.types",
    "load": "llavakit.api",
    "pipeline": "llavakit.dropin",
    **dict.fromkeys(_ERRORS, "llavakit.core.errors"),
}

# Names of transformers that are not here, and what to use.
_SUBSTITUTES = {
    "AutoConfig": "the configuration of a model is its attribute `config`",
    "AutoImageProcessor": "use AutoProcessor.from_pretrained(...).image_processor",
    "AutoModel": "use LlavaForConditionalGeneration",
    "AutoModelForCausalLM": "use LlavaForConditionalGeneration",
    "AutoModelForVision2Seq": "use AutoModelForImageTextToText",
    "AutoTokenizer": "use AutoProcessor.from_pretrained(...).tokenizer",
    "CLIPImageProcessor": "use AutoProcessor.from_pretrained(...).image_processor",
    "LlamaTokenizer": "use AutoProcessor.from_pretrained(...).tokenizer",
    "LlamaTokenizerFast": "use AutoProcessor.from_pretrained(...).tokenizer",
    "LlavaConfig": "the configuration of a model is its attribute `config`",
    "LlavaModel": "use LlavaForConditionalGeneration; its torch module is the attribute `model`",
    "LogitsProcessorList": "generate takes settings only; see docs/transformers.md",
    "StoppingCriteria": "use stop_strings, eos_token_id or max_new_tokens",
    "StoppingCriteriaList": "use stop_strings, eos_token_id or max_new_tokens",
    "TextIteratorStreamer": "use that of transformers, which generate takes, or llavakit.load(...).stream(...)",
    "TextStreamer": "use that of transformers, which generate takes, or llavakit.load(...).stream(...)",
    "Trainer": "training is not part of this release",
    "set_seed": "use torch.manual_seed, or seed= of generate",
}

__all__ = ["__version__", *sorted(_HOMES)]

wait_briefly()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        advice = f": {_SUBSTITUTES[name]}" if name in _SUBSTITUTES else ""
        raise AttributeError(f"module 'llavakit' has no attribute {name!r}{advice}")
    from importlib import import_module  # not before it is needed: the program starts with this file

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
