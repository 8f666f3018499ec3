"""The requests that jobs make, as far as this room knows them: a wire form is read, and the call is made, elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stoker.admission.auth import Caller
from stoker.observability.record import Record
from stoker.types import EmbeddingRequest, GenerationRequest

Tell = Callable[[bytes], None]
"""Takes one JSON object: what an event of the answer's stream would hold. It never waits, and may drop what is told."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that a job is to make, understood.

    Attributes:
        requests: the prompts, with priority `JOB`; empty for embeddings.
        embedding: what is to be turned into vectors; None for all else.
        run: makes it, without asking again whether it may: the route's answer as bytes, or StokerError. It first asks
            `Pipeline.ready` or calls `Pipeline.vectors`; a cancellation frees what it holds.
    """

    requests: Sequence[GenerationRequest]
    embedding: EmbeddingRequest | None
    run: Callable[[Record, Tell], Awaitable[bytes]]

    @property
    def asked(self) -> Sequence[GenerationRequest | EmbeddingRequest]:
        """What is asked, whatever its kind."""
        return self.requests if self.embedding is None else [self.embedding]


class Translator(Protocol):
    """Reads the wire forms of requests."""

    @property
    def endpoints(self) -> frozenset[str]:
        """The routes by which jobs may ask."""
        ...

    def read(self, endpoint: str, body: bytes, caller: Caller, headers: Mapping[str, str], deadline: float) -> Call:
        """The call that a body asks for at one of `endpoints`.

        Args:
            endpoint: one of `endpoints`.
            body: JSON, as the route takes it.
            caller: who asks, as when the job was accepted.
            headers: of the request that submitted it; when the job runs, only those that have to do with its answer.
            deadline: a `time.monotonic()` instant; the call ends then, or sooner if the body says so.

        Raises:
            RequestError: the body is not of the route's form.
        """
        ...
