"""How verbs read and write sizes, times and shares. Pure."""

from __future__ import annotations

import re
import time
from typing import Final

import typer

from stoker.models import names

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_KIBI_STEP: Final = 1000
_LONGEST: Final = 100 * 365 * 86_400.0


def duration(text: str) -> float:
    """Seconds in `90s`, `30m`, `12h`, `30d`, `2w`; raises typer.BadParameter."""
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= _LONGEST:
        raise typer.BadParameter(f"{text!r} is no length of time; write one such as 30d, 12h, 45m or 90s")
    return seconds


def share(text: str) -> float:
    """A share above 0 and up to 1, from `10%` or `0.1`; raises typer.BadParameter."""
    digits = text.strip()
    try:
        value = float(digits.removesuffix("%")) / (100 if digits.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is no share; write one such as 10% or 0.1, above 0 and at most 100%")
    return value


def octets(size: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < _KIBI_STEP:
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"  # noqa: PLR2004
        amount /= _KIBI_STEP
    return f"{amount:.1f} TB"


def age(seconds: float) -> str:
    """How long ago, in the one unit that says it: `40 s`, `3 h`, `12 d`. A clock that is behind gives `0 s`."""
    left = max(seconds, 0.0)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if left >= 2 * size:
            return f"{left / size:.0f} {unit}"
    return f"{left:.0f} s"


def when(moment: float) -> str:
    """A Unix time in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def took(seconds: float) -> str:
    """How long something took: `0.31 s`, `12 s`, `3 min 20 s`."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """Text from elsewhere, fit for a terminal: at most 500 characters of it."""
    return names.printable(text, 500)
