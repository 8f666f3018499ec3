"""Where lines go: streams that close, stall or are full; files that grow, vanish and were cut off."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.small_disk import small_disk

from stoker.observability.targets import FileTarget, StreamTarget


def write(target: StreamTarget | FileTarget, batch: bytes) -> None:
    at = 0
    while at < len(batch):
        at = target.write(batch, at)


def test_a_stream_is_written_to_also_after_it_was_closed(tmp_path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        target = StreamTarget(stream)
        write(target, b"one\n")
    write(target, b"two\n")
    target.close()
    assert path.read_text() == "one\ntwo\n"


def test_a_stream_without_a_descriptor() -> None:
    stream = io.StringIO()
    target = StreamTarget(stream)
    write(target, "Grüße\n".encode())
    target.close()
    assert stream.getvalue() == "Grüße\n"
    stream.close()
    with pytest.raises(OSError, match="closed") as raised:
        write(target, b"two\n")
    assert raised.value.errno == errno.EBADF


@pytest.mark.parametrize(("path", "reason"), [("/dev/full", errno.ENOSPC), (None, errno.EPIPE)])
def test_what_cannot_be_written_is_an_error_of_the_system(path, reason) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with Path(path).open("w") if path else os.fdopen(writer, "w") as stream:
        target = StreamTarget(stream)
        with pytest.raises(OSError) as raised:
            write(target, b"one\n")
        assert raised.value.errno == reason
        target.close()
    if path:
        os.close(writer)


def test_a_stream_that_does_not_wait_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        target = StreamTarget(stream)
        batch = b"x" * 99 + b"\n"
        batch *= 2000  # more than a pipe holds
        got, at = b"", 0
        while at < len(batch):
            at = target.write(batch, at)
            got += os.read(reader, 1 << 20)
        target.close()
    got += os.read(reader, 1 << 20)
    os.close(reader)
    assert got == batch


def test_a_file_is_made_for_its_owner_alone(tmp_path) -> None:
    path = tmp_path / "a" / "b" / "log"
    target = FileTarget(path)
    write(target, b"one\n")
    target.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = FileTarget(path, durable=True)
    write(again, b"two\n")
    again.close()
    assert path.read_text() == "one\ntwo\n"


def test_a_file_that_has_grown_is_put_aside_between_lines(tmp_path) -> None:
    path = tmp_path / "log"
    target = FileTarget(path, max_octets=100, keep=3)
    lines = [b"%02d" % number + b"x" * 27 + b"\n" for number in range(20)]  # 30 octets: 3 a file
    write(target, b"".join(lines[:7]))  # several files' worth at once
    for line in lines[7:]:
        write(target, line)
    target.close()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["log", "log.1", "log.2", "log.3"]
    kept = [(tmp_path / name).read_bytes() for name in ("log.3", "log.2", "log.1", "log")]
    assert [part.count(b"\n") for part in kept] == [3, 3, 3, 2]
    assert b"".join(kept) == b"".join(lines[9:])
    assert all(stat.S_IMODE(entry.stat().st_mode) == 0o600 for entry in tmp_path.iterdir())


def test_a_line_longer_than_a_file_has_one_of_its_own(tmp_path) -> None:
    path = tmp_path / "log"
    target = FileTarget(path, max_octets=50, keep=5)
    write(target, b"short\n" + b"y" * 200 + b"\nshort\n")
    target.close()
    assert (tmp_path / "log.2").read_bytes() == b"short\n"
    assert (tmp_path / "log.1").read_bytes() == b"y" * 200 + b"\n"
    assert path.read_bytes() == b"short\n"


def test_the_size_counts_what_was_there_before(tmp_path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"z" * 89 + b"\n")
    target = FileTarget(path, max_octets=100, keep=1)
    write(target, b"0123456789a\n")
    target.close()
    assert path.read_bytes() == b"0123456789a\n"
    assert (tmp_path / "log.1").stat().st_size == 90


def test_a_file_that_somebody_moved_or_removed_is_made_afresh(tmp_path) -> None:
    path = tmp_path / "logs" / "log"
    target = FileTarget(path)
    write(target, b"one\n")
    path.rename(tmp_path / "moved")
    write(target, b"two\n")
    assert path.read_bytes() == b"two\n"
    shutil.rmtree(path.parent)
    write(target, b"three\n")
    assert path.read_bytes() == b"three\n"
    shutil.rmtree(path.parent)
    path.parent.write_text("a file in the directory's place")
    with pytest.raises(OSError):
        target.write(b"four\n", 0)
    path.parent.unlink()
    write(target, b"four\n")
    target.close()
    assert path.read_bytes() == b"four\n"
    assert (tmp_path / "moved").read_bytes() == b"one\n"


def test_what_went_into_a_lost_file_in_part_goes_into_the_next_in_whole(tmp_path) -> None:
    path = tmp_path / "log"
    target = FileTarget(path)
    batch = b"first\nsecond\n"
    path.unlink()
    assert target.write(batch, 9) == len(batch)  # `first` and `sec` are gone with the file
    target.close()
    assert path.read_bytes() == b"second\n"


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"half": ')
    target = FileTarget(path)
    write(target, b"whole\n")
    target.close()
    assert path.read_bytes() == b'{"half": \nwhole\n'


@pytest.mark.parametrize("durable", [True, False])
def test_lines_are_on_the_disk_where_that_is_asked_for(tmp_path, monkeypatch, durable) -> None:
    synchronised: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: synchronised.append((tmp_path / "log").stat().st_size))
    target = FileTarget(tmp_path / "log", durable=durable)
    write(target, b"one\n")
    write(target, b"two\n")
    target.close()
    assert synchronised == ([4, 8] if durable else [])


def test_a_device_is_not_put_aside() -> None:
    target = FileTarget(Path("/dev/null"), max_octets=10, keep=1, durable=True)
    write(target, b"x" * 100 + b"\n")
    write(target, b"x" * 100 + b"\n")
    target.close()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError) as raised:
        FileTarget(tmp_path / "fifo")
    assert raised.value.errno == errno.ENXIO


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "64k") as place:
        yield place


def test_a_full_disk_that_gets_room_has_every_line_whole(disk) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(b"0" * (40 << 10))
    path = disk / "log"
    target = FileTarget(path)
    batch = b"".join(b"%05d" % number + b"x" * 94 + b"\n" for number in range(400))  # 40 kB
    at = target.write(batch, 0)  # as much as there is room for
    with pytest.raises(OSError) as raised:
        write(target, batch[at:])
    assert raised.value.errno == errno.ENOSPC
    assert 0 < at < len(batch)
    ballast.unlink()
    while at < len(batch):
        at = target.write(batch, at)
    target.close()
    assert path.read_bytes() == batch
