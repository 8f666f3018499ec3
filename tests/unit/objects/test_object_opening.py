"""From an address to a place for objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.errors import ConfigError
from stoker.objects.directory import DirectoryObjects
from stoker.objects.opening import open_objects
from stoker.objects.s3 import S3Objects
from stoker.objects.store import StorageError


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/mnt/backup", "/mnt/backup"),
        ("backup/of this", "{here}/backup/of this"),
        ("~/backup", "{here}/backup"),
        ("file:///mnt/backup", "/mnt/backup"),
        ("file://localhost/mnt/a%20b", "/mnt/a b"),
        ("FILE:///mnt", "/mnt"),
    ],
)
def test_directories(address, path, tmp_path):
    objects = open_objects(address)
    assert isinstance(objects, DirectoryObjects)
    assert objects.url == path.format(here=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my-bucket.example/stoker/prod/", "s3://my-bucket.example/stoker/prod"),
        ("S3://bucket/x", "s3://bucket/x"),
    ],
)
def test_buckets(address, url):
    objects = open_objects(address)
    assert isinstance(objects, S3Objects)
    assert objects.url == url


@pytest.mark.parametrize(
    "address",
    [
        "",
        "  ",
        "a\nb",
        "/mnt/\0",
        "s3://",
        "s3:///prefix",
        "s3:bucket/prefix",
        "s3:/bucket",
        "s3://b",
        "s3://bucket/../other",
        "s3://bucket//x",
        "s3://bucket/.hidden",
        "s3://bucket/a b",
        "s3://bucket/x?region=eu",
        "s3://bucket:9000/x",
        "file:",
        "file:/mnt",
        "file://mnt/backup",
        "file://",
        "file:///mnt?x",
        "file:///mnt%0a",
        "file://[/x",
        "gs://bucket/x",
        "https://example.org/x",
        "az:x",
        "~nobody-of-that-name/x",
    ],
)
def test_nonsense_is_refused_in_words(address):
    with pytest.raises(ConfigError, match=r"write |cannot stand before keys|in file:") as told:
        open_objects(address)
    assert "\n" not in str(told.value)


def test_credentials_in_an_address_are_refused_and_not_shown():
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as told:
        open_objects("s3://AKIA:s3cr3t@bucket/x")
    assert "s3cr3t" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "not-an-address"),
        ("AWS_ENDPOINT_URL", "http://[::1"),
        ("AWS_ENDPOINT_URL", "http://host:99999"),
        ("AWS_ENDPOINT_URL", "ftp://host"),
        ("AWS_ACCESS_KEY_ID", "key\n"),
        ("AWS_SECRET_ACCESS_KEY", "top secret"),
        ("AWS_REGION", "eu central"),
        ("AWS_SKIP_SIGNATURE", "maybe"),
    ],
)
def test_an_environment_that_makes_no_sense(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"the AWS_\* environment makes no sense: ") as told:
        open_objects("s3://bucket/x")
    assert "\n" not in str(told.value)
    assert "top secret" not in str(told.value)
    open_objects(str(Path("directory")))
