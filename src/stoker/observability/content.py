"""What the log tells of prompts, answers and addresses: as much as the configuration allows."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from stoker.config import LogConfig
from stoker.observability.redaction import Redactor, cut

DIGEST_OCTETS: Final = 16
REMEMBERED: Final = 4096  # addresses: callers come again
IPV4_BITS: Final = 24
IPV6_BITS: Final = 48


class ContentWriter:
    """Writes texts and addresses as the configuration says; `wanted` says whether texts are written at all.

    Args:
        config: what may be told.

    Raises:
        ConfigError: a pattern to blot out is wrong.
    """

    def __init__(self, config: LogConfig) -> None:
        self._mode = config.content
        self.wanted = config.content != "none"
        self._chars = config.content_chars
        given = config.hash_key.get_secret_value() if config.hash_key else ""
        # A digest, for BLAKE2 takes no key longer than 64 octets.
        self._key = blake2b(given.encode(), person=b"stoker key").digest() if given else secrets.token_bytes(64)
        redactor = Redactor(config.redact_patterns)  # made even where it is not used: a wrong pattern shows at once
        self._redactor = redactor if config.redact else None
        forms: dict[str, Callable[[str], str]] = {
            "full": str,
            "truncated": network_of,
            "hashed": self._hashed_address,
        }
        self.address: Callable[[str], str] = lru_cache(maxsize=REMEMBERED)(forms[config.address])
        """How an address is written. An empty one, a Unix socket's peer, stays."""

    def of(self, text: str) -> str | None:
        """How a prompt or an answer is written; None: not at all."""
        if self._mode == "none":
            return None
        if self._mode == "hash":
            return self._hash(text, b"content")
        if self._redactor is None:
            return cut(text, self._chars)
        return self._redactor.shorten(text, self._chars)

    def _hashed_address(self, address: str) -> str:
        return self._hash(address, b"address") if address else address

    def _hash(self, text: str, person: bytes) -> str:
        """The same for the same text and key; from it, without the key, no guess at the text can be checked."""
        octets = text.encode(errors="surrogatepass")
        return f"blake2:{blake2b(octets, digest_size=DIGEST_OCTETS, key=self._key, person=person).hexdigest()}"


def network_of(address: str) -> str:
    """The network that an address lies in, such as `192.0.2.0/24`; what is no address stays as it is."""
    try:
        parsed = ip_address(address.partition("%")[0])  # without the zone
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    bits = IPV6_BITS if isinstance(parsed, IPv6Address) else IPV4_BITS
    return str(ip_network(f"{parsed}/{bits}", strict=False))
