"""Which models are served and how, and where answers are kept: of `engine/`, `cache/`, `routing/`, `store/`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from stoker.config.access import GuardPolicy
from stoker.config.groups import Group, Name

CacheType = Literal["f16", "q8_0", "q4_0"]


class PlanConfig(Group):
    """Choices that `engine/plan` would make by itself; a value given here is taken as it is."""

    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads that compute tokens. Default: the CPU quota, rounded down."""
    threads_batch: int | None = Field(default=None, ge=1, le=1024)
    """Threads that compute prompts. Default: as `threads`."""
    slots: int | None = Field(default=None, ge=1, le=256)
    """Requests that the engine works on at once."""
    context: int | None = Field(default=None, ge=128)
    """Tokens of context for each slot (prompt and answer together)."""
    batch: int | None = Field(default=None, ge=8, le=8192)
    """Prompt tokens computed in one step; smaller steps let a cancelled prompt stop sooner."""
    cache_type: CacheType | None = None
    """Storage type of the KV cache."""
    prompt_cache_mib: int | None = Field(default=None, ge=0)
    """Memory for prompts kept beside the slots, in MiB. 0 switches it off."""
    gpu_layers: int | None = Field(default=None, ge=-1)
    """Layers computed on the GPU; -1 is all of them, 0 none."""
    memory_mib: int | None = Field(default=None, ge=64)
    """Memory that this model may take, in MiB. Default: what the host grants."""


class ModelConfig(Group):
    """One model that the server offers: a file of its own engine processes, or another server by URL."""

    name: Name
    """What callers write in `model`."""
    source: str | None = None
    """A path, a stored `name[@version]`, or an address that `stoker models add` understands."""
    upstream: str | None = Field(default=None, pattern=r"^https?://[^/\s]")
    """Base address of an OpenAI-compatible server, without `/v1`; instead of `source`."""
    upstream_model: str | None = None
    """The model's name at the upstream server. Default: `name`."""
    upstream_key: SecretStr | None = None
    """API key sent to the upstream server."""
    upstream_slots: int = Field(default=8, ge=1, le=4096)
    """Requests sent to the upstream server at once."""
    command: tuple[str, ...] = ()
    """Another engine program: it must answer the OpenAI routes on the Unix socket `{socket}` and serve `{model}`. The
    plan's figures are there as `{threads}`, `{slots}`, `{context}`, `{total_context}`, `{batch}` and `{gpu_layers}`."""
    guard: GuardPolicy = GuardPolicy()
    """Choices for the guard when this model is asked."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Engine processes of this model; they share one queue."""
    tools: Literal["auto", "native", "emulated"] = "auto"
    """Whether tool calls are the engine's own, or made by Stoker; `auto` asks the chat template."""
    plan: PlanConfig = PlanConfig()
    """Choices by hand for this model's engine."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.upstream is None):
            raise ValueError("give either `source` (a model file) or `upstream` (a server's URL)")
        return self


class QueueConfig(Group):
    """Requests that wait for a slot, for each model."""

    max_requests: int = Field(default=64, ge=0, le=100_000)
    """Requests that may wait; one more is refused with 503."""
    max_tokens: int = Field(default=65_536, ge=1)
    """Estimated tokens (prompt and answer) that may wait; more is refused with 503."""


class GenerationConfig(Group):
    """Defaults and bounds of what is generated."""

    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer when the request names no `max_tokens`, in tokens; the context bounds it further."""
    json_string_chars: int = Field(default=512, ge=1)
    """Longest string inside structured answers and tool arguments whose schema sets no `maxLength`, in characters."""
    json_array_items: int = Field(default=64, ge=1)
    """Longest array whose schema sets no `maxItems`."""
    json_object_properties: int = Field(default=32, ge=1)
    """Most properties of an object whose schema names none."""
    parallel_tool_calls: int = Field(default=8, ge=1, le=64)
    """Most tool calls in one answer."""


