"""Addresses: every form is recognised, nothing hostile gets through."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from stoker.errors import SourceError
from stoker.models.download import is_loopback, may_follow, range_start, validator_of
from stoker.models.sources import (
    BucketSource,
    HttpSource,
    HubSource,
    PackageSource,
    PathSource,
    filename_of,
    key_of,
    parse,
)


@pytest.mark.parametrize(
    ("text", "expected", "filename"),
    [
        ("/models/a.gguf", PathSource(Path("/models/a.gguf")), "a.gguf"),
        ("/models/../b/a.gguf", PathSource(Path("/b/a.gguf")), "a.gguf"),
        ("https://example.com/x/a%20b.gguf", HttpSource("https://example.com/x/a%20b.gguf"), "a b.gguf"),
        ("HTTPS://example.com/a.gguf", HttpSource("https://example.com/a.gguf"), "a.gguf"),
        ("http://127.0.0.1:9000/a.gguf", HttpSource("http://127.0.0.1:9000/a.gguf"), "a.gguf"),
        ("http://[::1]/a.gguf", HttpSource("http://[::1]/a.gguf"), "a.gguf"),
        ("hf:org/repo/a.gguf", HubSource("org/repo", "a.gguf"), "a.gguf"),
        ("hf:org/repo/sub/a.gguf@refs/pr/1", HubSource("org/repo", "sub/a.gguf", "refs/pr/1"), "a.gguf"),
        ("hf://org/repo/a.gguf@v1.0", HubSource("org/repo", "a.gguf", "v1.0"), "a.gguf"),
        ("s3://my-bucket/deep/er/a.gguf", BucketSource("my-bucket", "deep/er/a.gguf"), "a.gguf"),
        ("python:package/data/a.gguf", PackageSource("package", "data/a.gguf"), "a.gguf"),
    ],
)
def test_every_form(text, expected, filename):
    assert parse(text) == expected
    assert filename_of(parse(text)) == filename


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nul\0byte",
        "bell\x07",
        "https://",
        "https://example.com",
        "https://example.com/dir/",
        "https://[bad/a.gguf",
        "http://example.com/a.gguf",
        "http://127.0.0.1.example.com/a.gguf",
        "http://localhost.example.com/a.gguf",
        "ftp://example.com/a.gguf",
        "file:///etc/passwd",
        "hf:",
        "hf:repo/a.gguf",
        "hf:org/repo/",
        "hf:org/repo/../a.gguf",
        "hf:../repo/a.gguf",
        "hf:org/repo/a.gguf@",
        "hf:org/repo/a.gguf@../x",
        "hf:org/repo/a.gguf@v?x=1",
        "s3:bucket/a.gguf",
        "s3://ab/a.gguf",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/../a.gguf",
        "s3://BUCKET/a.gguf",
        "python:package",
        "python:a.b/c.gguf",
        "python:package/../c.gguf",
        "python:package//etc/passwd",
        "python:os;x/c.gguf",
    ],
)
def test_malformed_addresses_are_refused(text):
    with pytest.raises(SourceError):
        parse(text)


def test_plain_http_must_be_asked_for():
    with pytest.raises(SourceError, match="--insecure-http"):
        parse("http://example.com/a.gguf")
    assert parse("http://example.com/a.gguf", insecure_http=True) == HttpSource(
        "http://example.com/a.gguf", insecure=True
    )


def test_labels_hold_no_secrets_and_keys_ignore_passwords():
    source = parse("https://ann:pw@example.com/a.gguf?token=s3cret#part")
    assert source.label == "https://example.com/a.gguf?..."
    assert "pw" not in repr(source)
    assert "s3cret" not in repr(source)
    assert key_of(source) == key_of(parse("https://bob:other@example.com/a.gguf?token=s3cret"))
    assert key_of(source) != key_of(parse("https://example.com/a.gguf?token=other"))


def test_a_malformed_address_with_a_password_is_not_repeated():
    with pytest.raises(SourceError) as caught:
        parse("https://ann:pa55word@[bad/a.gguf")
    assert "pa55word" not in caught.value.message


@given(st.text(max_size=60), st.sampled_from(["", "hf:", "s3://", "https://", "http://", "python:", "x:"]))
def test_any_text_is_parsed_or_refused_and_never_climbs(text, prefix):
    try:
        source = parse(prefix + text)
    except SourceError:
        return
    if isinstance(source, (HubSource, PackageSource)):
        assert ".." not in source.file.split("/")
    assert "/" not in filename_of(source)
    assert len(key_of(source)) == 64
    if not isinstance(source, (PathSource, HttpSource)):
        assert parse(source.label) == source


@pytest.mark.parametrize(
    ("here", "there", "insecure", "allowed"),
    [
        ("https://a/x", "https://b/y", False, True),
        ("https://a/x", "http://127.0.0.1/y", True, False),
        ("http://127.0.0.1/x", "https://b/y", False, True),
        ("http://127.0.0.1/x", "http://localhost/y", False, True),
        ("http://127.0.0.1/x", "http://b/y", False, False),
        ("http://127.0.0.1/x", "http://b/y", True, True),
        ("https://a/x", "file:///etc/passwd", True, False),
    ],
)
def test_redirects_never_lose_encryption(here, there, insecure, allowed):
    assert may_follow(URL(here), URL(there), insecure=insecure) is allowed


def test_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "x.localhost"))
    assert not any(is_loopback(host) for host in (None, "", "10.0.0.1", "example.com", "0.0.0.0"))


def test_content_ranges():
    assert range_start("bytes 5-9/10") == (5, 10)
    assert range_start("bytes 5-9/*") == (5, None)
    assert range_start("bytes */10") is None
    assert range_start("") is None


def test_validators():
    assert validator_of({"ETag": '"a"', "Last-Modified": "x"}) == '"a"'
    assert validator_of({"ETag": 'W/"a"', "Last-Modified": "x"}) == "x"
    assert validator_of({}) is None
