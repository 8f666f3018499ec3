"""What one request came to: gathered while it runs, written as one log line when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stoker.errors import EngineError, StokerError
from stoker.observability.logging import get_logger
from stoker.types import FinishReason, ModelIdentity, Timings, Usage

_log = get_logger("request")


@dataclass(slots=True)
class Record:
    """The decision record of one request; whoever decides something writes it here."""

    id: str
    route: str
    address: str = ""
    model: ModelIdentity | None = None
    route_reason: str = "named"
    timings: Timings = field(default_factory=Timings)
    usage: Usage = field(default_factory=Usage)
    finish_reason: FinishReason | None = None
    status: int = 200
    error: StokerError | None = None
    disconnected: bool = False
    started: float = field(default_factory=time.monotonic)

    def note(self, finish_reason: FinishReason | None, usage: Usage) -> None:
        """Take in what one answer came to, also one that was cut off; a call with several prompts has several."""
        self.finish_reason = finish_reason or self.finish_reason
        self.usage = self.usage + usage

    def served(self) -> ModelIdentity:
        """The model that answered; EngineError when none was chosen, which is a defect."""
        if self.model is None:
            raise EngineError("the answer came from no model")
        return self.model

    def stamp(self) -> Timings:
        """The timings, with the total so far."""
        self.timings.total_ms = (time.monotonic() - self.started) * 1000
        return self.timings

    def close(self) -> None:
        """Stop the clock and write the line."""
        timings, usage = self.stamp(), self.usage
        _log.info(
            "request",
            request_id=self.id,
            route=self.route,
            address=self.address,
            model=self.model.name if self.model else None,
            route_reason=self.route_reason,
            digest=self.model.digest[:12] if self.model else None,
            engine=timings.engine or None,
            attempts=timings.attempts,
            queue_ms=round(timings.queue_ms, 2),
            ttft_ms=round(timings.first_token_ms, 2),
            total_ms=round(timings.total_ms, 2),
            tokens_in=usage.prompt_tokens,
            tokens_cached=usage.cached_tokens,
            tokens_out=usage.completion_tokens,
            finish_reason=self.finish_reason,
            status=499 if self.disconnected else self.status,
            error=self.error.code if self.error else None,
        )
