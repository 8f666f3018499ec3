"""The wire forms of requests: what OpenAI's clients and `/query` send. Types and shapes only; limits are admission's.

Source: https://platform.openai.com/docs/api-reference (chat, completions, embeddings), with llama.cpp's extra sampling
parameters. Unknown fields are ignored on /v1, as other servers of open models do, and refused on /query, which is ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

LONGEST_LIST = 10_000
"""Items in one list of a body, whatever the configuration allows; token ids are bounded by the body's size."""
LONGEST_PHASE_S = 30 * 86_400.0
"""Seconds that a phase of a rollout may be told to take."""

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


def _not_too_long(given: Any) -> Any:
    """Refuse a mapping with too many entries before each of them can be complained of."""
    if isinstance(given, dict) and len(given) > LONGEST_LIST:
        raise ValueError(f"has {len(given)} entries, at most {LONGEST_LIST} are taken")
    return given


T = TypeVar("T")
Listed = Annotated[list[T], Field(fail_fast=True, max_length=LONGEST_LIST)]
"""A list whose first bad item ends the reading: one complaint for each item of a large body costs gigabytes."""
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
One = Annotated[int, Field(ge=1, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Wire(BaseModel):
    """Base of the wire forms: JSON types are not converted into one another; NaN and infinity are refused."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)


class TextPart(Wire):
    """A part of a message. Only text can be read by the models served here."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Wire):
    """The function in an earlier tool call; `arguments` is JSON text."""

    name: ToolName
    arguments: str = "{}"


class ToolCall(Wire):
    """A tool call that the assistant made earlier in the conversation."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Wire):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Listed[TextPart] | None = None
    name: str | None = None
    tool_calls: Listed[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Wire):
    """What the model is told of a function; `parameters` is a JSON Schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    """A function the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Wire):
    """A function by its name."""

    name: ToolName


class NamedTool(Wire):
    """The one function the model must call."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchemaSpec(Wire):
    """A JSON Schema that the answer must satisfy."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True, use_attribute_docstrings=True)

    name: str = "response"
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormatSpec(Wire):
    """The shape of the answer: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaSpec | None = None
    plain_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """llama.cpp's short form, beside `json_object`."""


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    """End the stream with a chunk that has the token counts."""


WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Fields of OpenAI's API about its own service: they change no answer here."""


class SamplingFields(Wire):
    """How tokens are drawn; common to chat and completions."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    model: str | None = None
    """Name of a served model; none, or `default`, is the configured default."""
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Seed | None = None
    stop: StopString | Listed[StopString] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], BeforeValidator(_not_too_long)] | None = None
    n: One | None = None
    """Answers to one prompt; only 1 is offered."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    cache: bool | None = None
    """Whether a stored answer will do; `Cache-Control: no-cache` says the same as false."""
    timeout: Seconds | None = None
    """Seconds after which the answer is of no use; the header `X-Request-Timeout` says the same."""


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[Listed[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormatSpec | None = None
    tools: Listed[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: None = None
    """Replaced by `tools` in OpenAI's API; not offered."""


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    prompt: str | Listed[str] | TokenIds | Listed[TokenIds]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: One | None = None
    echo: Literal[False] | None = None
    suffix: None = None


class EmbeddingsRequest(Wire):
    """Body of POST /v1/embeddings."""

    model: str | None = None
    input: str | Listed[str] | TokenIds | Listed[TokenIds]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    timeout: Seconds | None = None


class QueryRequest(BaseModel):
    """Body of POST /query, the simple way to ask."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    text: Annotated[str, StringConstraints(min_length=1)]
    """What to ask."""
    system: str | None = None
    """Instructions that stand before the question."""
    model: str | None = None
    max_tokens: Tokens = 256
    """Longest answer in tokens; small models at temperature 0 may repeat themselves up to it."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_p: Probability | None = None
    stop: StopString | Listed[StopString] | None = None
    seed: Seed | None = None
    stream: bool = False
    cache: bool | None = None
    """Whether a stored answer will do."""
    timeout: Seconds | None = None


_NoteName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Note = Annotated[str, StringConstraints(max_length=512)]
Notes = Annotated[dict[_NoteName, _Note], Field(max_length=16)]
"""What a caller writes on its jobs and batches; OpenAI's bounds."""


class JobRequest(BaseModel):
    """Body of POST /jobs: a request to be made later. The body of /query alone is a job as well."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    endpoint: Literal["/query", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    """The route that would answer it at once."""
    request: dict[str, Any]
    """That route's body; `stream` is of no account."""
    callback_url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None
    """Where the ended job is sent, as a signed webhook."""
    not_before: str | float | None = None
    """The earliest start: a time as RFC 3339 has it, or seconds since 1970."""
    expires_in: Annotated[float, Field(gt=0, le=31_622_400)] | None = None
    """Seconds from now after which a job that has not started is of no use."""
    metadata: Notes | None = None
    """The caller's own notes."""


class ExpiresAfter(Wire):
    """When a file is forgotten."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(Wire):
    """Body of POST /v1/batches."""

    input_file_id: str
    """A file of purpose `batch`."""
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    """The route that all lines ask; OpenAI's, and the same in each line's `url`."""
    completion_window: Literal["24h"]
    metadata: Notes | None = None
    """The caller's own notes."""
    output_expires_after: ExpiresAfter | None = None
    """When the results' files are forgotten; after 30 days unless it is said."""


class RolloutRequest(BaseModel):
    """Body of POST /admin/rollouts: which version takes over, and how; what is left out is as configured."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    model: Annotated[str, StringConstraints(min_length=1, max_length=257)]
    """The new version: NAME@VERSION of a stored model."""
    serves: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """The served model that it takes over; the one of its name unless it is said."""
    evaluation: dict[str, Any] | None = None
    """An evaluation set that it must pass."""
    skip_evaluation: bool = False
    """Whether it needs to pass none."""
    promotion: Literal["auto", "manual"] | None = None
    """Whether it takes over by itself when it has passed, or waits for a word."""
    canary: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of callers who get it before all others do."""
    canary_time: Annotated[float, Field(gt=0, le=LONGEST_PHASE_S)] | None = None
    """Seconds for which only they do."""
    bake: Annotated[float, Field(ge=0, le=LONGEST_PHASE_S)] | None = None
    """Seconds for which the old version is kept warm after the switch."""
    accept_gap: bool = False
    """Whether the model may be away while versions change, where both do not fit into the memory at once."""
    dry_run: bool = False
    """Say what would happen, and do nothing."""
