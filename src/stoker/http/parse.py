"""From a request's bytes to our vocabulary in one pass; a caller's mistake becomes a RequestError with its field."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stoker.config import LimitsConfig, Settings
from stoker.errors import RequestError, Unsupported
from stoker.http import schemas
from stoker.types import (
    EmbeddingRequest,
    GenerationRequest,
    Message,
    Principal,
    ResponseFormat,
    Sampling,
    ToolSpec,
    ToolUse,
)

TIMEOUT_HEADER = "x-request-timeout"
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
SHOWN_PROBLEMS = 5

Body = TypeVar("Body", bound=BaseModel)


def read_body(model: type[Body], raw: bytes) -> Body:
    """Parse JSON bytes into a wire form.

    Raises:
        RequestError: not JSON, nested too deeply for the parser, or not of the form; names the fields.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        shown = [f"{_field(problem['loc'])}{problem['msg']}" for problem in problems[:SHOWN_PROBLEMS]]
        more = f" (and {len(problems) - SHOWN_PROBLEMS} more)" if len(problems) > SHOWN_PROBLEMS else ""
        param = _field(problems[0]["loc"]).removesuffix(": ") or None
        raise RequestError("; ".join(shown) + more, param=param) from None
    except UnicodeError:
        raise RequestError("the body is not valid UTF-8") from None


def _field(location: tuple[int | str, ...]) -> str:
    """A location as `messages[0].content: `; the branches of unions, which callers never wrote, are left out."""
    written = ""
    for part in location:
        if isinstance(part, int):
            written += f"[{part}]"
        elif part.replace("_", "").isalnum() and not part[0].isupper() and part not in {"str", "int", "list"}:
            written += f".{part}" if written else part
    return f"{written[:200]}: " if written else ""


