"""Blots out of a text what must not stand in a log: secrets, e-mail addresses, cards, and what the operator names.

Secrets are known by their looks (keys with a prefix, JSON web tokens, PEM) or by what stands before them (`password=`).
Every pattern takes time in proportion to the text, whatever it is: repetitions are possessive (`++`) or bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from stoker.errors import ConfigError
from stoker.observability.assignments import SURE_LENGTH, assigned_secrets, has_digit
from stoker.observability.cards import cards

SECRET: Final = "[secret]"  # noqa: S105 - what stands in the stead of one
EMAIL: Final = "[email]"
CARD: Final = "[card]"
OWN: Final = "[redacted]"
MARGIN: Final = 4096
"""Characters that are looked at beyond those that are shown; in so many at its beginning a secret is known for one."""
ATTEMPTS: Final = 4
"""How often a longer beginning is taken, when so much was blotted out that less is left than may be shown."""


def _token(prefix: str, rest: str) -> re.Pattern[str]:
    """A key by its prefix; not in the middle of a word. The literal comes first, for it is what `re` searches fast."""
    return re.compile(rf"{prefix}(?<![A-Za-z0-9]{prefix}){rest}")


_TOKENS: Final = (
    _token("sk-stoker-", "[A-Za-z0-9_-]{20,}+"),
    # OpenAI, Anthropic and others. Something else than small letters is in each; in sk-learn-contributions it is not.
    _token("sk-", "(?=[a-z_-]{0,80}[A-Z0-9])[A-Za-z0-9_-]{16,}+"),
    *(_token(f"{kind}_{mode}_", "[A-Za-z0-9]{10,}+") for kind in ("sk", "rk") for mode in ("live", "test")),  # Stripe
    *(_token(prefix, "[0-9A-Z]{16}(?![0-9A-Za-z])") for prefix in ("AKIA", "ASIA")),  # AWS
    *(_token(f"gh{kind}_", "[A-Za-z0-9]{20,}+") for kind in "pousr"),  # GitHub
    _token("github_pat_", "[A-Za-z0-9_]{20,}+"),
    _token("glpat-", r"[A-Za-z0-9_.-]{16,}+"),
    *(_token(f"xox{kind}-", "[A-Za-z0-9-]{10,}+") for kind in "abeoprs"),  # Slack
    _token("AIza", "[A-Za-z0-9_-]{30,}+"),  # Google
    _token("hf_", "[A-Za-z0-9]{30,}+"),
    _token("gsk_", "[A-Za-z0-9]{30,}+"),
    _token("npm_", "[A-Za-z0-9]{30,}+"),
    _token("pypi-", "[A-Za-z0-9_-]{50,}+"),
    re.compile(r"eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+){1,4}"),  # JSON web tokens
)
_PEM: Final = re.compile(
    "-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----END)){0,16384}+"
    "(?:-----END [A-Z0-9 ]{1,60}-----)?"
)
_URL: Final = re.compile(r"://[^\s/@:\"'<>]{0,256}:[^\s/\"'<>]{1,1024}@")
_HEADER: Final = re.compile(
    r"""(?P<before>authorization\\*+["'`]?\s{0,4}[:=]\s{0,4}\\*+["'`]?
      (?P<sure>(?:bearer|basic|digest|token|apikey|negotiate|aws4-hmac-sha256)\s{1,4})?)
    (?P<value>[^\s"'`\\,]++)""",
    re.IGNORECASE | re.VERBOSE,
)
_BEARER: Final = re.compile(r"(?P<before>\bbearer(?P<sure>)?\s{1,4})(?P<value>[A-Za-z0-9._~+/=-]{8,}+)", re.IGNORECASE)
_EMAIL: Final = re.compile(r"(?<![\w.%+-])[\w.%+-]++@(?:[\w-]{1,63}+\.){1,8}[^\W\d_]{2,63}")


class Redactor:
    """Replaces secrets by `[secret]`, e-mail addresses by `[email]`, cards by `[card]`, own patterns by `[redacted]`.

    Args:
        patterns: own regular expressions. How long these take is their author's business.

    Raises:
        ConfigError: a pattern is none, or matches nothing at all.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._own = tuple(_compiled(pattern) for pattern in patterns)

    def __call__(self, text: str) -> str:
        """The text without them."""
        small = text.lower()
        for needle, pattern, replace in _STEPS:
            if needle in small:
                text = pattern.sub(replace, text)
        text = _replaced(text, assigned_secrets(text), SECRET)
        if "@" in text:
            text = _EMAIL.sub(EMAIL, text)
        text = _replaced(text, cards(text), CARD)
        for pattern in self._own:
            text = pattern.sub(OWN, text)
        return text

    def shorten(self, text: str, limit: int) -> str:
        """The text without them, and cut to `limit` characters; `...(+N chars)` says what is missing.

        What the cut goes through is still known for what it is: more is looked at than is shown.
        """
        size, known, head, told = limit + MARGIN, -1, "", ""
        for _ in range(ATTEMPTS):
            head = text[:size]
            told = self(head)
            known = len(told) if len(head) == len(text) else len(told) - MARGIN  # in the rest may be half a secret
            if len(head) == len(text) or known >= limit:
                break
            size += limit - known  # it shrank by what was blotted out
        return cut(told, max(min(known, limit), 0), len(text) - len(head))


def cut(text: str, limit: int, beyond: int = 0) -> str:
    """At most the first `limit` characters, and how many more there are; `beyond`: those that follow the text."""
    more = max(len(text) - limit, 0) + beyond
    return f"{text[:limit]}...(+{more} chars)" if more else text


def _compiled(pattern: str) -> re.Pattern[str]:
    where = f"log.redact_patterns: {pattern!r}"
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where} is no regular expression: {error}", param="log.redact_patterns") from None
    if compiled.match("") is not None:
        raise ConfigError(
            f"{where} also matches nothing at all, and so would be found everywhere; ask for one character or more",
            param="log.redact_patterns",
        )
    return compiled


def _header_out(found: re.Match[str]) -> str:
    """Credentials; but neither the bearer instruments of prose, nor what is said of an authorization."""
    sure = found["sure"] or len(found["value"]) >= SURE_LENGTH or has_digit(found["value"])
    return found["before"] + SECRET if sure else found[0]


def _replaced(text: str, spans: Iterable[tuple[int, int]], by: str) -> str:
    """The text with something else in the place of each span."""
    parts = []
    at = 0
    for start, end in spans:
        parts += [text[at:start], by]
        at = end
    return "".join([*parts, text[at:]]) if parts else text


_STEPS: Final[tuple[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    ("private key", _PEM, SECRET),
    ("://", _URL, f"://{SECRET}@"),
    ("authorization", _HEADER, _header_out),
    ("bearer", _BEARER, _header_out),
    *((pattern.pattern.split("(")[0].lower(), pattern, SECRET) for pattern in _TOKENS),
)
"""What the text must hold, in small letters, for the pattern to be looked for; and what it is replaced by."""
