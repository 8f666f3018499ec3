"""What is told of a running server, and to whom: of `observability/`, `health.py` and `checks.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from stoker.config.groups import Group


class LogConfig(Group):
    """Where and how much is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` writes colours on a terminal and JSON lines elsewhere."""
    file: Path | None = None
    """File that gets every line too, as JSON. Default: only standard error."""
    file_mib: int = Field(default=100, ge=1, le=1_048_576)
    """Size at which the file is put aside as `.1`, `.2` ..., in MiB."""
    file_count: int = Field(default=5, ge=1, le=1000)
    """Files that were put aside and are kept."""
    audit_file: Path | None = None
    """File that gets administrators' acts alone, as JSON lines; never put aside. They are in the log anyway."""
    content: Literal["none", "hash", "full"] = "none"
    """What the log tells of prompts and answers: nothing; a keyed hash, by which equal ones are known; the text."""
    content_chars: int = Field(default=2000, ge=16, le=1_000_000)
    """Characters of a prompt, and of an answer, that `full` writes."""
    redact: bool = True
    """Whether secrets, e-mail addresses and card numbers are blotted out of what `full` writes."""
    redact_patterns: tuple[str, ...] = ()
    """More to blot out, as regular expressions."""
    address: Literal["full", "truncated", "hashed"] = "full"
    """How callers' addresses are written: whole; as their network (/24, /48); as a keyed hash."""
    hash_key: SecretStr | None = None
    """Key of the hashes, so that they agree between restarts and replicas. Default: a fresh one at each start."""


class TracingConfig(Group):
    """OpenTelemetry traces, sent as OTLP over HTTP with protobuf bodies."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^/\s]")
    """The collector's base address, such as `http://127.0.0.1:4318`; `/v1/traces` is added. Default: the environment's
    OTEL_EXPORTER_OTLP_ENDPOINT; without either nothing is traced."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced where no `traceparent` comes with them and decides."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Headers for the collector, such as an API key's."""
    service_name: str = "stoker"
    """What traces call this server."""


class MonitorConfig(Group):
    """A second address for metrics and health, so that these need not be public. It asks for no key."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port; with one, `/metrics` is served there only, and so are the details of `/health`. Default: none."""


class HealthConfig(Group):
    """How closely the server watches itself."""

    canary_interval: float = Field(default=8.0, ge=0, le=3600)
    """Seconds without work after which an engine is made to generate one token, as proof that it can; 0: never."""
    canary_timeout: float | None = Field(default=None, gt=0)
    """Seconds in which it must come, or the engine is restarted. Default: from the plan, 5 or more."""
    disk_warn_mib: int = Field(default=1024, ge=0)
    """Free space in `data_dir` below which health warns, in MiB."""
    disk_fail_mib: int = Field(default=64, ge=0)
    """Free space in `data_dir` below which health fails, in MiB."""
    memory_warn: float = Field(default=0.90, gt=0, le=1)
    """Share of the granted memory in use from which health warns."""
    memory_fail: float = Field(default=0.98, gt=0, le=1)
    """Share of the granted memory in use from which health fails."""
    lag_warn: float = Field(default=1.0, gt=0)
    """Seconds that the event loop may be late before health warns and the log says what it was doing."""
