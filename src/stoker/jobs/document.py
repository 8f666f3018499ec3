"""A job as its owner sees it, in answers and in webhooks: one JSON object."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import orjson

from stoker.jobs.envelope import Envelope, unpack_callback, unpack_deliveries, unpack_error
from stoker.store.jobs import Job


def job_document(job: Job, position: int | None = None) -> dict[str, Any]:
    """The job object. Of a job from a list, which has no bodies, metadata, result and error are left out.

    Args:
        job: as the log has it.
        position: how many jobs are due before it, for a queued one.

    Returns:
        JSON for `orjson`; the result stands in it as a fragment, byte for byte.
    """
    document: dict[str, Any] = {
        "id": job.id,
        "object": "job",
        "state": job.state,
        "endpoint": job.endpoint,
        "created_at": _written(job.created),
        "started_at": _written(job.started),
        "finished_at": _written(job.finished),
        "position": position,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "cancelling": job.cancelling,
        "not_before": _written(job.not_before),
        "expires_at": _written(job.expires_at),
        "timings": _timings(job),
    }
    if job.batch is not None:
        document |= {"batch": job.batch, "custom_id": job.custom_id}
    if job.request:
        document["metadata"] = Envelope.unpack(job.request).metadata
    if job.progress is not None:
        document["progress"] = orjson.Fragment(job.progress)
    if job.result is not None:
        document["result"] = orjson.Fragment(job.result)
    if job.error is not None:
        document["error"] = unpack_error(job.error)
    if job.callback is not None:
        document["callback"] = _callback(job.callback, job.deliveries)
    return document


def message(job: Job) -> bytes:
    """What a webhook says of a job that has ended, in the form that Standard Webhooks 1.0.0 recommends."""
    document = job_document(job)
    del document["callback"]  # the receiver knows where it is
    event = {"type": f"job.{job.state}", "timestamp": document["finished_at"], "data": document}
    return orjson.dumps(event)


def _timings(job: Job) -> dict[str, float | None]:
    """Milliseconds; those of the latest attempt, and up to now for what still goes on."""
    now = time.time()
    started = job.started if job.state != "queued" else None
    queued = (started or job.finished or now) - job.created
    running = None if started is None else (job.finished or now) - started
    return {"queued_ms": _milliseconds(queued), "running_ms": _milliseconds(running)}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds) * 1000, 1)


def _callback(callback: bytes, deliveries: bytes | None) -> dict[str, Any]:
    log = [
        {
            "attempt": attempt.attempt,
            "at": _written(attempt.at),
            "status": attempt.status,
            "error": attempt.error,
            "duration_ms": _milliseconds(attempt.duration_s),
        }
        for attempt in unpack_deliveries(deliveries)
    ]
    return {"url": unpack_callback(callback), "deliveries": log}


def _written(at: float | None) -> str | None:
    """A time as RFC 3339 has it, in UTC."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
