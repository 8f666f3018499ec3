"""How fast an engine is: batches of one token for each answer under way, with prompts cut in between.

As llama.cpp's server does it: a step gives every answer a token and fills what is left of the batch with the oldest
unread prompt. So answers slow each other down a little, and a prompt slows all of them down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Measured speed of one replica.

    Args:
        steps: seconds of a step that gives `n` answers a token each, for n = 1 to the number of slots.
        prompt_s: seconds for each token of a prompt, >= 0.
        batch: tokens of one step at most.
        first_s: seconds of each request beside its tokens, during which it holds its slot; exact where slots are
            independent.
        prefixes: beginnings of prompts that a replica remembers, the least recently used forgotten first.
    """

    steps: tuple[float, ...]
    prompt_s: float = 0.0
    batch: int = 64
    first_s: float = 0.0
    prefixes: int = 16

    @property
    def slots(self) -> int:
        """Requests at the engine at once."""
        return len(self.steps)


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens a second, by the number of answers under way (0 to slots): of each answer alone, of each answer while a
    prompt is read, and of that prompt.
    """

    alone: tuple[float, ...]
    beside: tuple[float, ...]
    prompt: tuple[float, ...]


def independent(slots: int, service_s: float = 1.0) -> EngineSpec:
    """Slots that do not notice each other, as the servers of M/G/c: a unit of work takes `service_s` seconds."""
    return EngineSpec((service_s,) * slots)


def shared(slots: int, service_s: float = 1.0) -> EngineSpec:
    """One server that divides itself equally: a unit of work takes `service_s` seconds when it is alone."""
    return EngineSpec(tuple(service_s * number for number in range(1, slots + 1)))


@cache
def pace_of(spec: EngineSpec) -> Pace:
    """The speeds that follow from the steps."""
    alone, beside, prompt = [0.0], [0.0], [0.0]
    if spec.prompt_s:
        prompt[0] = 1 / spec.prompt_s
    for number, step in enumerate(spec.steps, start=1):
        alone.append(1 / step)
        room = max(1, spec.batch - number)
        both = step + room * spec.prompt_s
        beside.append(1 / both)
        prompt.append(room / both)
    return Pace(tuple(alone), tuple(beside), tuple(prompt))


def steps_between(known: dict[int, float], slots: int) -> tuple[float, ...]:
    """Seconds of a step for 1 to `slots` answers, linear between the numbers that were measured."""
    numbers = sorted(known)
    found = []
    for number in range(1, slots + 1):
        low = max((n for n in numbers if n <= number), default=numbers[0])
        high = min((n for n in numbers if n >= number), default=numbers[-1])
        share = 0.0 if high == low else (number - low) / (high - low)
        found.append(known[low] + share * (known[high] - known[low]))
    return tuple(found)
