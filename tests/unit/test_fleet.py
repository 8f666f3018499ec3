"""Where the engines' sockets go."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from stoker.engine.process import socket_name
from stoker.errors import StartupError
from stoker.fleet import MAX_SOCKET_PATH_BYTES, socket_directory


def test_sockets_get_a_private_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    made = socket_directory()
    try:
        assert made.stat().st_mode & 0o077 == 0
        assert len(str(made / socket_name("n" * 128, 1))) <= MAX_SOCKET_PATH_BYTES
    finally:
        made.rmdir()


def test_a_path_too_long_for_sockets_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(StartupError, match="TMPDIR"):
        socket_directory()
    assert not list(deep.iterdir())


def test_no_place_for_sockets_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StartupError, match="TMPDIR"):
        socket_directory()
