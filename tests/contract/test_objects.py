"""What every place for objects does: a directory, and a real S3 server."""

from __future__ import annotations

import hashlib
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from stoker.objects.opening import open_objects
from stoker.objects.store import SMALL, ObjectExists, ObjectMissing, ObjectStore, StorageError

MIB = 1 << 20
HOSTILE = (
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    "..",
    "../a",
    "a/../b",
    "a..b",
    ".",
    "a/.",
    ".tmp/x",
    "a/.hidden",
    "a\nb",
    "a\n",
    "a\0",
    "a b",
    "a?b",
    "a%2e%2e",
    "ä",
    "a\\b",
    "x" * 513,
    "y" * 201,
)


@pytest.fixture
def objects(object_address) -> ObjectStore:
    return open_objects(object_address)


def keys(objects: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(found.key for found in objects.list(prefix))


def in_pieces(content: bytes, size: int):
    return (content[start : start + size] for start in range(0, len(content), size))


def test_what_is_stored_is_there_again(objects, object_address):
    before = time.time()
    for key, content in {"a": b"", "snapshots/1-2_3.json": b"{}", "x/y/z/" + "k" * 200: bytes(range(256))}.items():
        assert objects.info(key) is None
        objects.put(key, content)
        assert objects.get(key) == content
        assert b"".join(objects.stream(key)) == content
        found = objects.info(key)
        assert (found.key, found.size) == (key, len(content))
        # S3 tells whole seconds.
        assert before - 2 < found.modified < time.time() + 2
        assert open_objects(object_address).get(key) == content


def test_a_later_one_takes_the_place_of_an_earlier(objects):
    objects.put("a/b", b"first")
    objects.put("a/b", b"second")
    assert objects.get("a/b") == b"second"
    objects.put_stream("a/b", [b"thi", b"rd"], 5)
    assert objects.get("a/b") == b"third"


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 30 * MIB])
def test_streams_of_any_size(objects, size):
    content = random.Random(size).randbytes(size)
    for piece in (3 * MIB + 7, 8 * MIB):
        objects.put_stream("objects/ab/stream", in_pieces(content, piece), size)
        digest = hashlib.sha256()
        for part in objects.stream("objects/ab/stream"):
            assert len(part) <= 8 * MIB
            digest.update(part)
        assert digest.digest() == hashlib.sha256(content).digest()
        assert objects.info("objects/ab/stream").size == size


def test_a_stream_may_be_left_before_its_end(objects):
    content = os.urandom(20 * MIB)
    objects.put_stream("a", in_pieces(content, MIB), len(content))
    pieces = objects.stream("a")
    first = next(pieces)
    del pieces
    assert content.startswith(first)


