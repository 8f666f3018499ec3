"""Frozen settings, grouped by concern; the only reader of configuration files and environment variables.

Precedence, lowest first: defaults, `stoker.yaml`, environment (`STOKER_...`, nested keys joined by two underscores:
`STOKER_QUEUE__MAX_REQUESTS`), command-line flags. Everything is validated at start; a wrong value ends the program
with a message that names the key, the value and the remedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from stoker.errors import ConfigError

ENV_PREFIX = "STOKER_"
DEFAULT_FILE = Path("stoker.yaml")
OTHER_VARIABLES = frozenset({"CONFIG", "URL", "API_KEY"})
"""Variables after the prefix that are no settings: the file to read, and what `stoker query` and `chat` ask."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
CacheType = Literal["f16", "q8_0", "q4_0"]


class Group(BaseModel):
    """Base of every settings group: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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
    upstream: str | None = Field(default=None, pattern=r"^https?://")
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


class LimitsConfig(Group):
    """What a single request may ask for. Over a limit the answer is a 4xx that names the field and the bound."""

    body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Bytes of a request's body, counted before anything is parsed."""
    nesting: int = Field(default=64, ge=4, le=150)
    """Depth of nested JSON objects and arrays."""
    messages: int = Field(default=1024, ge=1)
    """Messages in one conversation."""
    characters: int = Field(default=200_000, ge=1)
    """Characters of all messages or of the prompt together."""
    stop_strings: int = Field(default=16, ge=0)
    """Stop strings in one request."""
    logit_bias: int = Field(default=1024, ge=0)
    """Entries of `logit_bias` in one request."""
    tools: int = Field(default=128, ge=0)
    """Tools in one request."""
    prompts: int = Field(default=64, ge=1)
    """Prompts in one /v1/completions request."""
    embedding_inputs: int = Field(default=2048, ge=1)
    """Texts in one embeddings request."""
    temperature: float = Field(default=2.0, ge=0, le=100)
    """Highest temperature on /v1."""
    query_temperature: float = Field(default=1.0, ge=0, le=100)
    """Highest temperature on /query."""


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
    """How an engine process that ends is started again: exponential backoff, then giving up."""

    backoff: float = Field(default=0.2, gt=0)
    """First pause, in seconds; doubled at each failure in a row."""
    backoff_max: float = Field(default=30.0, gt=0)
    """Longest pause, in seconds."""
    give_up_after: int = Field(default=8, ge=1)
    """Failures in a row after which the engine stays down and health says so."""
    healthy_after: float = Field(default=10.0, gt=0)
    """Seconds of running (or one finished request) after which earlier failures are forgotten."""


class LogConfig(Group):
    """Where and how much is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` writes colours on a terminal and JSON lines elsewhere."""


def default_data_dir() -> Path:
    """The data directory when none is configured, by the XDG base directory specification."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "stoker"


class _Environment(EnvSettingsSource):
    """The environment, without what Kubernetes puts there for a Service named `stoker`: STOKER_PORT=tcp://10.0.0.1:80."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if str(found.get("port", "")).startswith("tcp://"):
            del found["port"]
        return found


