"""Repositories in both kinds of store, empty ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.backup.repository import Repository
from stoker.objects.opening import open_objects
from tests.s3_server import S3Server

STORES = ("directory", "s3")


def address_of(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An address under which nothing is yet, in a store of that kind; the environment has what it takes to use it."""
    if kind == "directory":
        return str(tmp_path / "repository")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in {**server.environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return server.address()


def repository_at(address: str) -> Repository:
    """The repository at an address."""
    return Repository(open_objects(address))
