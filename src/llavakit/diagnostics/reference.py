"""transformers' model and processor beside ours. The only module of llavakit that imports transformers.

In: a loaded model. Out: a `Reference` that runs the stages of the same model in transformers. Guaranteed: the
import happens here and only when a reference is built; the published 7B fits beside ours, because the weights
are shared where two copies would not fit into memory.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, MissingDependencyError
from llavakit.model.layers import Embedding, Linear
from llavakit.model.llava import Llava
from llavakit.model.stored_matrix import StoredMatrix

__all__ = ["Reference", "import_transformers"]

_MIN_MAJOR_VERSION = 5
# Parts of a full CLIP tower that LLaVA's features do not depend on: blocks above the feature layer, the final norm.
_UNUSED = ("post_layernorm", "encoder.layers.")


def import_transformers() -> ModuleType:
    """Import transformers, or say how to get it.

    Raises
    ------
    MissingDependencyError
        If it is absent or too old.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "comparing a model needs the transformers library, which is not installed "
            f"({error}). Install it: pip install 'llavakit[verify]'. No other command needs it."
        ) from error
    version = str(transformers.__version__)
    if int(version.split(".", maxsplit=1)[0]) < _MIN_MAJOR_VERSION:
        raise MissingDependencyError(
            f"transformers {version} is installed, {_MIN_MAJOR_VERSION}.0 or newer is needed to compare a model. "
            "Upgrade it: pip install 'llavakit[verify]'."
        )
    return transformers  # type: ignore[no-any-return]


class Reference:
    """One model inside transformers.

    Parameters
    ----------
    model : Llava
        Ours, on the CPU.
    folder : Path
        The model's files.
    is_shared : bool
        Use the tensors of ``model`` instead of reading the files a second time. A mistake in reading the files
        shows only without it. Matrices that stay as stored are expanded to float32.
    is_expanded_on_use : bool
        Expand them anew for every product, for models too large in float32: 7B takes 28 GB. Slow.

    Raises
    ------
    MissingDependencyError
        If transformers is absent.
    ConfigError
        If transformers does not take the folder's files.
    """

    def __init__(self, model: Llava, folder: Path, *, is_shared: bool, is_expanded_on_use: bool = False) -> None:
        self._transformers = import_transformers()
        self.version = str(self._transformers.__version__)
        self.is_shared = is_shared
        self._folder = folder
        self._config, self._dtype = model.config, model.dtype
        vocab_size = model.config.text_config.vocab_size
        # transformers embeds the image token before it overwrites it, so that one outside the vocabulary needs a
        # stand-in; 0 is the unknown token of every LLaMA vocabulary, and no prompt here holds it.
        is_inside = model.config.image_token_id < vocab_size
        self.image_token_id = model.config.image_token_id if is_inside else 0
        with _quiet():
            self.model = self._build_shared(model, is_expanded_on_use) if is_shared else self._read(model)
        # Padding is masked; it only must not be the picture's stand-in.
        self._pad_token_id = model.config.eos_token_id
        self.model.generation_config = self._transformers.GenerationConfig(pad_token_id=self._pad_token_id)

    def _read(self, model: Llava) -> Any:
        cls = self._transformers.LlavaForConditionalGeneration
        try:
            loaded = cls.from_pretrained(
                str(self._folder), dtype=model.dtype, attn_implementation="sdpa", local_files_only=True
            )
        except Exception as error:
            raise ConfigError(f"transformers {self.version} cannot read {str(self._folder)!r}: {error}") from error
        return loaded.eval()

    def _build_shared(self, model: Llava, is_expanded_on_use: bool) -> Any:
        config = make_transformers_config(self._transformers, model.config, image_token_id=self.image_token_id)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            theirs = self._transformers.LlavaForConditionalGeneration(config)
        ours = dict(model.named_parameters())
        stored = {f"{name}.weight": part for name, part in model.named_modules() if getattr(part, "matrix", None)}
        state = {}
        for name, parameter in list(theirs.named_parameters()):
            own_name = _our_name(name)
            if own_name in ours:
                state[name] = ours[own_name].data
            elif own_name in stored and is_expanded_on_use:
                theirs.set_submodule(name.removesuffix(".weight"), _Expanding(stored[own_name]))
            elif own_name in stored:
                state[name] = _expand(stored[own_name])
            elif any(part in own_name for part in _UNUSED):
                state[name] = torch.zeros(parameter.shape, dtype=model.dtype)
            else:
                raise ConfigError(f"transformers {self.version} has a parameter {name!r} that llavakit does not know.")
        theirs.load_state_dict(state, strict=False, assign=True)
        _rebuild_buffers(theirs)
        if config.tie_word_embeddings and not is_expanded_on_use:
            theirs.tie_weights()
        return theirs.eval()

    def make_image_processor(self) -> Any:
        """Return transformers' image processor of this folder, PIL back end.

        Raises
        ------
        ConfigError
            If the folder has no processor file that transformers takes.
        """
        if not (self._folder / "preprocessor_config.json").is_file():
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

            size = self._config.vision_config.image_size
            return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        try:
            with _quiet():
                return self._transformers.AutoImageProcessor.from_pretrained(
                    str(self._folder), backend="pil", local_files_only=True
                )
        except Exception as error:
            raise ConfigError(f"transformers cannot read the image processor: {error}") from error

    def make_tokenizer(self) -> Any:
        """Return transformers' tokenizer of this folder.

        Raises
        ------
        ConfigError
            If transformers cannot read it.
        """
        try:
            with _quiet():
                return self._transformers.AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
        except Exception as error:
            raise ConfigError(f"transformers cannot read the tokenizer: {error}") from error

    def process_image(self, processor: Any, picture: Image.Image) -> Tensor:
        """Return the pixels (3, S, S) that transformers makes of a picture."""
        with _quiet():
            pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        result: Tensor = torch.as_tensor(np.asarray(pixels))[0]
        return result

    @torch.inference_mode()
    def encode_patches(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, S, S) to the tower's features at the feature layer (N, P, D)."""
        layer = self._config.vision_feature_layer
        outputs = self.model.model.vision_tower(pixels.to(self._dtype), output_hidden_states=True)
        states: Tensor = outputs.hidden_states[layer]
        return states if self._config.vision_feature_select_strategy == "full" else states[:, 1:]

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, S, S) to what the language model sees (N, num_image_tokens, D)."""
        features = self.model.get_image_features(
            pixel_values=pixels.to(self._dtype),
            vision_feature_layer=self._config.vision_feature_layer,
            vision_feature_select_strategy=self._config.vision_feature_select_strategy,
        ).pooler_output
        return torch.stack(list(features))

    @torch.inference_mode()
    def compute_logits(self, token_ids: Sequence[int], pixels: Tensor | None) -> Tensor:
        """Return the logits (T, V) of one prompt."""
        return self.model(**self._inputs([token_ids], pixels), use_cache=False).logits[0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        pixels: Tensor | None,
        *,
        max_new_tokens: int,
        streamer: Any = None,
    ) -> list[list[int]]:
        """Decode greedily, all prompts side by side padded on the left; always ``max_new_tokens`` tokens each.

        Parameters
        ----------
        prompts : sequence of id sequences
            Pictures as runs of our image token.
        pixels : tensor of shape (N, 3, S, S), optional
            Of all prompts, in order.
        streamer : optional
            An object with transformers' streamer interface, for a single prompt.
        """
        inputs = self._inputs(prompts, pixels)
        settings = self._transformers.GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=None, pad_token_id=self._pad_token_id
        )
        with _quiet():
            output = self.model.generate(**inputs, generation_config=settings, streamer=streamer)
        return [row.tolist() for row in output[:, inputs["input_ids"].shape[1] :]]

    def _inputs(self, prompts: Sequence[Sequence[int]], pixels: Tensor | None) -> dict[str, Tensor]:
        longest = max(len(ids) for ids in prompts)
        rows = [[self._pad_token_id] * (longest - len(ids)) + [self._map(token) for token in ids] for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
        is_stand_in = self.image_token_id != self._config.image_token_id
        if is_stand_in and any(self.image_token_id in ids for ids in prompts):
            raise ConfigError(f"a prompt holds the id {self.image_token_id}, which stands in for pictures here.")
        if pixels is not None:
            inputs["pixel_values"] = pixels.to(self._dtype)
        return inputs

    def _map(self, token_id: int) -> int:
        return self.image_token_id if token_id == self._config.image_token_id else token_id


class _Expanding(nn.Module):
    """A matrix of ours in the place of one of theirs: expanded for one product, then forgotten."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.part, Embedding):
            return self.part(x)  # type: ignore[no-any-return]
        return F.linear(x, _expand(self.part), self.part.bias)  # type: ignore[arg-type]


