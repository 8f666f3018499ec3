"""One token made now and then by an idle engine: the only proof that it still can.

An engine whose process lives and whose port answers may have stopped to generate. Requests would find out, and so this
asks before they come: the cheapest request there is, and only when the engine has had nothing to do for a while. The
same prompt each time, so that it finds its slot again and takes no other request's cached prompt.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass

import orjson

from stoker.engine.client import EngineClient
from stoker.engine.wire import EngineCall
from stoker.errors import DeadlineExceeded, EngineDied, Overloaded, StokerError


@dataclass(frozen=True, slots=True)
class CanaryTimes:
    """`interval_s` without work after which the engine is asked; `patience_s` until it counts as doubtful, and twice
    that until it counts as stuck. All in seconds.
    """

    interval_s: float
    patience_s: float


class Canary:
    """Asks one engine, and remembers how it answered: `answered_at` in Unix seconds, `latency_s` of that answer, and
    `refusal` when it answered that it will not generate, as a model for embeddings does.

    Args:
        model: what the engine calls its model.
        times: None for one that is never asked.
    """

    def __init__(self, model: str, times: CanaryTimes | None) -> None:
        self.times = times
        self.answered_at: float | None = None
        self.latency_s: float | None = None
        self.refusal: str | None = None
        self._last = time.monotonic()
        body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0, "stream": True}
        self._call = EngineCall("/v1/completions", body, orjson.dumps(body))

    def due(self, client: EngineClient) -> bool:
        """Whether the engine has been without work, and unasked, for long enough."""
        if self.times is None or client.inflight:
            return False
        quiet_since = max(self._last, client.last_end)
        return time.monotonic() - quiet_since >= self.times.interval_s

    async def sing(self, client: EngineClient, patience_s: float) -> bool | None:
        """Have one token made.

        Returns: True when the engine answered, even with a refusal; False when `patience_s` seconds brought nothing;
        None when the connection broke, about which others know more, or others are answered meanwhile.
        """
        began = time.monotonic()
        self.refusal = None
        try:
            async with aclosing(client.stream(self._call, began + patience_s)) as chunks:
                async for _ in chunks:
                    pass
        except DeadlineExceeded:
            return None if client.last_sign > began else False  # it works, for others who came first
        except (EngineDied, Overloaded):
            return None
        except StokerError as error:
            self.refusal = error.message
            return True
        finally:
            self._last = time.monotonic()
        self.answered_at, self.latency_s = time.time(), time.monotonic() - began
        return True
