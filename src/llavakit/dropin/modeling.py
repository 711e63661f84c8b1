"""``LlavaForConditionalGeneration``: transformers' class over llavakit's model and engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.decoding import (
    DecoderChoice,
    DecodingPlan,
    StepRecorder,
    assemble,
    check_streamer,
    make_plan,
)
from llavakit.dropin.forward import compute_logits, encode_pixels, keep_positions, shifted_loss
from llavakit.dropin.generation_config import GenerationConfig, load_generation_config, merge_generation_config
from llavakit.dropin.inputs import (
    REFUSED_INPUTS,
    TensorPrompt,
    as_pixels,
    check_input_ids,
    infer_attention_mask,
    refuse_inputs,
    split_rows,
)
from llavakit.dropin.loading_arguments import read_model_arguments, resolve_folder
from llavakit.dropin.model_output import ModelOutput
from llavakit.dropin.module_surface import ModuleSurface
from llavakit.dropin.placement import parse_dtype
from llavakit.dropin.quantization import check_quantization_possible, quantize_decoder
from llavakit.engine.engine import Engine
from llavakit.engine.generation import Generation
from llavakit.model.llava import Llava
from llavakit.model.loader import load_model
from llavakit.processing.tokenizer import Tokenizer
from llavakit.weights.checkpoint import open_checkpoint

__all__ = ["AutoModelForImageTextToText", "LlavaForConditionalGeneration"]

_LOGGER = logging.getLogger(__name__)


class LlavaForConditionalGeneration(ModuleSurface):
    """A LLaVA-1.5 model with transformers' surface, for inference. Made by `from_pretrained`.

    Attributes
    ----------
    generation_config : GenerationConfig
        Defaults of `generate`; may be changed.

    Notes
    -----
    For the other attributes see `ModuleSurface`. Those of transformers that are not there raise an
    `UnsupportedAttributeError` that says what to do.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Refuse a configuration, of which transformers makes a model with random weights."""
        given = arguments[0] if arguments else options.get("config")
        if (arguments or "config" in options) and not isinstance(given, Llava):
            raise ConfigError(
                f"{cls.__name__} was called with {type(given).__name__}; llavakit makes no models with random "
                "weights. Load one with from_pretrained(folder or Hub id)."
            )
        return super().__new__(cls)

    def __init__(self, model: Llava, *, generation_config: GenerationConfig, folder: Path, name: str) -> None:
        super().__init__(model, name=name)
        self.generation_config = generation_config
        self._folder = folder
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None
        self._decoders = DecoderChoice()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **arguments: Any
    ) -> LlavaForConditionalGeneration:
        """Load a model.

        Parameters
        ----------
        pretrained_model_name_or_path : str or Path
            A folder, a Hugging Face id, or ``llava:tiny``, ``llava:7b``, ``llava:13b``.
        dtype, torch_dtype : str or torch.dtype, optional
            Of the weights in memory; by default (and with ``"auto"``) as the checkpoint stores them.
        device_map : str, int, torch.device or dict, optional
            ``"auto"`` is the GPU if there is one, else the CPU; by default the CPU.
        load_in_4bit, load_in_8bit : bool, optional
            Quantize the decoder: with bitsandbytes on a CUDA GPU, else to Q4_K or Q8_0 for llavakit's own kernels.
        quantization_config : BitsAndBytesConfig or dict, optional
            The same in detail.
        attn_implementation : str, optional
            ``"sdpa"``. ``"flash_attention_2"`` (or ``use_flash_attention_2=True``) and ``"eager"`` are served by it.
        local_files_only : bool, optional
            Do not ask the Hub.
        low_cpu_mem_usage : bool, optional
            Always so, whatever is said.

        Returns
        -------
        LlavaForConditionalGeneration

        Raises
        ------
        ConfigError
            For an argument that is unknown or not supported, by name.
        CapacityError
            If this machine lacks the device, or what quantization needs.
        StoreError, WeightsError
            If the model cannot be found or its files cannot be used.
        """
        chosen = read_model_arguments(arguments)
        if chosen.quantization is not None:
            check_quantization_possible(chosen.quantization, chosen.device)
        found = resolve_folder(pretrained_model_name_or_path, allow_download=chosen.allow_download)
        checkpoint = open_checkpoint(found.folder, vision_folder=found.vision_folder)
        config = checkpoint.config
        generation_config = load_generation_config(found.folder, config)
        dtype = parse_dtype(chosen.dtype, stored=config.dtype)
        tensors = checkpoint.tensors
        if chosen.quantization is None:
            model = load_model(config, tensors, dtype=dtype, device=chosen.device)
        elif chosen.device.type == "cpu":  # from the mapped file, so that the matrices are never in memory as a whole
            model = load_model(config, tensors, dtype=parse_dtype("auto", stored=config.dtype), device=chosen.device)
            quantize_decoder(
                model, chosen.quantization, chosen.device, on_quantized=lambda name: tensors[name].release()
            )
            model.to(dtype=dtype)
        else:
            model = load_model(config, tensors, dtype=dtype, device=torch.device("cpu"))
            quantize_decoder(model, chosen.quantization, chosen.device)
        loaded = cls(model, generation_config=generation_config, folder=found.folder, name=found.name)
        loaded.is_quantized = chosen.quantization is not None
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}  # a copy starts with empty caches

    def reset(self) -> None:
        """Forget cached prompts and pictures, and give their memory back.

        Needed after weights were changed through ``.data`` or by something else than torch; other changes are noticed.
        """
        self._engine = None

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor, **refused: Any) -> ModelOutput:
        """Compute what stands in a prompt for pictures.

        Parameters
        ----------
        pixel_values : floating tensor of shape (N, 3, S, S)

        Returns
        -------
        ModelOutput
            ``pooler_output``: a list of N tensors (P, D), as in transformers.

        Raises
        ------
        PromptError
            If the tensor has another shape.
        ConfigError
            For an argument that is not supported, by name.
        """
        refuse_inputs(refused)
        return ModelOutput(pooler_output=list(encode_pixels(self.model, as_pixels(pixel_values, self.model.config))))

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool = True,
        use_cache: bool | None = None,
        **refused: Any,
    ) -> Any:
        """Compute the logits of every position.

        Parameters
        ----------
        input_ids : integer tensor of shape (B, T)
            Pictures expanded to image tokens; padding on either side.
        pixel_values : floating tensor of shape (N, 3, S, S), optional
        attention_mask : tensor of shape (B, T), optional
            0 hides a position; its logits are zero.
        labels : integer tensor of shape (B, T), optional
            -100 is not counted. Position t is compared with label t + 1; what a hidden position would predict is not
            counted either. The loss is a number to read: it has no gradient.
        logits_to_keep : int or integer tensor of shape (n,), default 0
            Only the last so many positions, 0 keeps all; or the positions that a tensor names.
        return_dict : bool, default True
            False gives a tuple.

        Returns
        -------
        ModelOutput
            ``loss`` (a float32 number, with labels), ``logits`` (B, T, V), ``image_hidden_states`` (N * P, D).

        Raises
        ------
        PromptError
            If shapes, placeholders and pictures do not match.
        ConfigError
            For an argument that is not supported, by name.
        """
        refuse_inputs(refused)
        if use_cache:
            raise ConfigError(
                f"use_cache=True is not supported here: {REFUSED_INPUTS['past_key_values']}. Use generate()."
            )
        ids = check_input_ids(input_ids, self.model.config)
        prompts = split_rows(ids, attention_mask, pixel_values, self.model.config)
        mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
        logits, features = compute_logits(self.model, prompts, mask)
        output = ModelOutput(
            loss=None if labels is None else shifted_loss(logits, labels, mask),
            logits=keep_positions(logits, logits_to_keep),
            hidden_states=None,
            attentions=None,
            image_hidden_states=None if features is None else features.flatten(0, 1),
        )
        return output if return_dict else output.to_tuple()

    forward = __call__

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        streamer: Any = None,
        tokenizer: Any = None,
        seed: int | None = None,
        **settings: Any,
    ) -> Any:
        """Continue prompts.

        Parameters
        ----------
        inputs, input_ids : integer tensor of shape (B, T)
            One of the two: prompts, pictures expanded to image tokens, padded on the left.
        generation_config : GenerationConfig, optional
            Instead of, or below, ``settings``.
        attention_mask : tensor of shape (B, T), optional
            0 hides padding; by default padding tokens are hidden.
        pixel_values : floating tensor of shape (N, 3, S, S), optional
            The pictures of all prompts, in order.
        streamer : object with ``put(tensor)`` and ``end()``, optional
            Gets the prompt, then each new token. One prompt, no beams.
        tokenizer : optional
            Accepted with ``stop_strings``; the model's own is used.
        seed : int, optional
            Of sampling; by default drawn from torch's generator.
        **settings
            Fields of `GenerationConfig`.

        Returns
        -------
        int64 tensor of shape (B, T + new tokens)
            Prompts as given, then new tokens, then padding. With ``return_dict_in_generate`` a `ModelOutput` with
            ``sequences`` and, if asked for, ``scores`` and ``logits``.

        Raises
        ------
        SamplingError
            For settings that are unknown, not supported, out of range or contradictory.
        PromptError, ContextOverflowError
            If the prompts cannot be used.
        """
        refuse_inputs({name: settings.pop(name) for name in list(settings) if name in REFUSED_INPUTS})
        config = merge_generation_config(self.generation_config, generation_config, settings)
        ids = check_input_ids(_one_of(inputs, input_ids), self.model.config)
        plan = make_plan(config, num_rows=ids.shape[0], prompt_len=ids.shape[1], seed=seed)
        check_streamer(streamer, num_answers=len(plan.params), num_beams=plan.params[0].num_beams)
        if attention_mask is None:
            attention_mask = infer_attention_mask(ids, pad_token_id=plan.pad_token_id, eos_token_ids=plan.eos_token_ids)
        rows = split_rows(ids, attention_mask, pixel_values, self.model.config)
        prompts = [prompt for prompt in rows for _ in range(plan.num_runs_per_row)]
        records_steps = bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))
        recorder = StepRecorder(len(prompts)) if records_steps else None
        generations = self._submit(prompts, plan, recorder, tokenizer)
        self._run(generations, ids, streamer)
        sequences = assemble(
            ids.repeat_interleave(plan.num_answers_per_row, dim=0),
            [answer for generation in generations for answer in _answers(generation, plan)],
            fill_id=plan.fill_id,
        ).to(self.device)
        if not config.return_dict_in_generate:
            return sequences
        return ModelOutput(
            sequences=sequences,
            scores=recorder.scores if recorder is not None and config.output_scores else None,
            logits=recorder.logits if recorder is not None and config.output_logits else None,
        )

    def _submit(
        self, prompts: list[TensorPrompt], plan: DecodingPlan, recorder: StepRecorder | None, tokenizer: Any
    ) -> list[Generation]:
        self._decoders.tokenizer = self._find_tokenizer(tokenizer) if plan.params[0].stop else None
        if self._engine is None:
            # Not a method of this object: weights shall go with the last name for it, not when cycles are looked for.
            self._engine = Engine(self.model, make_decoder=self._decoders)
        generations = self._engine.submit(
            prompts,
            plan.params,
            eos_token_ids=plan.eos_token_ids,
            on_step=recorder,
            early_stopping=plan.early_stopping,
        )
        for generation in generations:
            if generation.max_new_tokens < generation.params.max_new_tokens:
                _LOGGER.warning(
                    "%d new tokens were allowed, but a prompt of %d leaves room for %d in the context of %d; "
                    "the answer ends there.",
                    generation.params.max_new_tokens, len(generation.prompt.token_ids), generation.max_new_tokens,
                    self.model.config.max_context_tokens,
                )  # fmt: skip
        return generations

    def _run(self, generations: list[Generation], ids: Tensor, streamer: Any) -> None:
        assert self._engine is not None  # noqa: S101 - _submit has built it
        if streamer is not None:
            streamer.put(ids)
        for event in self._engine.run(generations):
            if streamer is not None and event.token_id is not None:
                streamer.put(torch.tensor([event.token_id]))
        if streamer is not None:
            streamer.end()

    def _find_tokenizer(self, given: Any) -> Tokenizer:
        if self._tokenizer is None:
            own = getattr(given, "backend", None)
            self._tokenizer = (
                own if isinstance(own, Tokenizer) else Tokenizer.from_folder(self._folder, config=self.model.config)
            )
        return self._tokenizer


# There is one kind of model.
AutoModelForImageTextToText = LlavaForConditionalGeneration


def _answers(generation: Generation, plan: DecodingPlan) -> list[Sequence[int]]:
    if not generation.beams:
        return [generation.token_ids]
    return [beam.token_ids for beam in generation.beams[: plan.num_answers_per_row]]


def _one_of(inputs: Tensor | None, input_ids: Tensor | None) -> Tensor | None:
    if inputs is not None and input_ids is not None:
        raise PromptError("generate got both inputs and input_ids; they mean the same, give one.")
    return inputs if inputs is not None else input_ids
