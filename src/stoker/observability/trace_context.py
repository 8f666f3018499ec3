"""W3C Trace Context: which `traceparent` and `tracestate` count, and what may be passed on of them. Pure functions.

The Recommendation (level 1), and level 2's flag that a trace id is random, for that one must be passed on.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

STATE_CHARS: Final = 512
"""Length of a `tracestate` that is passed on."""
SAMPLED: Final = 0x01
_KNOWN_FLAGS: Final = 0x03  # sampled, random trace id: the others are to be zero when sent
_STATE_READ: Final = 8192  # characters; longer ones are nobody's
_MEMBERS: Final = 32
_LARGE_MEMBER: Final = 128  # characters; such members are left out first

_PARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class TraceParent(NamedTuple):
    """The caller's span: the trace's 32 hexadecimal digits, the span's 16, and the flags that are known here."""

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller records the trace."""
        return bool(self.flags & SAMPLED)


def parse_parent(header: str | None) -> TraceParent | None:
    """The caller's span; None when there is no `traceparent`, or one that is to be ignored.

    Of a version after 00 the parts that 00 has are read, whatever follows them.
    """
    found = _PARENT.fullmatch(header.strip(" \t")) if header else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if more is not None and version == "00":
        return None
    return TraceParent(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)


def format_parent(parent: TraceParent) -> str:
    """A `traceparent` of version 00, the one that is known here."""
    return f"00-{parent.trace_id}-{parent.span_id}-{parent.flags:02x}"


def parse_state(header: str | None) -> str:
    """The `tracestate` to pass on, at most STATE_CHARS long; empty when there is none, or one with an error in it.

    Of members with the same key the first one counts.
    """
    if not header or len(header) > _STATE_READ:
        return ""
    members: dict[str, str] = {}
    for text in header.split(","):
        member = text.strip(" \t")
        if not member:
            continue
        found = _MEMBER.fullmatch(member)
        if found is None:
            return ""
        members.setdefault(found[1], member)
    return "" if len(members) > _MEMBERS else _shortened(list(members.values()))


def _shortened(members: list[str]) -> str:
    """As many whole members as fit; large ones go first, those at the end, which are the oldest, before others."""
    length = sum(map(len, members)) + len(members) - 1
    for least in (_LARGE_MEMBER + 1, 0):
        for index in range(len(members) - 1, -1, -1):
            if length <= STATE_CHARS:
                return ",".join(members)
            if len(members[index]) >= least:
                length -= len(members.pop(index)) + 1
    return ",".join(members)
