"""What clients do when they are refused, or cut off. Pure functions."""

from __future__ import annotations

import random
from dataclasses import dataclass

BROKEN_PAUSE_S = 0.5  # what the OpenAI client waits before its first new attempt
LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and when a client tries again.

    Args:
        tries: new attempts after the first one.
        obeys: whether it waits for `Retry-After`; else for `pause`.
        pause: seconds before the first new attempt, doubled for each further one up to 8 s.
        jitter: the pause is lengthened by a random share of itself, up to this.
    """

    tries: int = 0
    obeys: bool = True
    pause: float = BROKEN_PAUSE_S
    jitter: float = 0.0

    def wait(self, tries: int, retry_after: float | None, chance: random.Random) -> float | None:
        """Seconds until the next attempt after `tries` further ones; None to give up.

        `retry_after` is what the refusal said, None when the connection broke.
        """
        if tries >= self.tries:
            return None
        if self.obeys and retry_after is not None:
            seconds = retry_after
        else:
            seconds = min(LONGEST_PAUSE_S, self.pause * 2.0**tries)
        return seconds * (1 + self.jitter * chance.random())


GIVES_UP = Patience()
HAMMERS = Patience(tries=1000, obeys=False, pause=0.05)
BACKS_OFF = Patience(tries=1000, obeys=False, jitter=0.25)
OBEYS = Patience(tries=1000)
OBEYS_SPREAD = Patience(tries=1000, jitter=1.0)
