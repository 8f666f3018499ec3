"""Everything that can be configured, in one frozen tree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from stoker.config.access import GuardConfig, KeyConfig, LimitsConfig, RateLimitsConfig
from stoker.config.jobs import JobsConfig
from stoker.config.keeping import BackupConfig, RolloutConfig
from stoker.config.serving import (
    CacheConfig,
    GenerationConfig,
    ModelConfig,
    PlanConfig,
    QueueConfig,
    RestartConfig,
    RoutingConfig,
    StoreConfig,
    TimeoutConfig,
)
from stoker.config.watching import HealthConfig, LogConfig, MonitorConfig, TracingConfig

ENV_PREFIX = "STOKER_"


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
    keys: tuple[KeyConfig, ...] = ()
    """API keys. With at least one, here or in `keys_file`, every route but the probes needs one."""
    keys_file: Path | None = None
    """More keys, in YAML, read again when it changes; `stoker keys` writes it. Default: keys.yaml in `data_dir`."""
    anonymous: bool | None = None
    """Whether requests without a key are served. Default: only while there are no keys."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For` is believed."""
    store: StoreConfig = StoreConfig()
    cache: CacheConfig = CacheConfig()
    rate_limits: RateLimitsConfig = RateLimitsConfig()
    guard: GuardConfig = GuardConfig()
    routing: RoutingConfig = RoutingConfig()
    queue: QueueConfig = QueueConfig()
    limits: LimitsConfig = LimitsConfig()
    generation: GenerationConfig = GenerationConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    restart: RestartConfig = RestartConfig()
    jobs: JobsConfig = JobsConfig()
    rollout: RolloutConfig = RolloutConfig()
    backup: BackupConfig = BackupConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
    monitor: MonitorConfig = MonitorConfig()
    health: HealthConfig = HealthConfig()

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
        self._check_experts(names)
        return self

    def _check_experts(self, names: Sequence[str]) -> None:
        """Experts are called like nothing else, and lead to models that are served."""
        experts = [expert.name for expert in self.routing.experts]
        taken = {"default", "auto", *names} & set(experts)
        if taken:
            raise ValueError(f"routing.experts: the name {taken.pop()!r} is a model's or reserved, choose another")
        for expert in self.routing.experts:
            if expert.model not in names:
                there = ", ".join(names) or "none"
                raise ValueError(
                    f"routing.experts: {expert.name}.model: {expert.model!r} is not among models ({there})"
                )
            if expert.fallback is not None and expert.fallback not in {*names, *experts}:
                raise ValueError(f"routing.experts: {expert.name}.fallback: there is no {expert.fallback!r}")

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


class ExactSettings(Settings):
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
