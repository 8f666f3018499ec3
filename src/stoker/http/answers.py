"""The wire forms of answers, for the OpenAPI document. Answers themselves are written as bytes, by `render`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class TokenDetails(BaseModel):
    """Where prompt tokens came from."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens that the request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails | None = None


class AnswerMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """Answer of /v1/chat/completions without `stream`; with it, server-sent events `chat.completion.chunk`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """The continuation of one prompt."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Finish


class TextCompletion(BaseModel):
    """Answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class Embedding(BaseModel):
    """One vector: numbers, or base64 of little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens that the inputs had."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(BaseModel):
    """A served model; `digest` is the SHA-256 of its file."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    version: str
    digest: str


class ModelList(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"]
    data: list[Model]


class QueryTimings(BaseModel):
    """Milliseconds: waiting for a slot, until the first token, in all."""

    queue_ms: float
    first_token_ms: float
    total_ms: float


class QueryRoute(BaseModel):
    """Which model answered, by way of which expert, and why that one; `confidence` where a classifier chose, 0..1."""

    model: str | None
    reason: str
    expert: str | None = None
    confidence: float | None = None


class QueryAnswer(BaseModel):
    """Answer of /query."""

    id: str
    model: str
    text: str
    finish_reason: Finish
    usage: Usage
    cache: Literal["hit", "miss", "joined", "bypass"]
    route: QueryRoute
    timings: QueryTimings


class ErrorDetail(BaseModel):
    """What went wrong: `code` is for programs, `message` for people, `param` names the field at fault."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorEnvelope(BaseModel):
    """OpenAI's error envelope, under /v1."""

    error: ErrorDetail


class Problem(BaseModel):
    """RFC 9457 problem, everywhere else."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None = None


class ProbeAnswer(BaseModel):
    """What a probe said: `status` is `ok` or `fail`, with a reason when it failed."""

    status: Literal["ok", "fail"]
    reason: str | None = None


class HealthReport(BaseModel):
    """The report of /health; where keys are in force, callers without one get `status` and the checks' names alone."""

    status: Literal["ok", "warn", "fail"]
    version: str | None = None
    uptime_s: float | None = None
    checks: list[dict[str, Any]]
    models: list[dict[str, Any]] | None = None
    process: dict[str, Any] | None = None


class Cleared(BaseModel):
    """What was forgotten: answers of one model, or of all."""

    model: str | None
    cleared: int


JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]


class JobError(BaseModel):
    """Why a job failed, or why its last attempt did."""

    code: str
    message: str
    type: str
    status: int
    param: str | None = None


class JobTimings(BaseModel):
    """Milliseconds: from submission to the latest start, and since then; up to now for what still goes on."""

    queued_ms: float | None
    running_ms: float | None


class CallbackAttempt(BaseModel):
    """One attempt to deliver a webhook."""

    attempt: int
    at: str
    status: int | None
    error: str | None
    duration_ms: float


class JobCallback(BaseModel):
    """Where the ended job is sent, and what came of it."""

    url: str
    deliveries: list[CallbackAttempt]


class Job(BaseModel):
    """A job. Times are RFC 3339, in UTC. Lists leave out `metadata`, `result`, `error` and `position`."""

    id: str
    object: Literal["job"]
    state: JobState
    endpoint: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    position: int | None = None
    attempts: int
    max_attempts: int
    cancelling: bool
    not_before: str | None
    expires_at: str | None
    timings: JobTimings
    batch: str | None = None
    custom_id: str | None = None
    metadata: dict[str, str] | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None
    callback: JobCallback | None = None


class JobList(BaseModel):
    """Jobs, newest first; `next` is the `after` of the page behind this one."""

    object: Literal["list"]
    data: list[Job]
    has_more: bool
    next: str | None


class File(BaseModel):
    """A file of /v1/files; times in seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class FileList(BaseModel):
    """Files of the caller."""

    object: Literal["list"]
    data: list[File]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(BaseModel):
    """The file is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


class BatchError(BaseModel):
    """What is wrong with a line of a batch's file."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(BaseModel):
    """Why a batch failed."""

    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(BaseModel):
    """A batch's lines: all, those with an answer, those without that have ended."""

    total: int
    completed: int
    failed: int


class Batch(BaseModel):
    """A batch; times in seconds since 1970."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """Batches of the caller, newest first."""

    object: Literal["list"]
    data: list[Batch]
    has_more: bool
    first_id: str | None
    last_id: str | None
