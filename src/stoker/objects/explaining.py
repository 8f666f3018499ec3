"""What an S3 client's errors mean, in the operator's words; pure.

The client's text is one line, the server's XML if it sent any, and a dump of the client's insides.
Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import re
from typing import Final

_CODE: Final = re.compile(r"<Code>([A-Za-z0-9.]{1,80})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,500})</Message>")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_USER: Final = re.compile(r"://[^/@\s]+@")
_HELD: Final = re.compile(r"retention|retain|legal hold|worm|object ?lock|locked|immutab|explicit deny", re.IGNORECASE)
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge"})
_METADATA: Final = ("169.254.169.254", "169.254.170.2")
"""Hosts that a client asks for credentials when the environment has none."""
_ORIGIN: Final = re.compile(r"Error performing [A-Z]+ (https?://[^/?\s]+)")
_SILENT: Final = re.compile(r"kind: (Connect|Timeout)\b")
_SILENCE: Final = {"Connect": "cannot be reached", "Timeout": "does not answer in time"}
_REACH: Final = "check AWS_ENDPOINT_URL and AWS_REGION, and that the server can be reached from here"
_DENIED: Final = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and what that key may do with the bucket"
)


def code_of(text: str) -> str:
    """The server's code for what happened, such as `NoSuchBucket`; else the HTTP status; else nothing."""
    found = _CODE.search(text) or _STATUS.search(text)
    return found[1] if found else ""


def is_held(text: str) -> bool:
    """Whether a refusal says that something keeps the object: a retention period, a lock, a policy that denies."""
    message = _MESSAGE.search(text)
    return _is_denied(text) and bool(_HELD.search(f"{code_of(text)} {message[1] if message else ''}"))


def message_of(text: str) -> str:
    """The server's own words if it sent any, else the client's, in one line."""
    found = _MESSAGE.search(text)
    line = found[1] if found else (text.strip().splitlines() or ["no reason is known"])[0]
    # The client first tells of the request, its tries and its limits.
    return _USER.sub("://", line.rpartition("  - ")[2])[:300]


def words_for(text: str, bucket: str, done: str) -> str:
    """Why something could not be `done` (read, written...), and what to do."""
    code = code_of(text)
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket}; make it, or check the address and AWS_ENDPOINT_URL"
    if any(host in text for host in _METADATA):
        return "no credentials are known; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code == "RequestTimeTooSkewed":
        return "the clock of this host is wrong, or the server's; mend it"
    if _is_denied(text) and code not in _FULL:
        return f"access is denied ({code or message_of(text)}); {_DENIED}"
    if silent := _SILENT.search(text):
        where = _ORIGIN.search(text)
        server = _USER.sub("://", where[1]) if where else "the server"
        return f"cannot be {done}: {server} {_SILENCE[silent[1]]}; {_REACH}"
    return f"cannot be {done}: {message_of(text)}; {_remedy(text, code)}"


def _is_denied(text: str) -> bool:
    status = _STATUS.search(text)
    return status is not None and status[1] in {"401", "403"}


def _remedy(text: str, code: str) -> str:
    if code in _FULL or "status code: 507" in text:
        return "make room in the bucket, or use another one"
    if code == "NotImplemented" or "status code: 501" in text:
        return "the provider cannot do this (new objects need conditional writes with If-None-Match); use another one"
    if "status code: 5" in text:
        return "the server has trouble of its own; try again later"
    return _REACH
