"""What narrowing the schemas of one request may cost, and how large what comes out may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_NODES: Final = 4000
"""Subschemas looked at, after joining and unrolling; 2000 properties cost the engine 0.3 s to compile."""
MAX_RAW: Final = 30_000
"""JSON values in the schema as it came; a walk over so many takes about 10 ms."""
MAX_DEPTH: Final = 48
"""Subschemas inside one another; real schemas stay under 20."""
MAX_JOINED: Final = 50_000
"""Properties and values that go through `allOf` and its like, each time counted."""
MAX_LITERALS: Final = 5000
"""Values in all `enum`s; each is a path in the engine's automaton (10,000 take 50 ms at every request)."""
MAX_LITERAL_CHARS: Final = 250_000
"""Characters of all literals, property names and patterns together."""
PATTERN_WEIGHT: Final = 4
"""Characters that one of a pattern counts for: it is read several times before the engine sees it."""
RECURSION: Final = 3
"""Times that a recursive type may lie inside itself."""
ITEMS_CEILING: Final = 10_000
"""Most array items a caller's own `maxItems` gets."""
PROPERTIES_CEILING: Final = 1000
"""Most properties of a free-form object that a caller's own `maxProperties` gets."""
KEY_CHARS: Final = 32
"""Longest invented property name; a small model that loops in an object of such names ends some 1100 tokens later."""
FREE_DEPTH: Final = 2
"""Arrays and objects inside one another where any value is allowed."""


@dataclass(slots=True)
class Budget:
    """What the schemas of one request may cost together, counted up as they are looked at."""

    raw: int = 0
    nodes: int = 0
    joined: int = 0
    literals: int = 0
    characters: int = 0
