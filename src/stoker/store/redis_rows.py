"""Jobs as hashes in Redis: names and values, times in whole microseconds. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from stoker.store.jobs import Beat, Idempotency, Job, NewJob, QueueLimits
from stoker.store.protocols import MICRO

SUMMARY: Final = (
    "id", "tenant", "endpoint", "max_attempts", "not_before", "expires", "keep", "batch", "custom_id", "state",
    "created", "attempts", "started", "finished", "cancelling", "progress", "worker",
)  # fmt: skip
"""Fields of a job without its bodies."""
Hash = Mapping[bytes, bytes]
Argument = str | bytes | int


def micro(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * MICRO)


def to_job(values: Hash) -> Job:
    """A job from its hash, or from what of it was asked for."""
    return Job(
        id=values[b"id"].decode(),
        tenant=values[b"tenant"].decode(),
        endpoint=values[b"endpoint"].decode(),
        request=values.get(b"request", b""),
        max_attempts=int(values[b"max_attempts"]),
        not_before=_seconds(values.get(b"not_before")),
        expires_at=_seconds(values.get(b"expires")),
        keep_s=int(values[b"keep"]) / MICRO,
        batch=_text(values.get(b"batch")),
        custom_id=_text(values.get(b"custom_id")),
        callback=values.get(b"callback"),
        state=values[b"state"].decode(),  # type: ignore[arg-type]  # only our scripts write it
        created=int(values[b"created"]) / MICRO,
        attempts=int(values[b"attempts"]),
        started=_seconds(values.get(b"started")),
        finished=_seconds(values.get(b"finished")),
        result=values.get(b"result"),
        error=values.get(b"error"),
        cancelling=b"cancelling" in values,
        progress=values.get(b"progress"),
        worker=_text(values.get(b"worker")),
        deliveries=values.get(b"deliveries"),
    )


def to_summary(row: Sequence[bytes | None]) -> Job | None:
    """A job from the values of `SUMMARY`; None when it is gone."""
    values = {name.encode(): value for name, value in zip(SUMMARY, row, strict=True) if value is not None}
    return to_job(values) if values else None


def paired(flat: Sequence[bytes]) -> Hash:
    """A hash from its names and values in turn, as scripts return it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def submission(jobs: Iterable[NewJob], limits: QueueLimits, idempotency: Idempotency | None) -> list[Argument]:
    """What `job_submit.lua` is told, after the time."""
    key: list[Argument] = ["", "", "", ""]
    if idempotency is not None:
        key = [idempotency.scope, idempotency.key, f"={idempotency.fingerprint}", micro(idempotency.ttl)]
    arguments: list[Argument] = [limits.per_tenant, limits.total, *key]
    for job in jobs:
        fields = _fields(job)
        not_before, expires = fields.get("not_before", ""), fields.get("expires", "")
        arguments += [job.id, job.tenant, job.batch or "", not_before, expires, 2 * len(fields)]
        for name, value in fields.items():
            arguments += [name, value]
    return arguments


def beating(beats: Iterable[Beat]) -> list[Argument]:
    """What `job_beat.lua` is told, after time and lease."""
    arguments: list[Argument] = []
    for beat in beats:
        arguments += [beat.id, beat.token, int(beat.progress is not None), beat.progress or b""]
    return arguments


def _fields(job: NewJob) -> dict[str, Argument]:
    fields: dict[str, Argument | None] = {
        "endpoint": job.endpoint,
        "request": job.request,
        "max_attempts": job.max_attempts,
        "not_before": None if job.not_before is None else micro(job.not_before),
        "expires": None if job.expires_at is None else micro(job.expires_at),
        "keep": micro(job.keep_s),
        "batch": job.batch,
        "custom_id": job.custom_id,
        "callback": job.callback,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {"tenant": job.tenant, **given}


def _seconds(instant: bytes | None) -> float | None:
    return None if instant is None else int(instant) / MICRO


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
