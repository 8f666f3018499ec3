"""Strings and numbers that end: the leaves of a narrowed JSON Schema (see `schema`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

from stoker.config import GenerationConfig
from stoker.engine.schema_forms import Form, pattern_problem, repeats
from stoker.errors import RequestError

STRING_CEILING: Final = 100_000
"""Longest string a caller's own `maxLength` gets; more is cut to this: no context here holds such an answer."""
SAFE_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly (RFC 8259, section 6)."""
NUMBER_LIMIT: Final = 10**15
NUMBER_STEP: Final = 1e-6
"""Numbers are multiples of this, which bounds their digits: 16 before the point, 6 after it."""
STEP_DIGITS: Final = 9
"""Digits of a caller's own `multipleOf`; the engine takes no more."""
_STEPS: Final = (NUMBER_STEP, 1e-7, 1e-8, 1e-9)

_HOST: Final = r"([A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,12}"
# Stricter than the formats, so that every validator agrees; and short.
_OWN_FORMATS: Final[Mapping[str, str]] = {
    "email": rf"^[A-Za-z0-9]{{1,24}}([._+-][A-Za-z0-9]{{1,24}}){{0,3}}@{_HOST}$",
    "hostname": rf"^{_HOST}$",
    "uri": rf"^https?://{_HOST}(/[A-Za-z0-9._~-]{{1,40}}){{0,6}}/?(\?[A-Za-z0-9._~=&-]{{1,80}})?$",
}
_SAME_FORMAT: Final[Mapping[str, str]] = {
    "url": "uri",
    "uri-reference": "uri",
    "iri": "uri",
    "idn-email": "email",
    "idn-hostname": "hostname",
}
_ENGINE_FORMATS: Final = frozenset({"date-time", "date", "time", "duration", "ipv4", "ipv6", "uuid"})
_FORMAT_CHARS: Final = 64  # every text of the engine's formats that is worth having is shorter


def count(form: Form, key: str, where: str, param: str) -> int | None:
    """A keyword's whole number, 0 or more; None when it is not there. Raises RequestError for anything else."""
    value = form.get(key)
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise RequestError(f"{where}: `{key}` must be a whole number, 0 or more, not {str(value)[:40]}", param=param)
    return int(value)


def string(form: Form, bounds: GenerationConfig, where: str, param: str) -> Form | None:
    """A string with an end. A pattern keeps its own length where its repetitions ask for more than the bound."""
    least = count(form, "minLength", where, param) or 0
    own = count(form, "maxLength", where, param)
    if least > STRING_CEILING:
        raise RequestError(f"{where}: `minLength` is over {STRING_CEILING}, more than an answer holds", param=param)
    narrow: Form = {"type": "string"}
    floor = _string_shape(form, narrow, where, param)
    most = max(bounds.json_string_chars, least, floor) if own is None else min(own, STRING_CEILING)
    if least > most:
        return None
    if least:
        narrow["minLength"] = least
    narrow["maxLength"] = most
    return narrow


def _string_shape(form: Form, narrow: Form, where: str, param: str) -> int:
    """Put `pattern` or else `format` into a narrow string; the answer is the length in characters that it may need.

    Libraries write a format together with a pattern that says it again, often with look-ahead: then the format stands
    for both. A pattern that can be held stands for both otherwise, as formats are annotations by the standard.
    """
    said = str(form.get("format"))
    name = _SAME_FORMAT.get(said, said)
    if "pattern" in form:
        problem = pattern_problem(form["pattern"])
        if problem is None:
            narrow["pattern"] = form["pattern"]
            return repeats(form["pattern"])
        if name not in _OWN_FORMATS and name not in _ENGINE_FORMATS:
            raise RequestError(f"{where}: the pattern {str(form['pattern'])[:80]!r} {problem}", param=param)
    if name in _OWN_FORMATS:
        narrow["pattern"] = _OWN_FORMATS[name]
    elif name in _ENGINE_FORMATS:
        narrow["format"] = name
    else:
        return 0
    return _FORMAT_CHARS


def number(kind: str, form: Form, where: str, param: str) -> Form | None:
    """An integer or a number with bounds on both sides; a number's digits after the point are bounded by its step."""
    limit = SAFE_INTEGER if kind == "integer" else NUMBER_LIMIT
    low, high = _limit(form, "minimum", where, param), _limit(form, "maximum", where, param)
    above, below = _limit(form, "exclusiveMinimum", where, param), _limit(form, "exclusiveMaximum", where, param)
    if max(low or 0, above or 0) > limit or min(high or 0, below or 0) < -limit:
        raise RequestError(f"{where}: numbers beyond {limit} are not exact in JSON; use a string", param=param)
    step = _limit(form, "multipleOf", where, param)
    if step is not None and step <= 0:
        raise RequestError(f"{where}: `multipleOf` must be above 0", param=param)
    if step is not None and len(Decimal(str(step)).normalize().as_tuple().digits) > STEP_DIGITS:
        raise RequestError(f"{where}: `multipleOf` has more than {STEP_DIGITS} digits; round it", param=param)
    if kind == "integer":
        return _integer(low, high, above, below, step)
    return _real(low, high, above, below, step)


def _limit(form: Form, key: str, where: str, param: str) -> float | None:
    value = form.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise RequestError(f"{where}: `{key}` must be a number", param=param)
    return value


def _integer(
    low: float | None, high: float | None, above: float | None, below: float | None, step: float | None
) -> Form | None:
    least, most = -SAFE_INTEGER, SAFE_INTEGER
    if low is not None:
        least = max(least, math.ceil(low))
    if above is not None:
        least = max(least, math.floor(above) + 1)
    if high is not None:
        most = min(most, math.floor(high))
    if below is not None:
        most = min(most, math.ceil(below) - 1)
    narrow: Form = {"type": "integer", "minimum": least, "maximum": most}
    if step is not None and step != 1:
        narrow["multipleOf"] = step
        first, last = _multiples(step, least, most)
        if first > last:
            return None
    return narrow if least <= most else None


def _real(
    low: float | None, high: float | None, above: float | None, below: float | None, step: float | None
) -> Form | None:
    least = max((value for value in (low, above) if value is not None), default=-NUMBER_LIMIT)
    most = min((value for value in (high, below) if value is not None), default=NUMBER_LIMIT)
    least, most = max(least, -NUMBER_LIMIT), min(most, NUMBER_LIMIT)
    if step is None:
        # A range thinner than the step would hold no multiple of it: a finer one is taken, or one value.
        step = next((fine for fine in _STEPS if most - least >= 4 * fine), None)
    if step is None:
        middle = least if least in {low, most} else (least + most) / 2
        inside = least <= middle <= most and middle not in {above, below}
        return {"enum": [middle]} if inside else None
    first, last = _multiples(step, least, most)
    if above is not None and first == _exact(above):
        first += _exact(step)
    if below is not None and last == _exact(below):
        last -= _exact(step)
    if first > last:
        return None
    return {"type": "number", "minimum": _plain(first), "maximum": _plain(last), "multipleOf": step}


def _multiples(step: float, low: float, high: float) -> tuple[Fraction, Fraction]:
    """The first and last multiples of a step in a range, in exact decimals as the engine counts them."""
    unit = _exact(step)
    return math.ceil(_exact(low) / unit) * unit, math.floor(_exact(high) / unit) * unit


def _exact(value: float) -> Fraction:
    return Fraction(str(value))


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)
