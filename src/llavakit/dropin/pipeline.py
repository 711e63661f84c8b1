"""``pipeline("image-text-to-text", model=...)``: one callable from chats or prompts to answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import GeneratorType
from typing import Any, Literal

import torch

from llavakit.api.loading import choose_device
from llavakit.core.errors import ConfigError, PromptError, SamplingError
from llavakit.dropin.batch_feature import BatchFeature
from llavakit.dropin.conversation import is_chat
from llavakit.dropin.generation_config import GENERATION_SETTINGS
from llavakit.dropin.modeling import LlavaForConditionalGeneration
from llavakit.dropin.processor import AutoProcessor, LlavaProcessor
from llavakit.dropin.processor_options import PROCESSOR_OPTIONS, is_read_by
from llavakit.processing.sources import SourcePolicy

__all__ = ["ImageTextToTextPipeline", "pipeline"]

_TASK = "image-text-to-text"
_OLD_TASK = "image-to-text"
_DEFAULT_NEW_TOKENS = 256
# How far the decoded prompt may lie behind the beginning of the decoded answer to be cut off, as in transformers.
_MAX_SHIFT = 2
# Arguments of generate that may be given to the pipeline itself.
_GENERATE_ARGUMENTS = GENERATION_SETTINGS | {"generation_config", "seed", "streamer"}
# Of the pipeline's own call.
_CALL_ARGUMENTS = (
    "max_new_tokens", "generate_kwargs", "return_full_text", "return_tensors", "stop_sequence",
    "continue_final_message", "skip_special_tokens", "clean_up_tokenization_spaces", "processor_kwargs", "timeout",
    "batch_size",
)  # fmt: skip
# What the pipeline itself tells the chat template.
_SET_BY_PIPELINE = frozenset({"messages", "add_generation_prompt", "tokenize", "return_dict", "tools", "documents"})
_FORWARDED_MODEL_ARGUMENTS = ("revision", "token", "trust_remote_code")

ReturnType = Literal["full_text", "new_text", "tensors"]


@dataclass(frozen=True)
class _Chat:
    """A conversation, as opposed to a list of separate inputs."""

    messages: Sequence[Mapping[str, Any]]

    @property
    def ends_with_answer(self) -> bool:
        """Whether the last message is the assistant's: a beginning to go on with."""
        return bool(self.messages[-1]["role"] == "assistant")


@dataclass(frozen=True)
class _Call:
    """The settings of one call, sorted by the step that they belong to."""

    generate: dict[str, Any]
    template: dict[str, Any]
    processor: dict[str, Any]
    decode: dict[str, Any]
    return_type: ReturnType
    continue_final_message: bool | None
    timeout: float | None


