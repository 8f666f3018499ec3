"""Administrators' acts, and what came of them: lines that are written whatever the log's level, to `audit_file` too."""

from __future__ import annotations

import logging
from typing import Any, Literal

import structlog

COMPONENT = "audit"
"""Lines of this component go to the audit file."""

_log = structlog.wrap_logger(
    None, wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET), component=COMPONENT
)


def audit(
    act: str, *, key: str | None, address: str, outcome: Literal["done", "refused", "failed"], **details: Any
) -> None:
    """Write one line about an act.

    Args:
        act: what was done, or was to be done, such as `cache cleared`.
        key: name of the caller's API key.
        address: the caller's, as the log is to show it.
        outcome: what came of it; `refused`: the caller may not.
        details: what it was done to, and why it failed; no secrets.
    """
    say = _log.info if outcome == "done" else _log.warning
    say(act, key=key, address=address, outcome=outcome, **details)