@pytest.mark.parametrize("size", [10, 20 * MIB])
@pytest.mark.parametrize("reached", [0, 0.6, 1])
def test_an_error_of_the_pieces_passes_through_and_nothing_is_to_be_seen(objects, size, reached):
    class Mine(OSError):
        pass

    def breaks():
        for _ in range(int(10 * reached)):
            yield b"x" * (size // 10)
        raise Mine("the source is gone")

    with pytest.raises(Mine, match="the source is gone"):
        objects.put_stream("a/b", breaks(), size)
    assert keys(objects) == []
    objects.put("a/b", b"old")
    with pytest.raises(Mine):
        objects.put_stream("a/b", breaks(), size)
    assert objects.get("a/b") == b"old"


@pytest.mark.parametrize("size", [10, 20 * MIB])
@pytest.mark.parametrize("difference", [-1, 1, MIB])
def test_pieces_that_are_not_as_many_bytes_as_was_said(objects, size, difference):
    content = b"x" * max(0, size + difference)
    with pytest.raises(StorageError, match=f"instead of {size}"):
        objects.put_stream("a", in_pieces(content, 5 * MIB), size)
    assert keys(objects) == []


def test_pieces_are_made_in_the_caller_s_thread(objects):
    from threading import get_ident

    seen = set()

    def pieces():
        for _ in range(20):
            seen.add(get_ident())
            yield bytes(MIB)

    objects.put_stream("a", pieces(), 20 * MIB)
    assert seen == {get_ident()}


def test_no_more_than_a_few_pieces_are_held(objects):
    import tracemalloc

    size = 200 * MIB
    tracemalloc.start()
    try:
        objects.put_stream("a", (bytes(8 * MIB) for _ in range(size // (8 * MIB))), size)
        for _ in objects.stream("a"):
            pass
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    finally:
        tracemalloc.stop()


def test_what_is_missing(objects):
    for missing in ("a", "a/b/c"):
        assert objects.info(missing) is None
        with pytest.raises(ObjectMissing, match=missing):
            objects.get(missing)
        with pytest.raises(ObjectMissing, match=missing):
            objects.stream(missing)
        objects.delete(missing)
    assert keys(objects) == []
    objects.put("a/b/c", b"x")
    for missing in ("a/b", "a/b/c/d", "a/b/cc"):
        with pytest.raises(StorageError):
            objects.get(missing)


def test_what_is_deleted_is_gone(objects):
    objects.put("a/b", b"x")
    objects.put("a/c", b"y")
    objects.delete("a/b")
    objects.delete("a/b")
    assert keys(objects) == ["a/c"]
    assert objects.info("a/b") is None


def test_lists(objects):
    stored = {f"objects/{n % 7:02x}/{n:03}": bytes(n) for n in range(60)} | {"objectsx": b"1", "snapshots/1": b"2"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(objects.put, stored.keys(), stored.values()))
    for prefix in ("", "o", "objects", "objects/", "objects/0", "objects/03", "objects/03/", "objects/03/0", "nothing"):
        found = {one.key: one.size for one in objects.list(prefix)}
        assert found == {key: len(value) for key, value in stored.items() if key.startswith(prefix)}, prefix


def test_a_list_of_more_than_one_page(objects):
    names = [f"pins/{n:04}" for n in range(1_100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: objects.put(name, b""), names))
    assert keys(objects, "pins/") == names


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused_before_anything_happens(objects, key):
    for act in (objects.get, objects.stream, objects.info, objects.delete):
        with pytest.raises(ValueError, match="no key"):
            act(key)
    for only_new in (False, True):
        with pytest.raises(ValueError, match="no key"):
            objects.put(key, b"x", only_new=only_new)
    with pytest.raises(ValueError, match="no key"):
        objects.put_stream(key, [b"x"], 1)
    assert keys(objects) == []


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../", ".tmp", "a b", "ä"])
def test_hostile_beginnings_of_keys_are_refused(objects, prefix):
    with pytest.raises(ValueError, match="no key"):
        keys(objects, prefix)


def test_a_new_one_does_not_take_another_s_place(objects):
    objects.put("snapshots/1", b"mine", only_new=True)
    with pytest.raises(ObjectExists, match="snapshots/1"):
        objects.put("snapshots/1", b"other", only_new=True)
    assert objects.get("snapshots/1") == b"mine"
    objects.put("snapshots/1", b"mine", only_new=True)
    objects.delete("snapshots/1")
    objects.put("snapshots/1", b"other", only_new=True)
    assert objects.get("snapshots/1") == b"other"


def test_of_many_that_want_the_same_new_one_one_gets_it(objects, object_address):
    for attempt in range(5):
        barrier = Barrier(8)

        def race(number: int, barrier=barrier, key=f"locks/{attempt}") -> bool:
            store = open_objects(object_address) if number % 2 else objects
            barrier.wait(30)
            try:
                store.put(key, b"%d" % number, only_new=True)
            except ObjectExists:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = [number for number, mine in enumerate(pool.map(race, range(8))) if mine]
        assert [objects.get(f"locks/{attempt}")] == [b"%d" % number for number in won]


def test_many_write_the_same_object_at_once(objects):
    content = os.urandom(9 * MIB)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: objects.put_stream("objects/aa", in_pieces(content, MIB), len(content)), range(6)))
    assert b"".join(objects.stream("objects/aa")) == content
    assert keys(objects) == ["objects/aa"]


def test_what_is_too_large_for_memory_is_not_read_into_it(objects):
    size = SMALL + 1
    objects.put_stream("a", (bytes(min(MIB, size - start)) for start in range(0, size, MIB)), size)
    with pytest.raises(StorageError, match="more"):
        objects.get("a")


def test_the_address_is_for_people(objects, object_address):
    assert objects.url == object_address


def test_a_prefix_is_a_wall(object_address):
    outer = open_objects(object_address)
    inner = open_objects(f"{object_address}/inner")
    outer.put("a", b"outer")
    inner.put("a", b"inner")
    assert keys(inner) == ["a"]
    assert inner.get("a") == b"inner"
    assert keys(outer) == ["a", "inner/a"]
