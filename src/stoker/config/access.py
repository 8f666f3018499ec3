"""Who may ask, how much, and what a request may hold: settings of `admission/`."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field, SecretStr

from stoker.config.groups import Group, Name

Scope = Literal["inference", "jobs", "admin"]
GuardMode = Literal["off", "log", "flag", "block"]
GuardRole = Literal["system", "user", "assistant", "tool"]


class GuardPolicy(Group):
    """What is done about prompt injection. A value left out is inherited: key before model before `guard`."""

    mode: GuardMode | None = None
    """`off` looks at nothing, `log` only logs, `flag` also says so in a response header, `block` refuses with 400."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Score from which a text counts as an attack, 0..1; lower finds more and errs more."""
    roles: tuple[GuardRole, ...] | None = None
    """Roles whose messages are looked at."""


class LimitsConfig(Group):
    """What a single request may ask for. Over a limit the answer is a 4xx that names the field and the bound."""

    body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Bytes of a request's body, counted before anything is parsed."""
    bodies_mib: int = Field(default=256, ge=1)
    """Memory for all bodies that are arriving at one moment, in MiB; what comes beyond is refused with 503."""
    connections: int = Field(default=4096, ge=1)
    """Connections at once; one more is answered with 503 and closed."""
    nesting: int = Field(default=64, ge=4, le=150)
    """Depth of nested JSON objects and arrays."""
    messages: int = Field(default=1024, ge=1, le=10_000)
    """Messages in one conversation."""
    characters: int = Field(default=200_000, ge=1)
    """Characters of all messages or of the prompt together."""
    stop_strings: int = Field(default=16, ge=0, le=10_000)
    """Stop strings in one request."""
    logit_bias: int = Field(default=1024, ge=0, le=10_000)
    """Entries of `logit_bias` in one request."""
    tools: int = Field(default=128, ge=0, le=10_000)
    """Tools in one request."""
    prompts: int = Field(default=64, ge=1, le=10_000)
    """Prompts in one /v1/completions request."""
    embedding_inputs: int = Field(default=2048, ge=1, le=10_000)
    """Texts in one embeddings request."""
    unknown_fields: Literal["ignore", "refuse"] = "ignore"
    """What is done about fields of /v1 that mean nothing here: they are named in the log, or refused by name."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one prompt, counted by the model's own tokenizer. Default: what the context holds."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Highest `max_tokens` that a request may name."""
    top_p: float = Field(default=1.0, ge=0, le=1)
    """Highest `top_p`."""
    penalty: float = Field(default=2.0, ge=0, le=2)
    """Highest `frequency_penalty` and `presence_penalty`, in either direction."""
    temperature: float = Field(default=2.0, ge=0, le=100)
    """Highest temperature on /v1."""
    query_temperature: float = Field(default=1.0, ge=0, le=100)
    """Highest temperature on /query."""


class RateConfig(Group):
    """What one caller may take. A value left out is no limit."""

    requests: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests in a window."""
    tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Tokens in a window: the prompt's, and the answer's as they turn out; until then its longest possible length."""
    window: float = Field(default=60.0, ge=1, le=86_400)
    """Length of the sliding window, in seconds."""
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    """Requests at once, those that wait included."""


class RateLimitsConfig(Group):
    """Who may take how much. Nothing is limited by default; the shipped production configuration sets limits."""

    anonymous: RateConfig = RateConfig()
    """Each address that comes without a key; IPv6 addresses count by /64."""
    key: RateConfig = RateConfig()
    """Each key that sets no `rate` of its own."""
    address: RateConfig = RateConfig()
    """Each address besides, whatever keys come from it."""


class GuardConfig(Group):
    """The guard against prompt injection and leaks."""

    mode: GuardMode = "log"
    """`off` looks at nothing, `log` only logs, `flag` also says so in a response header, `block` refuses with 400."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Score from which a text counts as an attack, 0..1; lower finds more and errs more."""
    roles: tuple[GuardRole, ...] = ("system", "user", "tool")
    """Roles whose messages are looked at; system prompts of a `trusted` key never are."""
    characters: int = Field(default=20_000, ge=100)
    """Characters of a message that are looked at: of a longer one its beginning and its end."""
    protect_system_prompt: bool = False
    """Whether answers that repeat a long piece of the system prompt are cut off."""
    canary: SecretStr | None = None
    """A marker that you put into system prompts; an answer in which it comes is cut off."""
    secrets: tuple[SecretStr, ...] = ()
    """Texts that must not leave in an answer."""


class KeyConfig(Group):
    """An API key. Only its hash is kept; `stoker keys create` makes one and prints it once."""

    name: Name
    """Who it is: shown in logs and metrics, and the tenant whose cache and queue share the key has."""
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """SHA-256 of the key, as `sha256:` and 64 hexadecimal digits."""
    scopes: tuple[Scope, ...] = ("inference", "jobs")
    """What it may do: `inference` asks models, `jobs` manages jobs, `admin` everything under /admin."""
    models: tuple[str, ...] = ()
    """Models it may ask; none named means all."""
    rate: RateConfig | None = None
    """Its own limits, in place of `rate_limits.key`."""
    guard: GuardPolicy = GuardPolicy()
    """Its own choices for the guard."""
    trusted: bool = False
    """Whether its system prompts are taken as they are, without the guard's look at them."""
    expires: AwareDatetime | None = None
    """When it stops working; with a time zone."""


class KeysFile(Group):
    """What stands in a keys file."""

    keys: tuple[KeyConfig, ...] = ()
