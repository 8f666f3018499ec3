"""Events of jobs in memory: bounded for each job and for all, and written only by the latest attempt."""

from __future__ import annotations

from stoker.store.job_events import LINGER_S, EventBooks
from stoker.store.jobs import Event


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_the_latest_attempt_writes() -> None:
    books = EventBooks()
    assert not books.append("a", "t1", [b"nobody runs it"])
    books.open("a", "t1", 1)
    assert books.append("a", "t1", [b"x", b"y"])
    books.open("a", "t2", 2)
    assert not books.append("a", "t1", [b"stale"])
    assert books.append("a", "t2", [b"z"])
    assert books.since("a", 1) == [Event(2, 1, b"y"), Event(3, 2, b"z")]
    assert books.since("a", 3) == books.since("a", 99) == books.since("b", 0) == []
    books.end("a")
    assert not books.append("a", "t2", [b"late"])
    assert len(books.since("a", 0)) == 3


def test_all_together_are_bounded_and_the_longest_unwritten_go_first() -> None:
    books = EventBooks(max_octets=10_000, max_books=50)
    for name in "abc":
        books.open(name, name, 1)
    for _ in range(3):
        books.append("a", "a", [b"x" * 1000])
        books.append("b", "b", [b"x" * 1000])
    assert books.octets <= 10_000
    books.append("a", "a", [b"x" * 4000])
    assert books.since("b", 0) == []
    assert len(books.since("a", 0)) == 4
    for number in range(200):
        books.open(f"job{number}", "t", 1)
    assert sum(books.append(f"job{number}", "t", [b"x"]) for number in range(200)) == 50
    books.clear()
    assert books.octets == 0


def test_what_has_ended_lingers_a_while() -> None:
    clock = Clock()
    books = EventBooks(clock=clock)
    books.open("a", "t", 1)
    books.append("a", "t", [b"x"])
    books.end("a")
    clock.now = LINGER_S
    books.open("b", "t", 1)
    assert len(books.since("a", 0)) == 1
    clock.now = LINGER_S + 1
    books.open("c", "t", 1)
    assert books.since("a", 0) == []
    assert books.octets == 0


def test_a_stirred_book_says_so() -> None:
    books = EventBooks()
    books.stir("a")
    assert books.stirs("a") is None
    books.open("a", "t", 1)
    before = books.stirs("a")
    books.stir("a")
    assert (before, books.stirs("a")) == (0, 1)
