"""Places for objects when things go wrong: killed writers, full disks, servers that are gone, wrong credentials."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.s3_server import SECRET_KEY, S3Server
from tests.small_disk import small_disk

from stoker.objects import s3
from stoker.objects.directory import DirectoryObjects
from stoker.objects.opening import open_objects
from stoker.objects.s3 import S3Objects
from stoker.objects.store import ObjectStore, StorageError

MIB = 1 << 20
WRITER = """
import sys
from stoker.objects.opening import open_objects

def pieces(count):
    for number in range(count):
        print(number, flush=True)
        yield bytes([number]) * (4 << 20)
    print("all", flush=True)

objects = open_objects(sys.argv[1])
objects.put_stream("objects/big", pieces(int(sys.argv[2])), int(sys.argv[2]) << 22)
print("done", flush=True)
"""


def keys(objects: ObjectStore) -> list[str]:
    return sorted(found.key for found in objects.list(""))


def writer(address: str, pieces: int) -> subprocess.Popen[str]:
    """A process that writes an object of so many pieces and tells of each."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, address, str(pieces)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_writer_leaves_nothing_to_be_seen(object_address):
    count = 6
    whole = hashlib.sha256(b"".join(bytes([number]) * (4 * MIB) for number in range(count))).digest()
    objects = open_objects(object_address)
    chance = random.Random(0)
    for attempt in range(12):
        until = ["0", "2", "5", "all"][attempt % 4]
        with writer(object_address, count) as child:
            for line in child.stdout:
                if line.strip() == until:
                    break
            time.sleep(chance.random() * 0.2)
            child.kill()
        if objects.info("objects/big") is not None:
            assert hashlib.sha256(b"".join(objects.stream("objects/big"))).digest() == whole
            objects.delete("objects/big")
        assert keys(objects) == []
    objects.sweep(time.time() + 60)
    if isinstance(objects, DirectoryObjects):
        assert list(Path(object_address, ".tmp").iterdir()) == []
    objects.put_stream("objects/big", [b"x" * (9 * MIB)], 9 * MIB)
    assert keys(objects) == ["objects/big"]


def test_what_a_living_writer_writes_is_not_swept(tmp_path):
    objects = DirectoryObjects(tmp_path / "objects")
    with writer(objects.url, 4) as child:
        assert child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        assert objects.sweep(time.time() + 60) == 0
        child.send_signal(signal.SIGCONT)
        assert child.stdout.read().endswith("done\n")
    assert keys(objects) == ["objects/big"]
    with writer(objects.url, 1000) as child:
        assert child.stdout.readline()
        child.kill()
    assert objects.sweep(time.time() - 3600) == 0
    assert objects.sweep(time.time() + 60) == 1
    assert keys(objects) == ["objects/big"]