def _expand(part: nn.Module) -> Tensor:
    """Return the weight (N, K) in float32, its rows in transformers' order."""
    weight: Tensor = cast("StoredMatrix", part.matrix).expand()
    head_dim = part.interleaved_head_dim if isinstance(part, Linear) else None
    if head_dim is None:
        return weight
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def make_transformers_config(transformers: ModuleType, config: LlavaConfig, *, image_token_id: int) -> Any:
    """Translate our configuration; every number is written, so that no default of transformers counts."""
    text, vision = config.text_config, config.vision_config
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers, num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads, head_dim=text.head_dim, hidden_act=text.hidden_act,
            max_position_embeddings=text.max_position_embeddings, rms_norm_eps=text.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta}, attention_bias=False,
            mlp_bias=False, tie_word_embeddings=text.tie_word_embeddings, bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id,
        ).to_dict(),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=vision.hidden_size, intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_hidden_layers, num_attention_heads=vision.num_attention_heads,
            num_channels=vision.num_channels, image_size=vision.image_size, patch_size=vision.patch_size,
            hidden_act=vision.hidden_act, layer_norm_eps=vision.layer_norm_eps,
        ).to_dict(),
        image_token_index=image_token_id, projector_hidden_act=config.projector_hidden_act,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_feature_layer=config.vision_feature_layer, image_seq_length=config.num_image_tokens,
        multimodal_projector_bias=config.multimodal_projector_bias, tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip


def _our_name(name: str) -> str:
    """Translate a parameter's name from transformers 5."""
    name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    return name.replace("pre_layrnorm", "pre_layernorm")


def _rebuild_buffers(model: nn.Module) -> None:
    """Compute the buffers that no file holds: they are still on the meta device.

    Positions of the vision tower are counted; rotary frequencies are computed by their own module.
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "position_ids", None), Tensor) and module.position_ids.is_meta:
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, type(module)(module.config))
    if left := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ConfigError(f"transformers has buffers that llavakit cannot compute: {', '.join(left)}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars, warnings and advice out of our output, and put its settings back."""
    logger = logging.getLogger("transformers")
    level = logger.level
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()
