"""``AutoProcessor`` and ``LlavaProcessor``: text and pictures to model inputs, and ids back to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.attributes import check_assignment, missing_attribute
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.dropin.conversation import find_images, load_chat_template, normalise, render_conversation
from llavakit.dropin.image_processor import LlavaImageProcessor, flatten_images
from llavakit.dropin.loading_arguments import check_hub_arguments, resolve_folder
from llavakit.dropin.processor_options import (
    PROCESSOR_OPTIONS,
    TEXT_OPTIONS,
    as_texts,
    check_variables,
    merge_options,
)
from llavakit.dropin.tokenizer import LlavaTokenizer
from llavakit.processing.presets import load_presets
from llavakit.processing.sources import SourcePolicy
from llavakit.weights.checkpoint import read_config

__all__ = ["AutoProcessor", "LlavaProcessor"]

_ATTRIBUTES = frozenset({"patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "image_token"})
_FIXED = dict.fromkeys(
    (*_ATTRIBUTES, "image_token_id", "num_image_tokens", "model_input_names"),
    "it follows from the checkpoint's config.json",
)


class AutoProcessor:
    """Makes the processor of a model; there is one kind."""

    def __init__(self) -> None:
        raise ConfigError("AutoProcessor is made by AutoProcessor.from_pretrained(model).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        source_policy: SourcePolicy | None = None,
        use_fast: bool | None = None,
        backend: str | None = None,
        local_files_only: bool = False,
        **arguments: Any,
    ) -> LlavaProcessor:
        """Load a processor; see `LlavaProcessor.from_pretrained`."""
        return LlavaProcessor.from_pretrained(
            pretrained_model_name_or_path,
            source_policy=source_policy,
            use_fast=use_fast,
            backend=backend,
            local_files_only=local_files_only,
            **arguments,
        )


class LlavaProcessor:
    """Prepares what a LLaVA-1.5 model reads, as the checkpoint's own processor files say.

    Parameters
    ----------
    image_processor : LlavaImageProcessor
    tokenizer : LlavaTokenizer
        Of the same checkpoint; they are attributes of another processor.
    chat_template : str, optional
        Jinja.
    patch_size, vision_feature_select_strategy, num_additional_image_tokens, image_token : optional
        The values of the checkpoint, if at all.

    Attributes
    ----------
    tokenizer : LlavaTokenizer
    image_processor : LlavaImageProcessor
    chat_template : str or None
        May be replaced.
    num_image_tokens : int
        Ids that one picture takes.
    patch_size, vision_feature_select_strategy, num_additional_image_tokens, image_token, image_token_id
        As the checkpoint's config.json says.

    Raises
    ------
    ConfigError
        If the parts are of other classes.
    UnsupportedAttributeError
        For an attribute that is not there, or that cannot be set.
    """

    num_additional_image_tokens = 1  # CLIP's class token

    def __init__(
        self,
        image_processor: LlavaImageProcessor,
        tokenizer: LlavaTokenizer,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str | None = None,
        num_additional_image_tokens: int | None = None,
    ) -> None:
        if not isinstance(image_processor, LlavaImageProcessor) or not isinstance(tokenizer, LlavaTokenizer):
            raise ConfigError(
                f"LlavaProcessor got a {type(image_processor).__name__} and a {type(tokenizer).__name__}; it takes "
                "image_processor and tokenizer of another LlavaProcessor. AutoProcessor.from_pretrained makes one."
            )
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        given = {
            "patch_size": patch_size,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_token": image_token,
            "num_additional_image_tokens": num_additional_image_tokens,
        }
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not there.
        raise missing_attribute("LlavaProcessor", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "chat_template" or check_assignment(self, name, value, _FIXED):
            object.__setattr__(self, name, value)

    @property
    def num_image_tokens(self) -> int:
        """Ids that one picture takes."""
        return self.tokenizer.config.num_image_tokens

    @property
    def patch_size(self) -> int:
        """Side of a patch of the vision tower, in pixels."""
        return self.tokenizer.config.vision_config.patch_size

    @property
    def vision_feature_select_strategy(self) -> str:
        """Whether the class token's features are left out ("default") or not ("full")."""
        return self.tokenizer.config.vision_feature_select_strategy

    @property
    def image_token(self) -> str:
        """Placeholder of a picture."""
        return self.tokenizer.image_token

    @property
    def image_token_id(self) -> int:
        """Id of it."""
        return self.tokenizer.config.image_token_id

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        source_policy: SourcePolicy | None = None,
        use_fast: bool | None = None,
        backend: str | None = None,
        local_files_only: bool = False,
        **arguments: Any,
    ) -> LlavaProcessor:
        """Load a processor.

        Parameters
        ----------
        pretrained_model_name_or_path : str or Path
            A folder, a Hugging Face id, or ``llava:tiny``, ``llava:7b``, ``llava:13b``.
        source_policy : SourcePolicy, optional
            Which picture sources are allowed, and their limits; by default files and public web addresses.
        use_fast, backend : optional
            Only the values that mean Pillow (``use_fast=False``, ``backend="pil"``) or nothing. torchvision's
            resampling is not offered.
        local_files_only : bool
            Do not ask the Hub.
        padding_side : {"left", "right"}, optional
            Of the tokenizer.
        patch_size, vision_feature_select_strategy, num_additional_image_tokens, image_token : optional
            The values of the checkpoint, if at all.

        Returns
        -------
        LlavaProcessor

        Raises
        ------
        ConfigError
            For an argument that is unknown or not supported, by name, and for damaged files.
        StoreError
            If the model cannot be found or fetched.
        """
        given = {name: arguments.pop(name) for name in _ATTRIBUTES & arguments.keys()}
        padding_side = arguments.pop("padding_side", None)
        check_hub_arguments(arguments)
        if backend not in (None, "pil") or use_fast:
            raise ConfigError(
                f"use_fast={use_fast!r}, backend={backend!r}: pictures are resampled by Pillow "
                "here, which is backend='pil'. "
                "Leave both out."
            )
        found = resolve_folder(pretrained_model_name_or_path, allow_download=not local_files_only, with_weights=False)
        config = read_config(found.folder, vision_folder=found.vision_folder)
        policy = source_policy if source_policy is not None else SourcePolicy()
        tokenizer = LlavaTokenizer.from_folder(found.folder, config, name=str(found.name))
        if padding_side is not None:
            tokenizer.padding_side = padding_side
        images = LlavaImageProcessor(load_presets(found.folder, config)["hf"].image, policy)
        return cls(images, tokenizer, chat_template=load_chat_template(found.folder), **given)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        **options: Any,
    ) -> BatchFeature:
        """Prepare prompts and their pictures.

        Parameters
        ----------
        images : picture or (nested) list of pictures, optional
            Path, URL, data URI, base64, bytes, PIL image, numpy array or tensor; as many in all as the prompts have
            ``<image>``.
        text : str or list of str, optional
            Prompts. Each ``<image>`` becomes the ids of one picture.
        return_tensors : {"pt", "np"}, optional
        padding, padding_side, truncation, max_length, pad_to_multiple_of, add_special_tokens, return_attention_mask
            As for `LlavaTokenizer`. Truncation that would cut a picture is refused.
        return_mm_token_type_ids : bool, optional
            Adds a tensor that is 1 at image positions.
        timeout : float, optional
            Seconds for each URL.
        text_kwargs, images_kwargs, common_kwargs : dict, optional
            The same options, grouped.

        Returns
        -------
        BatchFeature
            ``input_ids``, ``attention_mask`` and ``pixel_values``, as far as there are prompts and pictures.

        Raises
        ------
        PromptError
            If placeholders and pictures do not match.
        BadImageError, ImageSourceError
            If a picture cannot be opened, or may not be.
        ConfigError
            For an option that is unknown or not supported, by name.
        """
        if videos is not None or audio is not None:
            raise ConfigError("videos and audio are not supported: LLaVA-1.5 takes text and pictures.")
        return self.prepare(images, text, options)

    def prepare(
        self, images: Any, text: str | Sequence[str] | None, options: Mapping[str, Any], *, all_named: bool = False
    ) -> BatchFeature:
        """Do what a call does; with ``all_named`` PIL images are treated like named sources (`LlavaImageProcessor`)."""
        if images is None and text is None:
            raise PromptError("neither images nor text was given; a processor needs one of them.")
        options = merge_options(options)
        texts = None if text is None else as_texts(text)
        pictures = None if images is None else flatten_images(images)
        if texts is not None:
            self._check_counts(texts, pictures)
        data: dict[str, Any] = {}
        if texts is not None:
            data.update(self._encode(texts, options))
        if pictures is not None:
            data.update(self.image_processor(pictures, timeout=options.get("timeout"), all_named=all_named))
        return BatchFeature(data, tensor_type=options.get("return_tensors"))

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tools: None = None,
        documents: None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Write a conversation out by the chat template, and prepare it if asked to.

        Parameters
        ----------
        conversation : list of messages, or list of such lists
            Messages are dicts with ``role`` and ``content``; content is a string or a list of blocks
            ``{"type": "text", "text": ...}`` and ``{"type": "image", ...}`` with an ``url``, ``path``, ``base64`` or
            ``image`` if the pictures should be loaded. OpenAI's ``image_url`` blocks are understood.
        chat_template : str, optional
            Jinja, instead of the model's own; runs in a sandbox.
        add_generation_prompt : bool, default False
            End with the words that begin an answer.
        continue_final_message : bool, default False
            End with the last message's text, for the model to go on with.
        tokenize : bool, default False
            False returns strings; True loads the pictures and returns ids.
        return_dict : bool, default False
            With ``tokenize``, everything the model needs instead of the ids alone.
        return_tensors : {"pt", "np"}, optional
        processor_kwargs : mapping, optional
            Options of the processor, such as ``padding``; they may also be given directly.
        **options
            The same, and names that the template reads.

        Returns
        -------
        str, list, BatchFeature
            A string per conversation; a list of them for a list of conversations; ids or a `BatchFeature` if tokenized.

        Raises
        ------
        PromptError
            If a message is malformed, or pictures do not match what the template writes.
        ConfigError
            If there is no template, or for what is not supported, by name.
        """
        if return_assistant_tokens_mask or tools is not None or documents is not None:
            raise ConfigError(
                "return_assistant_tokens_mask, tools and documents are not supported: the first "
                "serves training, and LLaVA's "
                "template reads no tools. Leave them out."
            )
        template = self.chat_template if chat_template is None else chat_template
        if template is None:
            raise ConfigError(
                "this checkpoint has no chat template. Pass chat_template, or write the prompt out yourself."
            )
        is_batch = (
            isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)
        )
        conversations = [normalise(chat) for chat in (conversation if is_batch else [conversation])]
        direct = {name: options.pop(name) for name in list(options) if name in PROCESSOR_OPTIONS}
        check_variables(options, template)
        prompts = [
            render_conversation(
                messages,
                template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=bool(continue_final_message),
                variables={**self.tokenizer.special_tokens_map, **options},
            )
            for messages in conversations
        ]
        if not tokenize:
            return prompts if is_batch else prompts[0]
        call = {**dict(processor_kwargs or {}), **direct}
        if self.tokenizer.bos_token and prompts[0].startswith(self.tokenizer.bos_token):
            call["add_special_tokens"] = False
        if return_tensors is not None:
            call["return_tensors"] = return_tensors
        pictures = [picture for messages in conversations for picture in find_images(messages)]
        prepared = self(images=pictures or None, text=prompts, **call)
        return prepared if return_dict else prepared["input_ids"]

    def decode(self, *args: Any, **options: Any) -> Any:
        """Return the text of ids; see `LlavaTokenizer.decode`."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """Return the texts of rows of ids; see `LlavaTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> Any:
        """Return the texts of generated rows; see `LlavaTokenizer.decode`."""
        return self.tokenizer.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _check_counts(self, texts: Sequence[str], pictures: Sequence[Any] | None) -> None:
        num_places = sum(text.count(self.image_token) for text in texts)
        num_pictures = 0 if pictures is None else len(pictures)
        if num_places != num_pictures:
            raise PromptError(
                f"the prompts have {num_places} {self.image_token} placeholders, but "
                f"{num_pictures} pictures were given. "
                "Each placeholder takes one picture, in order."
            )

    def _encode(self, texts: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
        expanded = [text.replace(self.image_token, self.image_token * self.num_image_tokens) for text in texts]
        encoded = self.tokenizer(expanded, **{name: options[name] for name in TEXT_OPTIONS & options.keys()})
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            wanted = text.count(self.image_token) * self.num_image_tokens
            if (found := ids.count(self.image_token_id)) != wanted:
                raise PromptError(
                    f"truncation to {len(ids)} tokens leaves {found} of {wanted} image tokens; a picture cannot be "
                    "cut. Raise max_length (or the tokenizer's model_max_length), or leave truncation out."
                )
        data = dict(encoded)
        if options.get("return_mm_token_type_ids"):
            rows = encoded["input_ids"]
            data["mm_token_type_ids"] = [[int(token_id == self.image_token_id) for token_id in row] for row in rows]
        return data
