"""What the log tells of texts and addresses in each mode."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stoker.config import LogConfig
from stoker.errors import ConfigError
from stoker.observability.content import ContentWriter

TEXT = "My password=hunter2 and alice@example.com"


def writer(**config: Any) -> ContentWriter:
    return ContentWriter(LogConfig(**config))


def test_nothing_is_told_unless_asked_for() -> None:
    assert writer().of(TEXT) is None
    assert writer().address("192.0.2.7") == "192.0.2.7"


def test_hashes_know_equal_texts_and_depend_on_the_key() -> None:
    first = writer(content="hash", hash_key="k" * 100)
    assert re.fullmatch("blake2:[0-9a-f]{32}", first.of(TEXT) or "")
    assert first.of(TEXT) == first.of(TEXT) == writer(content="hash", hash_key="k" * 100).of(TEXT)
    assert first.of(TEXT) != first.of(TEXT + " ")
    assert first.of(TEXT) != writer(content="hash", hash_key="k" * 101).of(TEXT)
    assert first.of("\ud800") != first.of("\udc00")


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_every_process_has_its_own(key) -> None:
    assert writer(content="hash", hash_key=key).of("a") != writer(content="hash", hash_key=key).of("a")


def test_full_texts_are_blotted_and_cut() -> None:
    assert writer(content="full").of(TEXT) == "My password=[secret] and [email]"
    assert writer(content="full", content_chars=16).of("x" * 20) == "x" * 16 + "...(+4 chars)"
    own = writer(content="full", redact_patterns=("My",))
    assert own.of(TEXT) == "[redacted] password=[secret] and [email]"


def test_full_texts_as_they_are() -> None:
    plain = writer(content="full", redact=False, content_chars=16)
    assert plain.of("pwd=abc") == "pwd=abc"
    assert plain.of(TEXT) == TEXT[:16] + f"...(+{len(TEXT) - 16} chars)"


def test_a_wrong_pattern_shows_at_once() -> None:
    with pytest.raises(ConfigError, match=r"redact_patterns"):
        writer(redact_patterns=("(",))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("::1", "::/48"),
        ("", ""),
        ("local", "local"),
        ("no address", "no address"),
    ],
)
def test_networks(address: str, network: str) -> None:
    assert writer(address="truncated").address(address) == network


def test_hashed_addresses() -> None:
    hashed = writer(address="hashed", content="hash", hash_key="key")
    told = hashed.address("192.0.2.7")
    assert re.fullmatch("blake2:[0-9a-f]{32}", told)
    assert told == hashed.address("192.0.2.7") != hashed.address("192.0.2.8")
    assert told != hashed.of("192.0.2.7")  # or a prompt could be an address that is looked for
    assert hashed.address("") == ""