def test_a_disk_without_room_is_told_before_anything_is_read(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        objects = DirectoryObjects(disk / "objects")
        with pytest.raises(StorageError, match="8388608 bytes are needed and the disk has"):
            objects.put_stream("a", iter(lambda: pytest.fail("it was read"), None), 8 * MIB)
        assert keys(objects) == []


def test_a_disk_that_fills_up(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        objects = DirectoryObjects(disk / "objects")
        objects.put("old", b"there")

        def pieces():
            yield bytes(MIB)
            with suppress(OSError):
                (disk / "other").write_bytes(bytes(4 * MIB))
            yield bytes(MIB)

        with pytest.raises(StorageError, match="the disk is full; make room"):
            objects.put_stream("a", pieces(), 2 * MIB)
        for only_new in (False, True):
            with pytest.raises(StorageError, match=r"make room|disk is full"):
                objects.put("b", bytes(2 * MIB), only_new=only_new)
        assert keys(objects) == ["old"]
        assert objects.get("old") == b"there"
        (disk / "other").unlink()
        assert list((disk / "objects" / ".tmp").iterdir()) == []
        objects.put_stream("a", [bytes(MIB)], MIB)
        assert keys(objects) == ["a", "old"]


def every_call(objects: ObjectStore):
    yield lambda: objects.put("a", b"x")
    yield lambda: objects.put("a", b"x", only_new=True)
    yield lambda: objects.put_stream("a", [b"x"], 1)
    yield lambda: objects.put_stream("a", (bytes(MIB) for _ in range(20)), 20 * MIB)
    yield lambda: objects.get("a")
    yield lambda: b"".join(objects.stream("a"))
    yield lambda: objects.info("a")
    yield lambda: list(objects.list(""))
    yield lambda: objects.delete("a")


@pytest.fixture
def access(s3_server, monkeypatch):
    """The environment for the shared server; tests change it. Nothing is tried again and again."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "RETRIES", 1)
    monkeypatch.setattr(s3, "QUESTION_RETRIES", 1)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SECRET_ACCESS_KEY", "not-the-secret"), ("AWS_ACCESS_KEY_ID", "nobody")]
)
def test_wrong_credentials(access, s3_server, name, value):
    access.setenv(name, value)
    for call in every_call(open_objects(s3_server.address())):
        with pytest.raises(StorageError, match=r"access is denied .* check AWS_ACCESS_KEY_ID") as told:
            call()
        assert value not in str(told.value)
        assert SECRET_KEY not in str(told.value)
        assert "\n" not in str(told.value)


def test_a_bucket_that_is_not_there(access):
    objects = S3Objects("no-such-bucket-at-all")
    # Not the writes: this server makes a bucket for whoever may.
    for call in list(every_call(objects))[4:]:
        with pytest.raises(StorageError, match="there is no bucket no-such-bucket-at-all; make it") as told:
            call()
        assert type(told.value) is StorageError


def test_a_server_that_is_not_there(access):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        access.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for call in every_call(S3Objects("bucket", "prefix")):
            with pytest.raises(
                StorageError, match=f"http://127.0.0.1:{port} cannot be reached; check AWS_ENDPOINT_URL"
            ):
                call()


def test_a_server_that_never_answers(access):
    access.setattr(s3, "QUESTION_SECONDS", 1)
    access.setattr(s3, "REQUEST_SECONDS", 1)
    access.setattr(s3, "RETRY_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        access.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for call in every_call(S3Objects("bucket", "prefix")):
            with pytest.raises(StorageError, match="does not answer in time"):
                call()


@pytest.mark.parametrize(
    "call",
    [
        "list(objects.list(''))",
        "objects.put('a', b'x')",
        "objects.put_stream('a', (bytes(1 << 20) for _ in range(100)), 100 << 20)",
        "next(objects.stream('a'))",
    ],
)
def test_a_server_that_never_answers_does_not_hold_up_ctrl_c(call):
    source = f"""
import threading
from stoker.objects.opening import open_objects
objects = open_objects("s3://bucket/prefix")
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        with subprocess.Popen(
            [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as child:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(100)
                child.send_signal(signal.SIGINT)
                # Well before the client's own limits, half a minute and more.
                out, err = child.communicate(timeout=20)
    assert (out, child.returncode) == ("interrupted\n", 0), err


def test_a_server_that_dies_while_it_is_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "RETRIES", 1)
    (tmp_path / "s3").mkdir()
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        objects = open_objects(server.address())
        objects.put("snapshots/1", b"there")
        content = os.urandom(70 * MIB)

        def pieces():
            for start in range(0, len(content), MIB):
                if start == 12 * MIB:
                    server.kill()
                yield content[start : start + MIB]

        with pytest.raises(StorageError, match="cannot be written"):
            objects.put_stream("objects/big", pieces(), len(content))
        server.start()
        assert keys(objects) == ["snapshots/1"]
        objects.put_stream("objects/big", [content], len(content))
        assert b"".join(objects.stream("objects/big")) == content

        stream = objects.stream("objects/big")
        assert content.startswith(next(stream))
        server.kill()
        with pytest.raises(StorageError, match="cannot be read"):
            list(stream)


def test_an_object_that_changes_while_it_is_read(object_address):
    objects = open_objects(object_address)
    old, new = bytes(60 * MIB), b"\1" * (60 * MIB)
    objects.put_stream("a", [old], len(old))
    stream = objects.stream("a")
    first = next(stream)
    objects.put_stream("a", [new], len(new))
    try:
        rest = b"".join(stream)
    except StorageError as error:
        assert "has changed while it was read" in str(error)
    else:
        assert first + rest == old


def test_a_directory_that_vanishes(tmp_path):
    objects = DirectoryObjects(tmp_path / "disk" / "objects")
    for call in every_call(objects):
        with pytest.raises(StorageError, match="mount that, else make it"):
            call()
    (tmp_path / "disk").mkdir()
    assert keys(objects) == []
    assert not (tmp_path / "disk" / "objects").exists()
    objects.put("a", b"x")
    shutil.rmtree(tmp_path / "disk")
    with pytest.raises(StorageError, match="mount that, else make it"):
        objects.get("a")
