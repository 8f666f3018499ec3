"""A directory in which others write too: links, pipes, foreign files, flags and permissions."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from stoker.objects import directory
from stoker.objects.directory import DirectoryObjects
from stoker.objects.store import ObjectExists, ObjectLocked, ObjectMissing, StorageError


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def objects(root) -> DirectoryObjects:
    objects = DirectoryObjects(root)
    objects.put("a/b", b"content")
    return objects


def keys(objects: DirectoryObjects) -> list[str]:
    return sorted(found.key for found in objects.list(""))


def test_files_are_as_their_keys_and_nobody_else_s(objects, root):
    assert (root / "a" / "b").read_bytes() == b"content"
    assert {path.stat().st_mode & 0o077 for path in (root, root / "a", root / "a" / "b")} == {0}
    assert sorted(path.name for path in root.iterdir()) == [".tmp", "a"]
    assert list((root / ".tmp").iterdir()) == []


def test_the_directory_may_be_a_link(objects, root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    through = DirectoryObjects(tmp_path / "link")
    assert through.get("a/b") == b"content"
    through.put("c", b"x")
    assert (root / "c").read_bytes() == b"x"


def test_links_below_it_are_not_followed(objects, root, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (root / "link").symlink_to(secret)
    (root / "a" / "file").symlink_to(secret / "file")
    for key in ("link/file", "a/file"):
        for call in (objects.get, objects.info, objects.stream):
            with pytest.raises(StorageError, match="not followed") as told:
                call(key)
            assert not isinstance(told.value, ObjectMissing)
    assert keys(objects) == ["a/b"]
    with pytest.raises(StorageError, match="not followed"):
        objects.put("link/new", b"x")
    with pytest.raises(StorageError, match="not followed"):
        objects.delete("link/file")
    objects.put("a/file", b"own")
    assert not (root / "a" / "file").is_symlink()
    assert (secret / "file").read_bytes() == b"secret"
    assert [path.name for path in secret.iterdir()] == ["file"]


def test_a_link_in_place_of_the_drafts(objects, root, tmp_path):
    (root / ".tmp").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old").write_bytes(b"x")
    (root / ".tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="not followed"):
        objects.put("c", b"x")
    with pytest.raises(StorageError, match="not followed"):
        objects.sweep(time.time() + 60)
    assert (tmp_path / "elsewhere" / "old").exists()


def test_what_is_no_file_is_not_read(objects, root):
    os.mkfifo(root / "a" / "pipe")
    (root / "a" / "folder").mkdir()
    for key in ("a/pipe", "a/folder"):
        with pytest.raises(StorageError, match="not a regular file"):
            objects.get(key)
    assert keys(objects) == ["a/b"]
    with pytest.raises(StorageError, match="cannot be written"):
        objects.put("a/folder", b"x")
    with pytest.raises(StorageError):
        objects.put("a/b/c", b"x")
    with pytest.raises(StorageError, match="a/folder: cannot be deleted"):
        objects.delete("a/folder")
    assert list((root / ".tmp").iterdir()) == []


def test_foreign_files_are_passed_over(objects, root):
    for name in ("lost+found", "a b", ".hidden", "ä", "a/x..y", "a/\n"):
        (root / name).write_bytes(b"x")
    assert keys(objects) == ["a/b"]
    # A directory of the file system's own at the root of a disk.
    (root / "lost+found").unlink()
    (root / "lost+found").mkdir()
    assert keys(objects) == ["a/b"]


def test_an_immutable_file_is_locked(objects, root):
    path = root / "a" / "b"
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("this file system or user knows no immutable files")
    try:
        with pytest.raises(ObjectLocked, match="immutable"):
            objects.delete("a/b")
        assert objects.get("a/b") == b"content"
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    objects.delete("a/b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_permissions_are_told(objects, root):
    (root / "a").chmod(0o500)
    try:
        with pytest.raises(StorageError, match="this user may not"):
            objects.put("a/c", b"x")
    finally:
        (root / "a").chmod(0o700)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "this user may not"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "dmesg"),
        (errno.EDQUOT, "make room"),
        (errno.EPERM, "hard links"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_what_the_file_system_says_is_told_in_words(objects, root, monkeypatch, number, words):
    def refuses(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory.os, "link", refuses)
    with pytest.raises(StorageError, match=words) as told:
        objects.put("c", b"x", only_new=True)
    assert str(told.value).startswith(f"{root}/c: cannot be written: ")
    assert list((root / ".tmp").iterdir()) == []


def test_one_that_others_make_and_delete_all_the_time_ends_in_words(objects, monkeypatch):
    monkeypatch.setattr(DirectoryObjects, "_write", lambda *_, **__: False)
    with pytest.raises(ObjectExists):
        objects.put("c", b"x", only_new=True)


def test_only_old_drafts_are_swept(objects, root):
    now = time.time()
    for name, age in {"old": 7200, "new": 60}.items():
        (root / ".tmp" / name).write_bytes(b"x")
        os.utime(root / ".tmp" / name, (now - age, now - age))
    (root / ".tmp" / "folder").mkdir()
    assert objects.sweep(now - 3600) == 1
    assert sorted(path.name for path in (root / ".tmp").iterdir()) == ["folder", "new"]
    assert DirectoryObjects(root / "none").sweep(now) == 0


def test_no_handles_are_left_open(objects):
    def handles() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = handles()
    for _ in range(5):
        objects.put("x/y/z", b"1")
        objects.put("x/y/z", b"1", only_new=True)
        assert objects.get("x/y/z") == b"1"
        next(objects.stream("x/y/z"))
        next(objects.list(""))
        with pytest.raises(ObjectMissing):
            objects.get("x/y/none")
        with pytest.raises(StorageError):
            objects.put_stream("x/y/w", [b"12"], 1)
        objects.delete("x/y/z")
        objects.sweep(0)
    assert handles() == before
