"""Secrets are sealed: only their key opens them, and nothing in them can be altered unnoticed."""

from __future__ import annotations

import pytest
from tests.backup_data import KEY, flip

from stoker.backup import sealing
from stoker.backup.sealing import OVERHEAD, Sealer, WrongKey, seal, unseal


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """Guesses that cost little; how much they cost in truth is a constant."""
    monkeypatch.setattr(sealing, "COST_LOG2", 4)


@pytest.mark.parametrize("data", [b"", b"secret", bytes(100_000)])
def test_what_is_sealed_comes_out_again(data):
    sealed = seal(data, KEY)
    assert unseal(sealed, KEY) == data
    assert len(sealed) == len(data) + OVERHEAD
    assert not data or data not in sealed


def test_the_same_content_never_looks_the_same():
    sealer = Sealer(KEY)
    assert sealer.seal(b"secret") != sealer.seal(b"secret")
    assert seal(b"secret", KEY)[11:27] != seal(b"secret", KEY)[11:27]


def test_one_sealer_opens_what_another_sealed():
    one, other = Sealer(KEY), Sealer(KEY)
    assert other.unseal(one.seal(b"a")) == b"a"
    assert one.unseal(other.seal(b"b")) == b"b"


def test_another_key_opens_nothing():
    with pytest.raises(WrongKey, match="another key"):
        unseal(seal(b"secret", KEY), KEY + "r")


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    path = tmp_path / "sealed"
    original = seal(b"secret", KEY)
    for place in range(len(original)):
        path.write_bytes(original)
        flip(path, place)
        with pytest.raises(WrongKey):
            unseal(path.read_bytes(), KEY)


@pytest.mark.parametrize("data", [b"", b"STKSEAL1", b"x" * 100, b"STKSEAL1" + b"\xff" * 100])
def test_what_is_no_sealed_object_is_told_as_such(data):
    with pytest.raises(WrongKey, match="damaged, or from a newer Stoker"):
        unseal(data, KEY)


def test_a_short_key_is_refused():
    with pytest.raises(WrongKey, match="at least 8"):
        Sealer("1234567")


def test_a_guess_is_dear():
    assert sealing.BLOCK == 8
    assert sealing._MAX_COST_LOG2 == 20