class Reader:
    """Makes our requests from wire forms, with the defaults of the configuration."""

    def __init__(self, settings: Settings) -> None:
        self._timeouts = settings.timeouts
        self._limits: LimitsConfig = settings.limits

    def chat(self, body: schemas.ChatRequest, headers: Mapping[str, str], principal: Principal) -> GenerationRequest:
        """A chat request; RequestError for combinations that mean nothing."""
        _check_stream_options(body)
        sampling = _sampling(body, body.max_completion_tokens or body.max_tokens, body.logprobs or False)
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs: needs `logprobs: true`", param="top_logprobs")
        return GenerationRequest(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            kind="chat",
            model=body.model or "",
            deadline=self._deadline(body.timeout, headers),
            messages=tuple(_message(message, index) for index, message in enumerate(body.messages)),
            sampling=Sampling(**sampling, top_logprobs=body.top_logprobs),
            tool_use=self._tool_use(body),
            response_format=self._response_format(body.response_format),
            cache=_wants_cache(body.cache, headers),
            principal=principal,
        )

    def completions(
        self, body: schemas.CompletionRequest, headers: Mapping[str, str], principal: Principal
    ) -> tuple[GenerationRequest, ...]:
        """One request for each prompt."""
        _check_stream_options(body)
        prompts = _inputs(body.prompt, "prompt")
        if len(prompts) > self._limits.prompts:
            raise RequestError(f"prompt: {len(prompts)} prompts, at most {self._limits.prompts} here", param="prompt")
        sampling = Sampling(**_sampling(body, body.max_tokens, body.logprobs is not None), top_logprobs=body.logprobs)
        identifier = f"cmpl-{uuid.uuid4().hex}"
        deadline = self._deadline(body.timeout, headers)
        cache = _wants_cache(body.cache, headers)
        return tuple(
            GenerationRequest(
                id=identifier,
                kind="completion",
                model=body.model or "",
                deadline=deadline,
                prompt=prompt,
                sampling=sampling,
                cache=cache,
                principal=principal,
                admitted=index > 0,
            )
            for index, prompt in enumerate(prompts)
        )

    def embeddings(
        self, body: schemas.EmbeddingsRequest, headers: Mapping[str, str], principal: Principal
    ) -> EmbeddingRequest:
        """An embeddings request."""
        return EmbeddingRequest(
            id=f"embd-{uuid.uuid4().hex}",
            model=body.model or "",
            deadline=self._deadline(body.timeout, headers),
            inputs=_inputs(body.input, "input"),
            principal=principal,
        )

    def query(self, body: schemas.QueryRequest, headers: Mapping[str, str], principal: Principal) -> GenerationRequest:
        """A /query request: a chat of one question; its temperature has a bound of its own."""
        bound = self._limits.query_temperature
        if body.temperature > bound:
            raise RequestError(f"temperature: {body.temperature:g} is over {bound:g}", param="temperature")
        system: list[Message] = [{"role": "system", "content": _clean(body.system)}] if body.system is not None else []
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        return GenerationRequest(
            id=f"query-{uuid.uuid4().hex}",
            kind="chat",
            model=body.model or "",
            deadline=self._deadline(body.timeout, headers),
            messages=(*system, {"role": "user", "content": _clean(body.text)}),
            sampling=Sampling(
                max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, stop=stop, seed=body.seed
            ),
            cache=_wants_cache(body.cache, headers),
            principal=principal,
        )

    def unknown_fields(self, body: schemas.SamplingFields) -> tuple[str, ...]:
        """The fields that mean nothing here, for the log; RequestError where the configuration refuses them."""
        # Strangers' names go into lines that people and programs read: nothing in them may end one.
        names = tuple(ascii(name[:64])[1:-1] for name in list(body.model_extra or ())[:SHOWN_PROBLEMS])
        strange = [name for name in names if name not in schemas.WITHOUT_EFFECT]
        if strange and self._limits.unknown_fields == "refuse":
            raise RequestError(f"{', '.join(strange)}: unknown; see /docs for the fields there are", param=strange[0])
        return names

    def _deadline(self, field: float | None, headers: Mapping[str, str]) -> float:
        """When the answer is needed: by the field, else the header, else the default, within the maximum."""
        seconds = field
        if seconds is None and (header := headers.get(TIMEOUT_HEADER)):
            try:
                seconds = float(header)
            except ValueError:
                seconds = -1.0
            if not 0 < seconds <= 86_400:  # noqa: PLR2004 - as the field: a day
                raise RequestError(f"header X-Request-Timeout: {header[:32]!r} is not a number of seconds, 0..86400")
        if seconds is None:
            seconds = self._timeouts.request
        return time.monotonic() + min(seconds, self._timeouts.request_max)

    def _tool_use(self, body: schemas.ChatRequest) -> ToolUse | None:
        choice = body.tool_choice
        if not body.tools:
            if choice not in {None, "none", "auto"} if not isinstance(choice, schemas.NamedTool) else True:
                raise RequestError("tool_choice: there are no `tools` to choose from", param="tool_choice")
            return None
        specs = []
        for index, tool in enumerate(body.tools):
            parameters = tool.function.parameters or NO_PARAMETERS
            self._check_tree(parameters, f"tools[{index}].function.parameters")
            specs.append(ToolSpec(tool.function.name, tool.function.description or "", parameters))
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise RequestError("tools: every function name must be there once", param="tools")
        parallel = body.parallel_tool_calls is not False
        if isinstance(choice, schemas.NamedTool):
            if choice.function.name not in names:
                raise RequestError(
                    f"tool_choice: {choice.function.name!r} is not among the tools ({', '.join(names[:20])})",
                    param="tool_choice",
                )
            return ToolUse(tuple(specs), "named", choice.function.name, parallel)
        return ToolUse(tuple(specs), choice or "auto", None, parallel)

    def _response_format(self, spec: schemas.ResponseFormatSpec | None) -> ResponseFormat | None:
        if spec is None or spec.type == "text":
            return None
        if spec.type == "json_object":
            self._check_tree(spec.plain_schema or {}, "response_format.schema")
            return ResponseFormat(spec.plain_schema)
        if spec.json_schema is None or spec.json_schema.json_schema is None:
            raise RequestError("response_format.json_schema.schema: is missing", param="response_format")
        self._check_tree(spec.json_schema.json_schema, "response_format.json_schema.schema")
        return ResponseFormat(spec.json_schema.json_schema, spec.json_schema.name)

    def _check_tree(self, tree: Any, param: str) -> None:
        """Refuse JSON that is nested deeper than the configuration allows, or holds numbers that JSON does not keep.

        Without recursion, for the tree may be as deep as a parser lets through.
        """
        level = [tree]
        for _ in range(self._limits.nesting):
            _check_numbers(level, param)
            level = [
                child
                for node in level
                if isinstance(node, (dict, list))
                for child in (node.values() if isinstance(node, dict) else node)
            ]
            if not level:
                return
        raise RequestError(f"{param}: is nested more than {self._limits.nesting} levels deep", param=param)


