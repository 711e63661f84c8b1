"""The fields that requests may have. Whatever is not listed is refused: nothing is accepted and ignored.

Null is as good as leaving a field out, whatever its name: clients write it for what nobody has set. Of fields for
things that are not done here, those values are taken that ask for nothing: no tools, nothing to store.
Numbers are strict: no texts, no booleans, no NaN. Ranges that the engine checks itself (`SamplingParams`) are not
repeated here; sizes that cost memory are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ChatRequest", "CompletionRequest", "OllamaChat", "OllamaGenerate", "OllamaName", "OllamaOptions",
           "ResponsesRequest"]  # fmt: skip

_Text = Annotated[str, Field(max_length=4_000_000)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[int, Field(strict=True, ge=-(1 << 53), le=1 << 53)]
_Flag = Annotated[bool, Field(strict=True)]
_Stop = _Text | Annotated[list[_Text], Field(max_length=64)]
_Nothing = Annotated[list[Any], Field(max_length=0)]
_NoPairs = Annotated[dict[str, Any], Field(max_length=0)]
_Label = Annotated[str, Field(max_length=512)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        needed = {info.alias or name for name, info in cls.model_fields.items() if info.is_required()}
        return {name: value for name, value in content.items() if value is not None or name in needed}


class _Hosted(_Body):
    """Fields of OpenAI's own service; of most of them only the value that asks for nothing."""

    tools: _Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None  # of no tools
    parallel_tool_calls: _Flag | None = None
    store: Literal[False] | None = None
    metadata: _NoPairs | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: _Label | None = None
    safety_identifier: _Label | None = None  # the newer name of `user`
    prompt_cache_key: _Label | None = None  # beginnings are found by their content, without a hint


class _OwnFields(_Hosted):
    """Fields beyond OpenAI's, with the names that other servers use for them."""

    top_k: _Whole | None = None
    min_p: _Number | None = None
    repetition_penalty: _Number | None = None
    min_tokens: _Whole | None = None
    ignore_eos: _Flag | None = None
    preset: Literal["original", "hf"] | None = None
    guided_choice: Annotated[list[_Text], Field(max_length=1000)] | None = None
    guided_regex: _Text | None = None
    guided_grammar: _Text | None = None


class StreamOptions(_Body):
    """What a stream ends with."""

    include_usage: _Flag = False
    include_obfuscation: Literal[False] | None = None


class _Asked(_OwnFields):
    """Fields that chat completions and completions have in common."""

    model: Annotated[str, Field(max_length=512)] | None = None
    stream: _Flag | None = False
    stream_options: StreamOptions | None = None
    max_tokens: _Whole | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=16)] | None = 1
    stop: _Stop | None = None
    seed: _Whole | None = None
    presence_penalty: _Number | None = None
    frequency_penalty: _Number | None = None
    logit_bias: Annotated[dict[str, _Number], Field(max_length=1000)] | None = None


class ImageUrl(_Body):
    """A picture; ``detail`` has no effect: a picture is always seen whole, at the model's one resolution."""

    url: Annotated[str, Field(max_length=200_000_000)]
    detail: Literal["auto", "low", "high"] = "auto"


class ContentPart(_Body):
    """Text or a picture."""

    type: Literal["text", "image_url"]
    text: _Text | None = None
    image_url: ImageUrl | Annotated[str, Field(max_length=200_000_000)] | None = None


