"""Sinks: nothing holds up who logs, order is kept, what is lost is counted and told of, failures are tried again."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

from stoker.observability.sinks import Bounds, Sink

WITHIN_S = 20.0


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about."""
    limit = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.002)


class Place:
    """A target that stalls, fails, or takes a part, as told."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.error: OSError | None = None
        self.most = 1 << 30
        self.octets = b""
        self.writes = 0
        self.closed = False

    def write(self, batch: bytes, start: int) -> int:
        self.open.wait(WITHIN_S)
        if self.error is not None:
            raise self.error
        self.writes += 1
        end = min(len(batch), start + self.most)
        self.octets += batch[start:end]
        return end

    def close(self) -> None:
        self.closed = True

    @property
    def lines(self) -> list[str]:
        return self.octets.decode().splitlines()


def sink_for(place: Place, failures: list[OSError] | None = None, **bounds: float) -> Sink:
    told = failures if failures is not None else []
    return Sink("place", place, lambda lost: b"lost %d\n" % lost, told.append, Bounds(**{"pace_s": 0, **bounds}))


def ended(sink: Sink) -> bool:
    sink.close()
    return sink.wait_closed(WITHIN_S)


def test_lines_come_in_their_order_and_together() -> None:
    place = Place()
    sink = sink_for(place)
    place.open.clear()
    for number in range(2000):
        sink.put(b"%d\n" % number)
    place.open.set()
    assert ended(sink)
    assert place.lines == [str(number) for number in range(2000)]
    assert place.writes < 10  # the first, and what came while it waited
    assert place.closed
    assert sink.dropped == 0


def test_threads_lose_nothing_and_each_keeps_its_order() -> None:
    place = Place()
    sink = sink_for(place)

    def speak(name: int) -> None:
        for number in range(500):
            sink.put(b"%d %d\n" % (name, number))

    threads = [threading.Thread(target=speak, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended(sink)
    said = [tuple(map(int, line.split())) for line in place.lines]
    assert len(said) == 4000
    for name in range(8):
        assert [number for speaker, number in said if speaker == name] == list(range(500))


def test_a_place_that_stalls_loses_lines_and_says_how_many() -> None:
    place = Place()
    sink = sink_for(place, lines=10)
    place.open.clear()
    for number in range(35):
        sink.put(b"%d\n" % number)
    assert sink.dropped == 25
    place.open.set()
    until(lambda: "lost 25" in place.lines)  # also when nothing more is said
    sink.put(b"again\n")
    assert ended(sink)
    assert place.lines == [*map(str, range(10)), "lost 25", "again"]


def test_the_bound_is_of_octets_too_and_holds_for_what_is_being_written() -> None:
    place = Place()
    sink = sink_for(place, octets=1000)
    place.open.clear()
    for _ in range(50):
        sink.put(b"x" * 99 + b"\n")
        time.sleep(0.0005)  # the thread takes some into its hands
    assert sink.dropped == 40
    sink.put(b"x" * 5000 + b"\n")
    assert sink.dropped == 41
    place.open.set()
    assert ended(sink)


def test_after_a_gap_a_slow_reader_is_not_told_of_a_gap_for_each_line() -> None:
    place = Place()
    sink = sink_for(place, lines=100)
    place.open.clear()
    for number in range(101):
        sink.put(b"%d\n" % number)
    place.open.set()
    until(lambda: "lost 1" in place.lines)
    assert place.lines.count("lost 1") == 1
    assert ended(sink)


def test_a_failure_is_told_of_once_and_tried_again_without_loss() -> None:
    place, failures = Place(), []
    sink = sink_for(place, failures, retry_s=0.01)
    place.error = OSError(errno.ENOSPC, "full")
    sink.put(b"one\n")
    until(lambda: bool(failures))
    sink.put(b"two\n")
    time.sleep(0.05)
    place.error = None
    until(lambda: place.lines == ["one", "two"])
    assert [error.errno for error in failures] == [errno.ENOSPC]
    place.error = OSError(errno.EIO, "broken")
    sink.put(b"three\n")
    until(lambda: len(failures) == 2)
    place.error = None
    assert ended(sink)
    assert place.lines == ["one", "two", "three"]
    assert sink.dropped == 0


def test_a_place_that_takes_parts_gets_all_of_them() -> None:
    place = Place()
    place.most = 3
    sink = sink_for(place)
    for number in range(100):
        sink.put(b"line %d\n" % number)
    assert ended(sink)
    assert place.lines == [f"line {number}" for number in range(100)]


def test_closing_does_not_wait_for_a_place_that_fails() -> None:
    place, failures = Place(), []
    sink = sink_for(place, failures, retry_s=3600)
    place.error = OSError(errno.EPIPE, "closed")
    sink.put(b"one\n")
    sink.put(b"two\n")
    until(lambda: bool(failures))
    assert ended(sink)
    assert sink.dropped == 2
    sink.put(b"three\n")
    assert sink.dropped == 3
    assert place.closed


def test_a_place_that_stalls_for_good_holds_up_nobody() -> None:
    stalled, place = Place(), Place()
    stalled.open.clear()
    first, second = sink_for(stalled), sink_for(place)
    first.put(b"one\n")
    second.put(b"one\n")
    first.close()
    assert not first.wait_closed(0.05)
    assert ended(second)
    assert place.lines == ["one"]
    stalled.open.set()
    assert first.wait_closed(WITHIN_S)


def test_a_line_may_be_said_in_the_middle_of_handing_one_over() -> None:
    place = Place()
    sink = sink_for(place, lines=4)

    def tell_gap(lost: int) -> bytes:  # runs while the sink's lock is held, as a destructor might
        sink.put(b"within\n")
        return b"lost %d\n" % lost

    sink._tell_gap = tell_gap
    place.open.clear()
    for number in range(6):
        sink.put(b"%d\n" % number)
    place.open.set()
    until(lambda: any(line.startswith("lost") for line in place.lines))
    assert ended(sink)


def test_a_sink_that_is_never_used_has_no_thread() -> None:
    place = Place()
    sink = sink_for(place)
    assert "log-place" not in [thread.name for thread in threading.enumerate()]
    assert ended(sink)
    assert place.closed


def test_without_threads_lines_are_lost_and_nothing_is_raised(monkeypatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    place = Place()
    sink = sink_for(place)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        sink.put(b"one\n")
    assert sink.dropped == 1
    sink.put(b"two\n")
    assert ended(sink)
    assert place.lines == ["lost 1", "two"]


def test_lines_that_come_fast_are_written_together(monkeypatch) -> None:
    over = threading.Event()
    clock = SimpleNamespace(sleep=lambda _: over.wait(WITHIN_S), monotonic=lambda: 0.0)
    monkeypatch.setattr("stoker.observability.sinks.time", clock)
    place = Place()
    sink = sink_for(place, pace_s=0.02)
    sink.put(b"first\n")
    until(lambda: place.lines == ["first"])  # at once
    for number in range(100):
        sink.put(b"%d\n" % number)
    assert place.lines == ["first"]
    over.set()
    assert ended(sink)
    assert place.writes == 2
    assert len(place.lines) == 101
