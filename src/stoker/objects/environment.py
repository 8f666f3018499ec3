"""What the S3 client would take from the `AWS_*` environment, and fail of without words at the first request; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_WORDS: Final = (
    *_ENDPOINTS,
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
_WORD: Final = re.compile(r"[!-~]*")


def check_environment(variables: Mapping[str, str]) -> None:
    """Raise a ValueError that names the variable, and never what is in it."""
    for name in _WORDS:
        if not _WORD.fullmatch(variables.get(name, "")):
            raise ValueError(f"{name} has a space, a line break or a character beyond ASCII in it")
    for name in _ENDPOINTS:
        value = variables.get(name)
        if value and not _is_address(value):
            raise ValueError(f"{name} is no address such as https://s3.example.org")


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
