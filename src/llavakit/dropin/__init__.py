"""transformers' surface for LLaVA-1.5: change the import, keep the code."""

from llavakit.dropin.batch_feature import BatchFeature
from llavakit.dropin.generation_config import GenerationConfig
from llavakit.dropin.modeling import AutoModelForImageTextToText, LlavaForConditionalGeneration
from llavakit.dropin.pipeline import pipeline
from llavakit.dropin.processor import AutoProcessor, LlavaProcessor
from llavakit.dropin.quantization import BitsAndBytesConfig

__all__ = [
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "BatchFeature",
    "BitsAndBytesConfig",
    "GenerationConfig",
    "LlavaForConditionalGeneration",
    "LlavaProcessor",
    "pipeline",
]
