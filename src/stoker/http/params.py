"""Query parameters: read by hand, so that what is wrong with one is told as everything else is; described for /docs."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from starlette.requests import Request

from stoker.errors import RequestError


def described(*parameters: tuple[str, str, str]) -> dict[str, Any]:
    """The part of a route's OpenAPI operation that describes its parameters: name, JSON type, what it is for."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {"type": kind}, "description": text}
            for name, kind, text in parameters
        ]
    }


def whole(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number within bounds; RequestError."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(high)) and low <= int(given) <= high):
        raise RequestError(f"{name}: {given[:32]!r} is no whole number from {low} to {high}", param=name)
    return int(given)


def seconds(request: Request, name: str, high: float) -> float:
    """Seconds, at most so many; 0 when they are not said. RequestError."""
    given = request.query_params.get(name, "0")
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value <= high:
        raise RequestError(f"{name}: {given[:32]!r} is no number of seconds from 0 to {high:g}", param=name)
    return value


def among(request: Request, name: str, known: Collection[str]) -> list[str]:
    """Values out of `known`, repeated or with commas between them; empty when none is said. RequestError."""
    given = [part.strip() for value in request.query_params.getlist(name) for part in value.split(",")]
    strange = [part for part in given if part not in known]
    if strange:
        raise RequestError(f"{name}: {strange[0][:32]!r} is none; there is {', '.join(known)}", param=name)
    return list(dict.fromkeys(given))
