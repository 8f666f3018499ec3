"""Files on a real disk: whole or not there, bounded, their owner's alone."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import NotFound, Overloaded, PayloadTooLarge
from stoker.jobs import files as files_module
from stoker.jobs.disk import read_json, write_json
from stoker.jobs.files import ABANDONED_S, PIECE, UPLOADS, UPLOADS_OF_ONE, FileStore, StoredFile
from stoker.jobs.writing import BUFFERED, FilesFull
from stoker.store.protocols import StoreError

ANN = "key:ann"
MIB = 1 << 20


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    store = await opened(tmp_path)
    yield store
    store.close()


async def opened(directory: Path, file_octets: int = MIB, total_octets: int = 3 * MIB) -> FileStore:
    store = FileStore(directory / "files", file_octets=file_octets, total_octets=total_octets)
    await store.open()
    return store


async def put(files: FileStore, content: bytes, tenant: str = ANN, **more: Any) -> StoredFile:
    async with files.uploading(tenant) as writing:
        for start in range(0, len(content), 70_000):
            await writing.write(content[start : start + 70_000])
        return await files.keep(writing, more.pop("filename", "in.jsonl"), more.pop("purpose", "batch"), **more)


async def content_of(files: FileStore, file: StoredFile, start: int = 0) -> bytes:
    return b"".join([piece async for piece in files.pieces(ANN, file.id, start)])


def on_disk(files: FileStore) -> list[str]:
    return sorted(path.name for path in files.directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [0, 1, PIECE, BUFFERED, BUFFERED + 1, MIB])
async def test_what_is_written_is_read(files: FileStore, size: int) -> None:
    content = os.urandom(size)
    file = await put(files, content)
    assert (file.octets, await content_of(files, file)) == (size, content)
    assert await content_of(files, file, size // 2) == content[size // 2 :]
    assert await files.get(ANN, file.id) == file
    assert on_disk(files) == [f"{file.id}.data", f"{file.id}.json"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files.directory.rglob("*"))


async def test_files_outlive_their_process(files: FileStore, tmp_path: Path) -> None:
    file = await put(files, b"content")
    again = await opened(tmp_path)
    assert await again.get(ANN, file.id) == file
    again.close()


async def test_another_tenant_sees_nothing(files: FileStore) -> None:
    file = await put(files, b"x")
    with pytest.raises(NotFound):
        await files.get("key:bob", file.id)
    with pytest.raises(NotFound):
        await files.delete("key:bob", file.id)
    with pytest.raises(NotFound):
        await anext(files.pieces("key:bob", file.id))
    assert await files.page("key:bob") == ([], False)
    await files.delete(ANN, file.id)
    assert on_disk(files) == []


@given(st.text())
def test_no_name_of_a_caller_becomes_a_path(name: str) -> None:
    store = FileStore(Path("/nowhere"), file_octets=1, total_octets=1)
    try:
        with pytest.raises(NotFound):
            asyncio.run(store.get(ANN, name))
        with pytest.raises(NotFound):
            asyncio.run(store.get(ANN, f"file-{name}"))
        assert store.place_of(name).parent == Path("/nowhere")
        assert len(store.place_of(name).name) == 32
    finally:
        store.close()


async def test_an_upload_that_breaks_off_leaves_nothing(files: FileStore) -> None:
    async def broken_off() -> None:
        async with files.uploading(ANN) as writing:
            await writing.write(b"x" * BUFFERED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await broken_off()
    assert on_disk(files) == []
    await put(files, b"x" * MIB)


async def test_an_upload_that_is_cancelled_in_the_middle_of_a_write_leaves_nothing(
    files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = files_module.os.write

    def slow(handle: int, data: Any) -> int:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.1)
        return real(handle, data)

    monkeypatch.setattr("stoker.jobs.disk.os.write", slow)
    task = asyncio.create_task(put(files, b"x" * MIB))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert on_disk(files) == []


async def test_a_file_has_a_bound(files: FileStore) -> None:
    with pytest.raises(PayloadTooLarge, match=str(MIB)):
        await put(files, b"x" * (MIB + 1))
    assert on_disk(files) == []


async def test_all_files_together_have_a_bound(files: FileStore) -> None:
    kept = [await put(files, b"x" * (MIB - 1000)) for _ in range(3)]
    with pytest.raises(FilesFull, match="3 MiB"):
        await put(files, b"x" * 10_000)
    await files.delete(ANN, kept[0].id)
    await put(files, b"x" * 10_000)


async def test_what_replicas_and_earlier_processes_wrote_counts(files: FileStore, tmp_path: Path) -> None:
    for _ in range(3):
        await put(files, b"x" * (MIB - 1000))
    again = await opened(tmp_path)
    with pytest.raises(FilesFull):
        await put(again, b"x" * 10_000)
    again.close()


async def test_uploads_at_once_are_bounded(files: FileStore) -> None:
    async with asyncio.timeout(30):
        contexts = [files.uploading(f"key:{n // UPLOADS_OF_ONE}") for n in range(UPLOADS)]
        for number, context in enumerate(contexts):
            await context.__aenter__()
            if number == UPLOADS_OF_ONE - 1:
                with pytest.raises(Overloaded):
                    await files.uploading("key:0").__aenter__()
        with pytest.raises(Overloaded):
            await files.uploading("key:another").__aenter__()
        for context in contexts:
            await context.__aexit__(None, None, None)
        await put(files, b"x")


async def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_FILES", 3)
    store = await opened(tmp_path)
    for _ in range(3):
        await put(store, b"")
    with pytest.raises(FilesFull, match="3 files"):
        await put(store, b"")
    store.close()


async def test_pages(files: FileStore) -> None:
    made = [await put(files, b"", purpose="batch" if n % 2 else "batch_output") for n in range(5)]
    newest, more = await files.page(ANN, limit=2)
    assert ([file.id for file in newest], more) == ([made[4].id, made[3].id], True)
    rest, more = await files.page(ANN, limit=3, after=newest[-1].id)
    assert ([file.id for file in rest], more) == ([made[2].id, made[1].id, made[0].id], False)
    oldest, _ = await files.page(ANN, newest_first=False, purpose="batch")
    assert [file.id for file in oldest] == [made[1].id, made[3].id]


async def test_a_file_whose_time_is_over_is_gone(files: FileStore) -> None:
    file = await put(files, b"x", keep_s=-1.0)
    kept = await put(files, b"y", keep_s=-1.0)
    await files.keep_until(ANN, kept, time.time() + 100)
    with pytest.raises(NotFound):
        await files.get(ANN, file.id)
    await files.sweep()
    assert on_disk(files) == [f"{kept.id}.data", f"{kept.id}.json"]


async def test_what_a_crash_left_goes_and_what_is_being_written_stays(files: FileStore, tmp_path: Path) -> None:
    file = await put(files, b"x")
    place = files.place_of(ANN)
    long_ago = time.time() - ABANDONED_S - 10
    for name, old in (("a.part", True), ("b.part", False), ("c.data", True), ("d.data", False)):
        path = place / f"file-{name}"
        path.write_bytes(b"x")
        if old:
            os.utime(path, (long_ago, long_ago))
    os.utime(place / f"{file.id}.data", (long_ago, long_ago))
    again = await opened(tmp_path)
    assert on_disk(again) == sorted([f"{file.id}.data", f"{file.id}.json", "file-b.part", "file-d.data"])
    again.close()


async def test_a_file_that_is_removed_is_read_to_its_end(files: FileStore) -> None:
    file = await put(files, b"x" * (PIECE * 3))
    pieces = files.pieces(ANN, file.id)
    first = await anext(pieces)
    await files.delete(ANN, file.id)
    assert len(first + b"".join([piece async for piece in pieces])) == PIECE * 3


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, FilesFull), (errno.EIO, StoreError)])
async def test_a_disk_that_fails_is_told_in_words(
    files: FileStore, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    def fail(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("stoker.jobs.writing.os.fsync", fail)
    with pytest.raises(expected):
        await put(files, b"x")
    assert on_disk(files) == []


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("")
    with pytest.raises(StoreError):
        await opened(tmp_path)


def test_documents_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    (tmp_path / "a.json.new").write_text("half of a docu")  # as a crash leaves it
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 2})
    assert (read_json(path), list(tmp_path.iterdir())) == ({"a": 2}, [path])
