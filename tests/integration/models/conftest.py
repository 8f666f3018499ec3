"""Shared pieces of the model room's tests: registries in temporary places, servers with faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server import ModelServer

from stoker.models.registry import ModelRegistry


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    """A proxy of the machine's must not stand between the tests and their servers on loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def registry(data_dir: Path) -> ModelRegistry:
    return ModelRegistry(data_dir)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    running = ModelServer()
    yield running
    running.close()


@pytest.fixture
def other_server() -> Iterator[ModelServer]:
    running = ModelServer()
    yield running
    running.close()


def files_under(directory: Path) -> set[str]:
    """Every file below a directory, but for the registry's empty lock."""
    return {
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def left_behind(data_dir: Path):
    """Call it to learn which files are in the data directory."""
    return lambda: files_under(data_dir)