class ChatMessage(_Body):
    """One turn; an answer may come back as it was given, with the fields of what it does not have."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[ContentPart], Field(max_length=1000)]
    tool_calls: _Nothing | None = None
    annotations: _Nothing | None = None


class JsonSchema(_Body):
    """A schema by name; ``strict`` has no effect: a schema is always kept."""

    name: Annotated[str, Field(max_length=256)] = "answer"
    description: _Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: _Flag | None = None


class ResponseFormat(_Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(_Asked):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: _Whole | None = None
    logprobs: _Flag | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    truncate: _Flag = False
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None


class CompletionRequest(_Asked):
    """``POST /v1/completions``."""

    prompt: _Text | Annotated[list[_Text], Field(min_length=1, max_length=16)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None


class InputPart(_Body):
    """A part of an input of ``/v1/responses``."""

    type: Literal["input_text", "input_image", "output_text"]
    text: _Text | None = None
    image_url: Annotated[str, Field(max_length=200_000_000)] | None = None
    detail: Literal["auto", "low", "high"] = "auto"
    annotations: _Nothing | None = None
    logprobs: _Nothing | None = None


class InputMessage(_Body):
    """One turn of an input of ``/v1/responses``; an output may come back as it was given."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[InputPart], Field(max_length=1000)]
    id: _Label | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class TextFormat(_Body):
    """The form of the answer of ``/v1/responses``."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] = "answer"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: _Flag | None = None
    description: _Text | None = None


class TextSettings(_Body):
    """``text`` of ``/v1/responses``."""

    format: TextFormat | None = None


class ResponsesRequest(_Hosted):
    """``POST /v1/responses``."""

    model: Annotated[str, Field(max_length=512)] | None = None
    input: _Text | Annotated[list[InputMessage], Field(min_length=1, max_length=4096)]
    instructions: _Text | None = None
    max_output_tokens: _Whole | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    stream: _Flag | None = False
    text: TextSettings | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    background: Literal[False] | None = None
    # More about items that no answer has here.
    include: (
        list[
            Literal[
                "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
                "web_search_call.action.sources", "code_interpreter_call.outputs",
                "computer_call_output.output.image_url",
            ]
        ]
        | None
    ) = None  # fmt: skip


class OllamaOptions(_Body):
    """``options``: those that change an answer are done, and no others are known."""

    temperature: _Number | None = None
    top_k: _Whole | None = None
    top_p: _Number | None = None
    min_p: _Number | None = None
    seed: _Whole | None = None
    num_predict: _Whole | None = None
    num_ctx: Annotated[int, Field(strict=True, ge=1, le=1 << 20)] | None = None
    stop: _Stop | None = None
    repeat_penalty: _Number | None = None
    repeat_last_n: _Whole | None = None
    presence_penalty: _Number | None = None
    frequency_penalty: _Number | None = None


class OllamaMessage(_Body):
    """One turn; pictures are base64."""

    role: Literal["system", "user", "assistant"]
    content: _Text = ""
    tool_calls: _Nothing | None = None
    images: Annotated[list[Annotated[str, Field(max_length=200_000_000)]], Field(max_length=1000)] | None = None


class _OllamaBody(_Body):
    model: Annotated[str, Field(max_length=512)]
    stream: _Flag = True
    format: Literal["json", ""] | dict[str, Any] | None = None
    keep_alive: _Number | Annotated[str, Field(max_length=64)] | None = None
    options: OllamaOptions | None = None
    truncate: _Flag | None = None
    think: Literal[False] | None = None
    logprobs: _Flag | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None


class OllamaChat(_OllamaBody):
    """``POST /api/chat``."""

    messages: Annotated[list[OllamaMessage], Field(max_length=4096)] = []
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class OllamaGenerate(_OllamaBody):
    """``POST /api/generate``."""

    prompt: _Text = ""
    suffix: Literal[""] | None = None
    system: _Text | None = None
    template: Literal[""] | None = None
    raw: _Flag | None = None
    images: Annotated[list[Annotated[str, Field(max_length=200_000_000)]], Field(max_length=1000)] | None = None
    context: Annotated[list[Any], Field(max_length=0)] | None = None


class OllamaName(_Body):
    """A model's name, and how its progress is told."""

    model: Annotated[str, Field(max_length=512)] | None = None
    name: Annotated[str, Field(max_length=512)] | None = None
    stream: _Flag = True
    insecure: Literal[False] | None = None
    verbose: _Flag | None = None
