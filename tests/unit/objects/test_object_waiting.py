"""Calls in other threads, and pieces that go from one thread to another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.objects.waiting import Abandoned, interruptible, pumped


def test_the_main_thread_waits_for_another_and_others_do_it_themselves():
    assert interruptible(threading.get_ident) != threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: interruptible(threading.get_ident) == threading.get_ident()).result()


def test_errors_come_through():
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=20))
def test_all_pieces_arrive_in_order(pieces):
    got = []
    pumped(pieces, got.extend)
    assert got == pieces


@pytest.mark.parametrize("at", [0, 1, 5])
def test_who_takes_meets_an_end_that_is_no_end_when_the_source_breaks(at):
    got, seen = [], []

    def source():
        yield from [b"x"] * at
        raise KeyboardInterrupt

    def take(pieces):
        try:
            got.extend(pieces)
        except Abandoned:
            seen.append("abandoned")
            raise

    with pytest.raises(KeyboardInterrupt):
        pumped(source(), take)
    assert seen == ["abandoned"]
    assert len(got) <= at


def test_no_more_is_made_when_nobody_takes():
    made = []

    def endless():
        while True:
            made.append(1)
            yield b"x"

    def take(pieces):
        next(pieces)
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        pumped(endless(), take)
    assert len(made) < 10


def test_one_that_takes_only_some_ends_the_rest():
    pumped(iter([b"x"] * 100), next)