class ImageTextToTextPipeline:
    """Answers chats and prompts with pictures. Made by `pipeline`.

    Attributes
    ----------
    model : LlavaForConditionalGeneration
    processor : LlavaProcessor
    """

    task = _TASK

    def __init__(
        self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self._defaults = dict(defaults or {})
        self._read_call({})  # a wrong default is told when the pipeline is made

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model."""
        return self.model.dtype

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        """Answer.

        Parameters
        ----------
        images : picture, list of pictures, or chats, optional
            For prompts in ``text``. A chat may stand here instead; so may ``{"images", "text"}`` dicts.
        text : str, list of str, chat, or list of chats, optional
            Prompts with ``<image>`` placeholders; or conversations, whose pictures are in their messages. One
            that ends with the assistant's words is gone on with.
        max_new_tokens : int, default 256
        generate_kwargs : dict, optional
            Further arguments of `LlavaForConditionalGeneration.generate`, ``generation_config``, ``seed`` and
            ``streamer`` included; they may also be given directly.
        return_full_text : bool, default True
            False returns the new words only.
        return_tensors : bool, optional
            Token ids instead of text.
        stop_sequence : str or list of str, optional
        continue_final_message : bool, optional
        skip_special_tokens, clean_up_tokenization_spaces : bool, optional
        processor_kwargs : dict, optional
        timeout : float, optional
            Seconds for each URL.
        batch_size : int, optional
            Accepted; answers do not depend on it.

        Returns
        -------
        list
            Of dicts with ``input_text`` and ``generated_text`` (or ``generated_token_ids``), one per answer.
            For a list of chats, or of prompts without pictures, a list of such lists. For a generator of
            inputs, an iterator.

        Raises
        ------
        PromptError, SamplingError, ConfigError
            If the input or a setting cannot be used; unknown settings are named.
        """
        call = self._read_call(settings)
        if images is None and text is None:
            raise PromptError("neither images nor text was given; pass a chat, or a prompt with its pictures.")
        chats = text if _looks_like_chats(text) else images if text is None and _looks_like_chats(images) else None
        if chats is not None:
            if text is chats and images is not None:
                raise PromptError(
                    "a chat and images were given; a chat's pictures belong into its messages, as "
                    "{'type': 'image', 'url': ...} blocks."
                )
            return self._answer_any(_Chat(chats) if is_chat(chats) else [_Chat(chat) for chat in chats], call)
        if images is None:
            return self._answer_any(text, call)
        if text is None:
            if (
                _is_pair(images)
                or isinstance(images, GeneratorType)
                or (isinstance(images, list) and all(map(_is_pair, images)))
            ):
                return self._answer_any(images, call)
            raise PromptError("pictures were given without text; pass a prompt with <image> placeholders, or a chat.")
        return self._answer({"images": images, "text": text}, call)

    def _read_call(self, settings: Mapping[str, Any]) -> _Call:
        call = _read_call({**self._defaults, **settings})
        template = call.template.get("chat_template") or self.processor.chat_template or ""
        for name in call.template.keys() - PROCESSOR_OPTIONS - {"chat_template"}:
            if name in _SET_BY_PIPELINE or not is_read_by(template, name):
                raise ConfigError(
                    f"pipeline does not know the argument {name!r}. It takes {', '.join(_CALL_ARGUMENTS)}, the "
                    "arguments of model.generate, and options of the processor and the chat template. Check its "
                    "spelling or leave it out."
                )
        return call

    def _answer_any(self, inputs: Any, call: _Call) -> Any:
        if isinstance(inputs, GeneratorType):
            return self._answer_lazily(inputs, call)
        if isinstance(inputs, list):
            return [self._answer(_check_input(entry), call) for entry in inputs]
        return self._answer(_check_input(inputs), call)

    def _answer_lazily(self, inputs: Iterator[Any], call: _Call) -> Iterator[Any]:
        for entry in inputs:
            yield self._answer(_Chat(entry) if is_chat(entry) else _check_input(entry), call)

    def _answer(self, entry: Any, call: _Call) -> list[dict[str, Any]]:
        prepared = self._prepare(entry, call)
        given = [entry] if isinstance(entry, str | _Chat) else entry["text"]
        given = [given] if isinstance(given, str) else given
        sequences = self.model.generate(**prepared, **self._generate_settings(call))
        num_answers = len(sequences) // len(given)
        inputs = [one for one in given for _ in range(num_answers)]
        shown = [one.messages if isinstance(one, _Chat) else one for one in inputs]
        if call.return_type == "tensors":
            return [{"input_text": one, "generated_token_ids": ids} for one, ids in zip(shown, sequences, strict=True)]
        prompts = [row for row in prepared["input_ids"] for _ in range(num_answers)]
        texts = [self._new_text(ids, prompt, call) for ids, prompt in zip(sequences, prompts, strict=True)]
        if call.return_type == "full_text":
            results: list[Any] = [_with_prompt(one, new, call) for one, new in zip(inputs, texts, strict=True)]
        else:
            results = list(texts)
        return [{"input_text": one, "generated_text": result} for one, result in zip(shown, results, strict=True)]

    def _prepare(self, entry: Any, call: _Call) -> BatchFeature:
        if isinstance(entry, _Chat):
            continues = entry.ends_with_answer if call.continue_final_message is None else call.continue_final_message
            prepared = self.processor.apply_chat_template(
                entry.messages,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={**call.processor, "timeout": call.timeout},
                **call.template,
            )
            return prepared.to(dtype=self.model.dtype)  # type: ignore[no-any-return]
        texts = entry if isinstance(entry, str) else entry["text"]
        options = {**call.template, **call.processor}
        if isinstance(texts, list | tuple) and len(texts) > 1:
            options.setdefault("padding", True)
        pictures = None if isinstance(entry, str) else entry["images"]
        options = {**options, "return_tensors": "pt", "timeout": call.timeout}
        # A pipeline opens PIL images as if they had been named: turned upright, without alpha.
        return self.processor.prepare(pictures, texts, options, all_named=True).to(dtype=self.model.dtype)

    def _generate_settings(self, call: _Call) -> dict[str, Any]:
        settings = dict(call.generate)
        config = settings.get("generation_config") or {}
        named = config if isinstance(config, Mapping) else config.to_dict()
        given = {name for name, value in {**settings, **named}.items() if value is not None}
        given |= self.model.generation_config.to_dict().keys()
        if not given & {"max_new_tokens", "max_length"}:
            settings["max_new_tokens"] = _DEFAULT_NEW_TOKENS
        if "pad_token_id" not in given and self.tokenizer.pad_token_id is not None:
            settings["pad_token_id"] = self.tokenizer.pad_token_id
        if "stop_strings" in settings:
            settings["tokenizer"] = self.tokenizer
        return {**settings, "return_dict_in_generate": False}

    def _new_text(self, ids: torch.Tensor, prompt: torch.Tensor, call: _Call) -> str:
        """Decode an answer and cut its prompt off, as transformers does: by its decoded text."""
        text: str = self.processor.decode(ids, **call.decode)
        decoded_prompt: str = self.processor.decode(prompt, **call.decode)
        start = text.find(decoded_prompt)
        return text[start + len(decoded_prompt) :] if 0 <= start <= _MAX_SHIFT else text


def pipeline(
    task: str | None = None,
    model: str | Path | LlavaForConditionalGeneration | None = None,
    *,
    processor: str | Path | LlavaProcessor | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    source_policy: SourcePolicy | None = None,
    **settings: Any,
) -> ImageTextToTextPipeline:
    """Make a callable that answers questions about pictures.

    Parameters
    ----------
    task : str
        ``"image-text-to-text"``.
    model : str, Path or LlavaForConditionalGeneration
        What `LlavaForConditionalGeneration.from_pretrained` takes, or a model.
    processor : str, Path or LlavaProcessor, optional
        By default the model's own.
    device : int, str or torch.device, optional
        By default the first GPU if there is one, else the CPU.
    device_map, dtype, torch_dtype : optional
        As for `LlavaForConditionalGeneration.from_pretrained`.
    model_kwargs : mapping, optional
        Further arguments of it.
    source_policy : SourcePolicy, optional
        Which picture sources are allowed, and their limits.
    **settings
        Defaults for the settings of a call.

    Returns
    -------
    ImageTextToTextPipeline

    Raises
    ------
    ConfigError
        If the task is another one, no model is named, or an argument is not supported.
    """
    _check_task(task)
    if model is None:
        raise ConfigError("pipeline needs a model; pass model='llava-hf/llava-1.5-13b-hf', a folder, or 'llava:tiny'.")
    forwarded = {name: settings.pop(name) for name in _FORWARDED_MODEL_ARGUMENTS if name in settings}
    if isinstance(model, LlavaForConditionalGeneration):
        _check_unused(
            "model", device_map=device_map, dtype=dtype, torch_dtype=torch_dtype, model_kwargs=model_kwargs, **forwarded
        )
        loaded = model if device is None else model.to(_place(device))
        name: str | Path = model.name_or_path
    else:
        name = model
        place = device_map if device_map is not None else choose_device(_place(device))
        arguments: dict[str, Any] = {"device_map": place, "dtype": dtype, "torch_dtype": torch_dtype}
        loaded = LlavaForConditionalGeneration.from_pretrained(
            name, **{**arguments, **forwarded, **(model_kwargs or {})}
        )
    if isinstance(processor, LlavaProcessor):
        _check_unused("processor", source_policy=source_policy)
    else:
        processor = AutoProcessor.from_pretrained(processor or name, source_policy=source_policy, **forwarded)
    return ImageTextToTextPipeline(loaded, processor, settings)


def _check_task(task: str | None) -> None:
    if task == _TASK:
        return
    if task == _OLD_TASK:
        raise ConfigError(
            f"the task {_OLD_TASK!r} is the old name, with another result. Use pipeline({_TASK!r}, model=...) and pass "
            "the question as `text`."
        )
    raise ConfigError(f"the task {task!r} is not supported; LLaVA models do {_TASK!r}.")


def _check_unused(what: str, **arguments: Any) -> None:
    """Refuse arguments of loading for what is loaded already."""
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ConfigError(f"{', '.join(given)} says how to load, but the {what} is loaded already. Leave it out.")


def _read_call(settings: Mapping[str, Any]) -> _Call:
    rest = {name: value for name, value in settings.items() if value is not None}
    rest.pop("batch_size", None)  # answers do not depend on it
    generate = dict(rest.pop("generate_kwargs", {}))
    direct = {name: rest.pop(name) for name in _GENERATE_ARGUMENTS & rest.keys()}
    if twice := sorted(direct.keys() & generate.keys()):
        raise SamplingError(f"{', '.join(twice)} was given twice, directly and in generate_kwargs; say it once.")
    generate.update(direct)
    if "stop_sequence" in rest:
        stops = rest.pop("stop_sequence")
        generate["stop_strings"] = [stops] if isinstance(stops, str) else list(stops)
    decode = {"skip_special_tokens": rest.pop("skip_special_tokens", True)}
    if "clean_up_tokenization_spaces" in rest:
        decode["clean_up_tokenization_spaces"] = rest.pop("clean_up_tokenization_spaces")
    return _Call(
        generate=generate,
        decode=decode,
        return_type=_read_return_type(rest),
        continue_final_message=rest.pop("continue_final_message", None),
        timeout=rest.pop("timeout", None),
        processor=dict(rest.pop("processor_kwargs", {})),
        template=rest,
    )


def _read_return_type(rest: dict[str, Any]) -> ReturnType:
    full_text, tensors, given = (rest.pop(name, None) for name in ("return_full_text", "return_tensors", "return_type"))
    if given is not None:
        raise ConfigError(f"return_type={given!r} is not supported; use return_full_text or return_tensors.")
    if full_text is not None and tensors is not None:
        raise ConfigError("return_full_text and return_tensors exclude each other; give one of them.")
    if tensors is not None:
        return "tensors"
    return "full_text" if full_text in (None, True) else "new_text"


def _with_prompt(given: str | _Chat, new_text: str, call: _Call) -> str | list[Any]:
    if isinstance(given, str):
        return given + new_text
    continues = given.ends_with_answer if call.continue_final_message is None else call.continue_final_message
    if not continues:
        return [*given.messages, {"role": "assistant", "content": new_text}]
    *before, last = given.messages
    content = last["content"]
    if isinstance(content, str):
        return [*before, {**last, "content": content + new_text}]
    block = {**content[-1], "text": content[-1]["text"] + new_text}
    return [*before, {"role": last["role"], "content": [*content[:-1], block]}]


def _looks_like_chats(value: Any) -> bool:
    return is_chat(value) or (isinstance(value, list | tuple) and bool(value) and all(map(is_chat, value)))


def _is_pair(value: Any) -> bool:
    return isinstance(value, Mapping) and {"images", "text"} <= value.keys()


def _check_input(entry: Any) -> Any:
    if isinstance(entry, str | _Chat) or _is_pair(entry):
        return entry
    raise PromptError(f"an input must be a prompt, a chat, or a dict with 'images' and 'text'; got {entry!r:.200}.")


def _place(device: int | str | torch.device | None) -> int | str | torch.device | None:
    """Take -1 for the CPU, as pipelines have always done."""
    return "cpu" if device == -1 and isinstance(device, int) else device
