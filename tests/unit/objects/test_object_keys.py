"""Which keys objects may have."""

from __future__ import annotations

import posixpath
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.objects.keys import checked_key, checked_prefix, folder_of, safe_key

LETTERS = string.ascii_letters + string.digits + "._-/"


@settings(deadline=None)
@given(st.text(LETTERS, max_size=40) | st.text(max_size=10))
def test_a_safe_key_is_a_plain_path_below(text):
    if safe_key(text):
        assert checked_key(text) == text
        assert posixpath.normpath(f"/root/{text}") == f"/root/{text}"
        assert set(text) <= set(LETTERS)
        assert not any(part.startswith(".") for part in text.split("/"))
    else:
        with pytest.raises(ValueError, match="no key"):
            checked_key(text)


@settings(deadline=None)
@given(st.text(LETTERS, min_size=1, max_size=40).filter(safe_key), st.integers(0, 40))
def test_every_beginning_of_a_key_that_ends_after_no_dot_is_a_prefix(key, length):
    prefix = key[:length]
    if not prefix.endswith("."):
        assert checked_prefix(prefix) == prefix
    assert prefix.startswith(folder_of(prefix))


def test_the_keys_that_are_used():
    for key in (
        f"objects/ab/{'ab' * 32}",
        "snapshots/20260102T030405Z-0a1b2c3d.json",
        "prune.lock",
        "drills/last.json",
    ):
        assert checked_key(key) == key
