"""How versions change and how everything is kept: of `rollout/` and `backup/`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import Field, SecretStr, field_validator, model_validator

from stoker.config.groups import Group


class RolloutConfig(Group):
    """How a new version of a model takes over from the running one; a rollout may say otherwise for itself."""

    evaluation: Path | None = None
    """Evaluation set that a new version must pass: YAML or JSONL. Default: the small one that ships with Stoker."""
    promotion: Literal["auto", "manual"] = "auto"
    """Whether a version that passed takes over by itself, or waits for `stoker rollout promote`."""
    canary: float = Field(default=0.0, ge=0, lt=1)
    """Share of callers, by their key, who get the new version before all others do. 0: none."""
    canary_time: float = Field(default=300.0, gt=0)
    """Seconds for which only they do."""
    bake: float = Field(default=600.0, ge=0)
    """Seconds for which the old version is kept warm after the switch."""
    drain: float = Field(default=600.0, gt=0)
    """Longest time in seconds that requests of the old version may still take when it is retired."""
    error_rate: float = Field(default=0.02, ge=0, le=1)
    """Share of failed requests, above the old version's, from which the old version comes back."""
    latency_ratio: float = Field(default=1.5, ge=1)
    """Times by which the 95th percentile of the time to the first token may exceed the old version's."""
    min_requests: int = Field(default=20, ge=1)
    """Requests that must have been seen before they are judged."""


class RetentionConfig(Group):
    """Which snapshots are kept; without any of these, all are."""

    last: int | None = Field(default=None, ge=1)
    """The newest ones."""
    hourly: int | None = Field(default=None, ge=1)
    """The newest one of each hour, for so many hours that have one."""
    daily: int | None = Field(default=None, ge=1)
    """The same for days (UTC)."""
    weekly: int | None = Field(default=None, ge=1)
    """The same for weeks (ISO 8601)."""
    monthly: int | None = Field(default=None, ge=1)
    """The same for months."""
    tags: tuple[str, ...] = ()
    """Snapshots with one of these tags are kept for ever."""


class BackupConfig(Group):
    """Copies of models, registry and configuration elsewhere."""

    repository: str | None = None
    """Where snapshots go: `s3://bucket/prefix` (credentials from the `AWS_*` environment) or a directory."""
    schedule: str | None = None
    """When the server makes one by itself: a cron expression of five fields, in UTC, such as `0 3 * * *`."""
    jobs: bool = False
    """Whether the embedded job log is part of snapshots."""
    key: SecretStr | None = None
    """Passphrase under which secrets (configuration as it is, API keys) are kept too. Without one they are left out."""
    retention: RetentionConfig = RetentionConfig()
    grace: float = Field(default=86_400.0, ge=0)
    """Seconds for which an object is kept that no snapshot needs: one under way may need it."""
    rate_mib: float | None = Field(default=None, gt=0)
    """Most MiB a second that are sent. Default: as fast as it goes, at the lowest priority for processors."""
    look: float = Field(default=300.0, ge=1)
    """Seconds between looks at what the repository holds, for metrics and health."""
    late: float = Field(default=129_600.0, gt=0)
    """Age in seconds of the newest snapshot from which health warns."""

    @field_validator("schedule")
    @classmethod
    def _cron(cls, expression: str | None) -> str | None:
        if expression is not None:
            try:
                CronSim(expression, datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(f"{expression!r} is no cron expression of five fields: {error}") from None
        return expression

    @model_validator(mode="after")
    def _scheduled_somewhere(self) -> Self:
        if self.schedule is not None and self.repository is None:
            raise ValueError("`schedule` needs a `repository` to put snapshots into")
        return self