def _check_numbers(values: Sequence[Any], param: str) -> None:
    """RFC 8259 knows no NaN and no infinity, and an integer over 64 bits arrives nowhere as it was sent."""
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{param}: holds a number that JSON cannot write; use a finite one", param=param)
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise RequestError(f"{param}: holds an integer over 64 bits; use a smaller one, or a string", param=param)


def _wants_cache(field: bool | None, headers: Mapping[str, str]) -> bool:
    """Whether a stored answer will do: neither the body nor `Cache-Control` (RFC 9111, 5.2.1) declines it."""
    directives = {part.strip().lower() for part in headers.get("cache-control", "").split(",")}
    return field is not False and not directives & {"no-cache", "no-store"}


def _check_stream_options(body: schemas.SamplingFields) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: needs `stream: true`", param="stream_options")


def _sampling(body: schemas.SamplingFields, max_tokens: int | None, logprobs: bool) -> dict[str, Any]:
    """The fields of Sampling that chat and completions share."""
    return {
        "max_tokens": max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "repeat_penalty": body.repeat_penalty,
        "seed": body.seed,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        "logit_bias": body.logit_bias or None,
        "logprobs": logprobs,
        "ignore_eos": body.ignore_eos or False,
    }


def _message(message: schemas.ChatMessage, index: int) -> Message:
    """A message with its parts joined into one string, in the roles that chat templates know."""
    content = _text(message.content, index)
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    plain: Message = {"role": role, "content": content}
    if message.tool_calls:
        if role != "assistant":
            raise RequestError(f"messages[{index}].tool_calls: only an assistant's message has them", param="messages")
        plain["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    elif content is None:
        if role != "assistant":
            raise RequestError(f"messages[{index}].content: is missing", param=f"messages[{index}].content")
        plain["content"] = ""
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _clean(text: str) -> str:
    """The text without NUL, at which native code would end it."""
    return text.replace("\0", "") if "\0" in text else text


def _text(content: str | list[schemas.TextPart] | None, index: int) -> str | None:
    if content is None or isinstance(content, str):
        return content and _clean(content)
    texts = [part.text if part.type == "text" else part.refusal for part in content]
    if any(text is None for text in texts):
        raise RequestError(f"messages[{index}].content: a part without its text", param=f"messages[{index}].content")
    return _clean("".join(text for text in texts if text))


def _inputs(value: str | list[str] | list[int] | list[list[int]], param: str) -> tuple[str | tuple[int, ...], ...]:
    """OpenAI's four ways to give prompts or inputs, as a tuple of texts or token lists; empty ones are refused."""
    if isinstance(value, str):
        inputs: tuple[str | tuple[int, ...], ...] = (_clean(value),)
    elif all(isinstance(item, int) for item in value):
        inputs = (tuple(item for item in value if isinstance(item, int)),)
    else:
        given = (item for item in value if not isinstance(item, int))
        inputs = tuple(_clean(item) if isinstance(item, str) else tuple(item) for item in given)
    if not all(inputs) or not inputs:
        raise RequestError(f"{param}: is empty; give a text", param=param)
    return inputs


def refuse_dimensions(body: schemas.EmbeddingsRequest) -> None:
    """Shortened vectors are a trait of models trained for them; cutting others would quietly spoil them."""
    if body.dimensions is not None:
        raise Unsupported("dimensions: this model's vectors have one length; leave the field out", param="dimensions")
