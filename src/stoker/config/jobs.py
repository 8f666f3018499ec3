"""How long work is taken in, done and told: of `jobs/`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from stoker.config.groups import Group


class WebhookConfig(Group):
    """Results that are sent to callers' addresses, in the Standard Webhooks form."""

    secrets: tuple[SecretStr, ...] = ()
    """Keys that sign what is sent (`whsec_...`), the newest first; without one no `callback_url` is taken."""
    attempts: int = Field(default=8, ge=1, le=100)
    """Attempts before a delivery is given up."""
    backoff: float = Field(default=5.0, gt=0)
    """First pause between attempts, in seconds; doubled at each one."""
    backoff_max: float = Field(default=3600.0, gt=0)
    """Longest pause, in seconds."""
    timeout: float = Field(default=10.0, gt=0, le=300)
    """Seconds for one attempt."""
    allow_private: bool = False
    """Whether private addresses and loopback may be called; link-local ones never are, unless they are listed."""
    allowed_hosts: tuple[str, ...] = ()
    """Names (`hooks.example.com`, `*.example.com`), addresses or networks that may be called although private."""


class JobsConfig(Group):
    """Asynchronous jobs."""

    enabled: bool = True
    """Whether /jobs, /v1/files and /v1/batches are there."""
    concurrency: int | None = Field(default=None, ge=1, le=4096)
    """Jobs that this server works on at once. Default: as many as the engines have slots."""
    share: float = Field(default=0.125, ge=0, le=1)
    """Share of turns that waiting jobs get while interactive requests wait too, so that they never starve."""
    per_key: int = Field(default=10_000, ge=1)
    """Jobs of one key that may be queued; one more is refused with 429."""
    total: int = Field(default=100_000, ge=1)
    """Jobs of all keys that may be queued."""
    attempts: int = Field(default=5, ge=1, le=100)
    """Attempts before a job that fails for a passing reason is given up."""
    backoff: float = Field(default=1.0, gt=0)
    """First pause between attempts, in seconds; doubled at each one."""
    backoff_max: float = Field(default=60.0, gt=0)
    """Longest pause, in seconds."""
    lease: float = Field(default=30.0, ge=1)
    """Seconds after which a job is taken from a worker that gave no sign of life."""
    expires: float = Field(default=86_400.0, gt=0)
    """Seconds after which a job that has not started expires, unless it says another time."""
    keep: float = Field(default=86_400.0, gt=0)
    """Seconds for which ended jobs and their results are kept."""
    result_kib: int = Field(default=1024, ge=1, le=1_048_576)
    """Largest result that is kept, in KiB; a job with a larger one fails."""
    idempotency: float = Field(default=86_400.0, gt=0)
    """Seconds for which an `Idempotency-Key` is remembered."""
    file_mib: int = Field(default=200, ge=1, le=10_240)
    """Largest file that /v1/files takes, in MiB."""
    files_mib: int = Field(default=2048, ge=1)
    """All files together, in MiB."""
    batch_requests: int = Field(default=50_000, ge=1)
    """Most requests in one batch."""
    files_dir: Path | None = None
    """Where files are kept; replicas must share it. Default: `files` in `data_dir`."""
    webhooks: WebhookConfig = WebhookConfig()