class TimeoutConfig(Group):
    """Times in seconds."""

    request: float = Field(default=300.0, gt=0)
    """Deadline of a request that names none, queueing included."""
    request_max: float = Field(default=3600.0, gt=0)
    """Longest deadline a request may name."""
    lame_duck: float = Field(default=0.0, ge=0, le=300)
    """After SIGTERM, time in which requests are still taken while readiness says no and connections close one by one;
    behind a load balancer, as long as it takes to notice."""
    shutdown: float = Field(default=30.0, ge=0)
    """After SIGTERM, time for accepted requests to finish."""
    keep_alive: float = Field(default=75.0, gt=0)
    """Idle time after which a client's connection is closed."""
    body: float = Field(default=30.0, gt=0)
    """Time for a request's head to arrive, and then for its body."""
    unread: float = Field(default=30.0, gt=0)
    """A client that leaves written bytes unread for so long is disconnected, and its slot freed."""
    stall: float | None = Field(default=None, gt=0)
    """A busy engine that yields nothing for this long is killed and restarted. Default: from the plan, 15 or more."""
    load: float = Field(default=300.0, gt=0)
    """Time for an engine to become ready."""


class RestartConfig(Group):
    """How an engine that ends is started again: exponential backoff, and giving up one that never gets ready."""

    backoff: float = Field(default=0.2, gt=0)
    """First pause, in seconds; doubled at each failure in a row."""
    backoff_max: float = Field(default=30.0, gt=0)
    """Longest pause, in seconds."""
    give_up_after: int = Field(default=8, ge=1)
    """Starts in a row without getting ready after which the engine stays down and health says so. One that was ready is
    always started again: a request may have been its undoing, and the next ones need not be."""
    healthy_after: float = Field(default=10.0, gt=0)
    """Seconds of running (or one finished request) after which earlier failures are forgotten."""


class StoreConfig(Group):
    """Where cached answers and counters are kept."""

    redis: SecretStr | None = None
    """Redis or Valkey that replicas share, as `redis://[user:password@]host:port/db` or `rediss://` or `unix://`.
    Default: the process's own memory."""
    prefix: str = Field(default="stoker:", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """What every name in Redis begins with."""
    timeout: float = Field(default=0.1, gt=0, le=10)
    """Seconds after which Redis counts as down for an operation: a miss, or local limits, never a failed request."""


class CacheConfig(Group):
    """Stored answers to repeated requests."""

    policy: Literal["off", "deterministic", "all"] = "deterministic"
    """What is stored: nothing; answers at temperature 0 or with a seed; every complete answer."""
    cut_off: bool = False
    """Whether answers that ended at `max_tokens` are stored too; they are whole only as far as the caller wanted."""
    ttl: float = Field(default=3600.0, gt=0, le=31_536_000)
    """Seconds for which a stored answer is good."""
    max_mib: float = Field(default=64.0, gt=0, le=1_048_576)
    """Memory for answers in this process, in MiB; the longest unused go first. Redis has a bound of its own."""
    max_entry_kib: int = Field(default=256, ge=1, le=65_536)
    """Larger answers are not stored, in KiB."""


class ExpertConfig(Group):
    """One of several small experts among which requests without a model name are divided."""

    name: Name
    """What routes, logs and metrics call it; callers may name it in `model`."""
    model: str
    """The served model that answers."""
    description: str = Field(default="", max_length=2000)
    """What it is good at, in a sentence."""
    examples: tuple[str, ...] = ()
    """Requests that it should get, some ten to a hundred, in every language that comes."""
    examples_file: Path | None = None
    """More examples: a text file with one a line, or JSONL with `text`, and `domain` to pick this expert's rows."""
    keywords: tuple[str, ...] = ()
    """Words or phrases that send a request here at once."""
    header: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,64}: ?[^\r\n]{1,128}$")
    """`name: value` of a request header that sends a request here at once."""
    system: str | None = None
    """A system prompt put before the conversation, so that one model can be several experts."""
    fallback: str | None = None
    """Expert or model that answers while this one's engine is down. Default: the default model."""


class RoutingConfig(Group):
    """How requests without a model name, or with `model: auto`, find their expert. Off without experts."""

    experts: tuple[ExpertConfig, ...] = ()
    """The experts."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Confidence below which the default model answers, 0..1."""
    out_of_scope: tuple[str, ...] = ()
    """Examples of requests that no expert should get."""
    out_of_scope_file: Path | None = None
    """More of them; as an expert's `examples_file`, its rows of domain `oos`."""
    sticky: float = Field(default=1800.0, ge=0, le=86_400)
    """Seconds for which a conversation stays with its expert; 0 routes each request anew."""
