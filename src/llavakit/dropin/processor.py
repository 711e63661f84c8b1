"""``AutoProcessor`` and ``LlavaProcessor``: text and pictures to model inputs, and ids back to text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llavakit.core.config import LlavaConfig
from llavakit.core.errors import ConfigError, PromptError
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.dropin.conversation import find_images, load_chat_template, normalise, render_conversation
from llavakit.dropin.image_processor import LlavaImageProcessor, flatten_images
from llavakit.dropin.loading_arguments import check_hub_arguments, resolve_folder
from llavakit.dropin.tokenizer import LlavaTokenizer
from llavakit.processing.presets import load_presets
from llavakit.processing.sources import SourcePolicy
from llavakit.weights.checkpoint import read_config

__all__ = ["PROCESSOR_OPTIONS", "AutoProcessor", "LlavaProcessor", "is_read_by"]

_TEXT_OPTIONS = frozenset({
    "add_special_tokens", "padding", "truncation", "max_length", "padding_side", "pad_to_multiple_of",
    "return_attention_mask",
})  # fmt: skip
_OWN_OPTIONS = frozenset(
    {"return_tensors", "return_mm_token_type_ids", "text_kwargs", "images_kwargs", "common_kwargs", "timeout"}
)
PROCESSOR_OPTIONS = _TEXT_OPTIONS | _OWN_OPTIONS


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

    Attributes
    ----------
    tokenizer : LlavaTokenizer
    image_processor : LlavaImageProcessor
    chat_template : str or None
        Jinja; may be replaced.
    num_image_tokens : int
        Ids that one picture takes.
    """

    def __init__(
        self,
        image_processor: LlavaImageProcessor,
        tokenizer: LlavaTokenizer,
        *,
        chat_template: str | None,
        config: LlavaConfig,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.num_image_tokens = config.num_image_tokens
        self.image_token = tokenizer.image_token
        self.image_token_id = config.image_token_id

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
        return cls(
            LlavaImageProcessor(load_presets(found.folder, config)["hf"].image, policy),
            LlavaTokenizer.from_folder(found.folder, config),
            chat_template=load_chat_template(found.folder),
            config=config,
        )

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
        options = _merge_options(options)
        texts = None if text is None else _as_texts(text)
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
        _check_variables(options, template)
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
        encoded = self.tokenizer(expanded, **{name: options[name] for name in _TEXT_OPTIONS & options.keys()})
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            wanted = text.count(self.image_token) * self.num_image_tokens
            if (found := ids.count(self.image_token_id)) != wanted:
                raise PromptError(
                    f"truncation to {options.get('max_length')} tokens leaves {found} of "
                    f"{wanted} image tokens; a picture cannot "
                    "be cut. Raise max_length or leave truncation out."
                )
        data = dict(encoded)
        if options.get("return_mm_token_type_ids"):
            rows = encoded["input_ids"]
            data["mm_token_type_ids"] = [[int(token_id == self.image_token_id) for token_id in row] for row in rows]
        return data


def _as_texts(text: str | Sequence[str]) -> list[str]:
    texts: list[Any] = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    if not texts or not all(isinstance(one, str) for one in texts):
        raise PromptError(
            f"text must be a string or a list of strings, got {type(text).__name__}. The order "
            "of arguments is (images, text)."
        )
    return texts


def is_read_by(template: str, name: str) -> bool:
    """Return whether a chat template uses a name."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _check_variables(variables: Mapping[str, Any], template: str) -> None:
    """Refuse names that are neither an option nor read by the template."""
    for name in variables:
        if not is_read_by(template, name):
            raise ConfigError(
                f"apply_chat_template does not know {name!r}: it is no option of the processor, and the chat template "
                "does not read it. Check its spelling or leave it out."
            )


def _merge_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Bring grouped options to one level and refuse unknown ones by name."""
    merged: dict[str, Any] = {}
    for group in ("common_kwargs", "text_kwargs", "images_kwargs"):
        merged.update(options.get(group) or {})
    merged.update({name: value for name, value in options.items() if not name.endswith("_kwargs")})
    if unknown := [name for name in merged if name not in PROCESSOR_OPTIONS]:
        raise ConfigError(
            f"the processor does not take {', '.join(map(repr, unknown))}; pictures are prepared "
            "as the checkpoint's files say, "
            f"and the options are {', '.join(sorted(PROCESSOR_OPTIONS))}."
        )
    return merged
