"""Signatures of webhooks, as Standard Webhooks 1.0.0 has them (standardwebhooks.com). Pure functions.

What is signed is `id.timestamp.body`, with HMAC-SHA256; the header holds a signature for each secret, so that a secret
can be changed without a moment in which receivers know neither the old nor the new one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Final

from stoker.errors import ConfigError

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  the mark of a secret, not one
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
TOLERANCE_S: Final = 300.0
MAX_SIGNATURES: Final = 32
"""Signatures of one header that are looked at; whoever sends more is not one of ours."""

_VERSION: Final = "v1"
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")  # a dot in it would let two messages have one signature
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


def parse_secret(text: str) -> bytes:
    """The key in a secret's text: `whsec_` and the base64 (padded or not) of 24 to 64 bytes.

    Raises:
        ConfigError: it is anything else. Neither the text nor a part of it is told.
    """
    written = text.strip()
    if not written.startswith(SECRET_PREFIX):
        raise _bad_secret(f"does not begin with {SECRET_PREFIX}")
    encoded = written.removeprefix(SECRET_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _bad_secret(f"is not base64 after {SECRET_PREFIX}") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise _bad_secret(f"has {len(key)} bytes; it needs {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}")
    return key


def _bad_secret(problem: str) -> ConfigError:
    remedy = f"make one with `echo {SECRET_PREFIX}$(openssl rand -base64 32)`"
    return ConfigError(f"the webhook secret {problem}; {remedy}")


def signature(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each secret, in their order.

    Args:
        secrets: keys, as `parse_secret` gives them; at least one.
        message_id: 1 to 256 letters, digits, `_` and `-`; the same for each attempt to deliver one message.
        timestamp: of the attempt, in whole seconds since 1970.
        body: exactly what is sent.

    Raises:
        ValueError: no secret, or another kind of id.
    """
    if not secrets:
        raise ValueError("a webhook is never sent without a signature")
    if _ID.fullmatch(message_id) is None:
        raise ValueError(f"not an id for a webhook: {message_id[:80]!r}")
    return " ".join(_sign(secret, message_id, str(timestamp), body) for secret in secrets)


def verify(
    secrets: Sequence[bytes],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance_s: float = TOLERANCE_S,
) -> bool:
    """Whether a webhook comes from a holder of one of the secrets, and was sent just now. For receivers.

    Args:
        secrets: keys that are accepted.
        headers: of the request, in any case.
        body: as it came, before any parsing.
        now: seconds since 1970.
        tolerance_s: by how much the webhook's timestamp may be off, in seconds.
    """
    found = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp = found.get(ID_HEADER, ""), found.get(TIMESTAMP_HEADER, "")
    if _ID.fullmatch(message_id) is None or _TIMESTAMP.fullmatch(timestamp) is None:
        return False
    if abs(now - int(timestamp)) > tolerance_s:
        return False
    wanted = [_sign(secret, message_id, timestamp, body).encode() for secret in secrets]
    given = [one.encode() for one in found.get(SIGNATURE_HEADER, "").split(" ", MAX_SIGNATURES)[:MAX_SIGNATURES]]
    matches = [hmac.compare_digest(ours, theirs) for ours in wanted for theirs in given]  # all, whichever fits
    return any(matches)


def _sign(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    digest = hmac.new(secret, f"{message_id}.{timestamp}.".encode(), hashlib.sha256)
    digest.update(body)
    return f"{_VERSION},{base64.b64encode(digest.digest()).decode()}"
