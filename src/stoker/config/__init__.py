"""Frozen settings, grouped by concern; the only reader of configuration files and environment variables.

Precedence, lowest first: defaults, `stoker.yaml`, environment (`STOKER_...`, nested keys joined by two underscores:
`STOKER_QUEUE__MAX_REQUESTS`), command-line flags. Everything is validated at start; a wrong value ends the program
with a message that names the key, the value and the remedy.
"""

from stoker.config.access import (
    GuardConfig,
    GuardMode,
    GuardPolicy,
    GuardRole,
    KeyConfig,
    LimitsConfig,
    RateConfig,
    RateLimitsConfig,
    Scope,
)
from stoker.config.groups import Group
from stoker.config.jobs import JobsConfig, WebhookConfig
from stoker.config.keeping import BackupConfig, RetentionConfig, RolloutConfig
from stoker.config.loading import load, load_keys, origin_of, read_yaml
from stoker.config.serving import (
    CacheConfig,
    CacheType,
    ExpertConfig,
    GenerationConfig,
    ModelConfig,
    PlanConfig,
    QueueConfig,
    RestartConfig,
    RoutingConfig,
    StoreConfig,
    TimeoutConfig,
)
from stoker.config.settings import ENV_PREFIX, Settings, default_data_dir
from stoker.config.watching import HealthConfig, LogConfig, MonitorConfig, TracingConfig

__all__ = [
    "ENV_PREFIX",
    "BackupConfig",
    "CacheConfig",
    "CacheType",
    "ExpertConfig",
    "GenerationConfig",
    "Group",
    "GuardConfig",
    "GuardMode",
    "GuardPolicy",
    "GuardRole",
    "HealthConfig",
    "JobsConfig",
    "KeyConfig",
    "LimitsConfig",
    "LogConfig",
    "ModelConfig",
    "MonitorConfig",
    "PlanConfig",
    "QueueConfig",
    "RateConfig",
    "RateLimitsConfig",
    "RestartConfig",
    "RetentionConfig",
    "RolloutConfig",
    "RoutingConfig",
    "Scope",
    "Settings",
    "StoreConfig",
    "TimeoutConfig",
    "TracingConfig",
    "WebhookConfig",
    "default_data_dir",
    "load",
    "load_keys",
    "origin_of",
    "read_yaml",
]