class Settings(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        nested_model_default_partial_update=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port to listen on; 0 lets the system choose."""
    allow_public: bool = False
    """Allow an address other than loopback although no keys are configured."""
    data_dir: Path = Field(default_factory=default_data_dir)
    """Where models and everything else that must survive is kept."""
    engine: Literal["auto", "llamacpp"] = "auto"
    """Engine that runs model files; `auto` takes the best one for the file and the host."""
    models: tuple[ModelConfig, ...] = ()
    """The models to serve."""
    default_model: str | None = None
    """Model that answers when a request names none, or `default`. Default: the first one."""
    plan: PlanConfig = PlanConfig()
    """Choices by hand for every model's engine; a model's own `plan` goes before."""
    queue: QueueConfig = QueueConfig()
    limits: LimitsConfig = LimitsConfig()
    generation: GenerationConfig = GenerationConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    restart: RestartConfig = RestartConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"models: every name must be there once, got {', '.join(names)}")
        reserved = {"default", "auto"} & set(names)
        if reserved:
            raise ValueError(f"models: the name {reserved.pop()!r} is reserved, choose another")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(
                f"default_model: {self.default_model!r} is not among models ({', '.join(names) or 'none'})"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's values arrive as init arguments and yield to the environment; `load` merges flags over both.
        return _Environment(settings_cls), init_settings


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the configuration.

    Args:
        file: YAML file to read; None reads `$STOKER_CONFIG`, else `stoker.yaml` if it exists.
        flags: values from the command line, as nested mappings; None values are ignored.

    Returns: validated, frozen settings.

    Raises:
        ConfigError: a file that cannot be read, or a value that is wrong, with key, value and remedy.
    """
    origin = file or (Path(os.environ["STOKER_CONFIG"]) if os.environ.get("STOKER_CONFIG") else None)
    if origin is None and DEFAULT_FILE.is_file():
        origin = DEFAULT_FILE
    from_file = read_yaml(origin) if origin else {}
    given = _without_none(flags or {})
    _refuse_unknown_environment()
    try:
        settings = Settings(**from_file)
        if given:
            # Re-validate the merged tree, so that a wrong flag is reported like a wrong file.
            merged = _merge(settings.model_dump(exclude_unset=True), given)
            settings = _Exact(**merged)
    except ValidationError as error:
        raise ConfigError(explain(error, origin)) from None
    return settings


class _Exact(Settings):
    """Settings from their arguments alone: what the environment said is already among them."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a configuration file into a mapping; raises ConfigError when that cannot be done."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name another file with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{path}: must hold `key: value` lines at the top; `stoker config init` writes an example")
    return document


def explain(error: ValidationError, origin: Path | None) -> str:
    """Every complaint of a ValidationError on a line of its own: key, value, what is wrong, where to mend it."""
    lines = []
    for problem in error.errors(include_url=False):
        location = problem["loc"]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        if problem["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(location[:-1]))
            lines.append(f"{key}: unknown key" + (f"; known here: {known}" if known else ""))
            continue
        value = problem["input"] if not isinstance(problem["input"], (dict, BaseModel)) else None
        shown = "" if value is None or "key" in key else f" = {value!r}"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{key}{shown}: {message}" if key else message)
    variable = ENV_PREFIX + "<KEY>"
    where = f"{origin}, {variable} or a flag" if origin else f"a stoker.yaml, {variable} or a flag"
    return (
        "configuration is not valid:\n  "
        + "\n  ".join(lines)
        + f"\nMend it in {where}; `stoker config schema` lists every key."
    )


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed at a place in the settings; empty when the place itself is unknown."""
    model: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, int):
            continue
        if part == "models":
            model = ModelConfig
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _refuse_unknown_environment() -> None:
    """A mistyped STOKER_ variable must not be silently without effect."""
    known = {name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for variable in os.environ:
        if not variable.startswith(ENV_PREFIX):
            continue
        head = variable.removeprefix(ENV_PREFIX).split("__", 1)[0]
        # Kubernetes makes variables like STOKER_SERVICE_HOST and STOKER_PORT_80_TCP for a Service named stoker.
        if head in known or head.startswith(("SERVICE_", "PORT_")):
            continue
        raise ConfigError(
            f"{variable}: no such setting; known: {', '.join(sorted(ENV_PREFIX + name for name in known))}"
        )


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without None leaves, which stand for flags that were not given."""
    clean: dict[str, Any] = {}
    for key, value in tree.items():
        kept = _without_none(value) if isinstance(value, Mapping) else value
        if kept is not None and kept != {}:
            clean[key] = kept
    return clean


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees in one; where both have a leaf, `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
