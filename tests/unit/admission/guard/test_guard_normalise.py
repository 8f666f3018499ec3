# ruff: noqa: RUF001  # look-alike letters are what this is about
"""Disguised text takes the form of plain text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.admission.guard.normalise import EXPANSION, normalise, visible


@pytest.mark.parametrize(
    ("disguised", "plain"),
    [
        ("Ｉｇｎｏｒｅ", "ignore"),
        ("i\u200bg\u200dn\u2060o\ufeffre", "ignore"),
        ("Іgnоrе", "ignore"),  # Cyrillic letters among Latin ones
        ("игнopиpуй", "игнорируй"),  # Latin letters among Cyrillic ones
        ("𝐈𝐠𝐧𝐨𝐫𝐞", "ignore"),
        ("ɪɢɴᴏʀᴇ", "ignore"),
        ("İGNORE", "ignore"),
        ("i̶g̶n̶o̶r̶e̶", "ignore"),
        ("".join(chr(0xE0000 + ord(letter)) for letter in "ignore"), "ignore"),
        ("données  \t précédentes", "donnees precedentes"),
        ("всё", "все"),
        ("“a” — ‘b’", "\"a\" - 'b'"),
        ("๑ไทย", "๑ไทย"),
    ],
)
def test_disguises_fall_off(disguised, plain):
    assert normalise(disguised) == plain


def test_pure_scripts_stay():
    assert normalise("Привет, мир") == "привет, мир"
    assert normalise("ψυχή και") == normalise("ψυχή και")
    assert "а" in normalise("какао и tea")


@given(st.text(max_size=200))
def test_doing_it_again_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once


@given(st.text(alphabet=st.characters(codec="utf-16"), max_size=100))
def test_length_is_bounded(text):
    assert len(visible(text)) <= EXPANSION * len(text)
