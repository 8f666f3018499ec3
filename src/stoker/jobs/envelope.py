"""The bytes that the job log keeps for this room: requests with what belongs to them, callbacks, errors, deliveries.

What is written here is read by other replicas and after upgrades: unknown fields are skipped, missing ones have a
default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

from stoker.admission.auth import Caller
from stoker.errors import StokerError
from stoker.jobs.webhooks import Attempt

MAX_MESSAGE_CHARS: Final = 2000
"""Of an error's message that is kept."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request as it waits: its body as it was sent, and all else that it needs when its turn comes.

    Attributes:
        body: JSON, as the route takes it.
        headers: of the submission, as far as they have to do with the answer; by lower-case names.
        metadata: the caller's own notes.
        key: the name of the caller's key; None for anonymous callers.
        models: those that the key may ask; empty for all.
        address: the caller's, as the log may have it.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    models: tuple[str, ...] = ()
    address: str = ""

    def pack(self) -> bytes:
        """A line of JSON, then the body: it is neither parsed nor written anew on its way."""
        head = {
            "headers": self.headers,
            "metadata": self.metadata,
            "key": self.key,
            "models": self.models,
            "address": self.address,
        }
        return orjson.dumps(head) + b"\n" + self.body

    @staticmethod
    def unpack(data: bytes) -> Envelope:
        """What `pack` made; ValueError for anything else."""
        head, line, body = data.partition(b"\n")
        fields = orjson.loads(head)
        if not line or not isinstance(fields, dict):
            raise ValueError("the stored request is not one of ours")
        return Envelope(
            body,
            fields.get("headers") or {},
            fields.get("metadata") or {},
            fields.get("key"),
            tuple(fields.get("models") or ()),
            fields.get("address") or "",
        )

    @property
    def caller(self) -> Caller:
        """Who asks, as when the request was accepted."""
        return Caller(self.address, self.key, models=self.models)


def pack_error(error: StokerError) -> bytes:
    """An error as it is kept."""
    document = {
        "code": error.code,
        "message": error.message[:MAX_MESSAGE_CHARS],
        "type": error.type,
        "status": error.status,
    }
    if error.param is not None:
        document["param"] = error.param
    return orjson.dumps(document)


def unpack_error(data: bytes) -> dict[str, Any]:
    """An error for people: `code`, `message`, `type`, `status`, and `param` where a field is at fault."""
    document: dict[str, Any] = orjson.loads(data)
    return {"type": StokerError.type, "status": StokerError.status, **document}


def pack_callback(url: str) -> bytes:
    """Where to send the result."""
    return orjson.dumps({"url": url})


def unpack_callback(data: bytes) -> str:
    """The URL of `pack_callback`."""
    return str(orjson.loads(data)["url"])


def pack_deliveries(log: Sequence[Attempt]) -> bytes:
    """A delivery log."""
    return orjson.dumps([asdict(attempt) for attempt in log])


def unpack_deliveries(data: bytes | None) -> tuple[Attempt, ...]:
    """The delivery log; empty when nothing was noted."""
    if data is None:
        return ()
    return tuple(
        Attempt(entry["attempt"], entry["at"], entry["status"], entry["error"], entry["duration_s"])
        for entry in orjson.loads(data)
    )
