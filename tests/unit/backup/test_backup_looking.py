"""What a repository tells for metrics and health."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stoker.backup.looking import look, look_at, looked_at
from stoker.backup.manifest import Entry, Manifest, new_id
from stoker.backup.repository import Repository, snapshot_key
from stoker.objects.directory import DirectoryObjects
from stoker.objects.store import StorageError
from stoker.observability.snapshot import BackupFigures

NOW = 1_795_000_000.0
DIGEST = "ab" * 32


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(DirectoryObjects(tmp_path / "repository"), clock=lambda: NOW)


def manifest(created: float, **changes) -> Manifest:
    entry = Entry("stoker.yaml", "configuration", 7, DIGEST, DIGEST)
    return replace(
        Manifest(
            id=new_id(created),
            created=created,
            host="a",
            version="1",
            tags=(),
            entries=(entry,),
            locked_until=None,
            seconds=1.5,
            sent_bytes=5,
        ),
        **changes,
    )


class Away:
    """An object store that is not there."""

    url = "s3://away"

    def __getattr__(self, name: str):
        def fail(*_: object, **__: object) -> None:
            raise StorageError("s3://away: no answer")

        return fail


def test_an_empty_repository(repository: Repository) -> None:
    assert look(repository) == BackupFigures(snapshots=0, pinned=0, damaged=0)


def test_the_newest_good_snapshot_counts(repository: Repository) -> None:
    old, new, bad = manifest(NOW - 5000), manifest(NOW - 500, seconds=2.5, sent_bytes=3), manifest(NOW - 50)
    for one in (old, new):
        repository.add(one)
    repository.objects.put(snapshot_key(bad.id), b"{}")
    repository.pin(old.id)
    found = look(repository)
    assert found == BackupFigures(
        snapshots=3,
        pinned=1,
        damaged=1,
        last_id=new.id,
        last_success_at=NOW - 500,
        last_size_bytes=7,
        last_sent_bytes=3,
        last_seconds=2.5,
    )


def test_a_clock_that_was_ahead_does_not_make_a_snapshot_young_for_ever(repository: Repository) -> None:
    ahead = manifest(NOW + 10**9)
    repository.add(ahead)
    found = look(repository)
    assert found.last_id == ahead.id
    assert found.last_success_at == repository.snapshot("latest").modified


def test_a_repository_that_is_away_keeps_what_was_known(repository: Repository) -> None:
    repository.add(manifest(NOW - 500))
    before = look(repository)
    after = look(Repository(Away()), before)
    assert after == replace(before, trouble="s3://away: no answer")
    assert look(repository, after) == before
    assert look(Repository(Away())) == BackupFigures(trouble="s3://away: no answer")


@pytest.mark.parametrize(
    ("drills", "at", "ok", "succeeded"),
    [
        ([], None, None, None),
        ([(1.0, True)], 1.0, True, 1.0),
        ([(1.0, False)], 1.0, False, None),
        ([(1.0, True), (2.0, False)], 2.0, False, 1.0),
        ([(1.0, True), (2.0, True), (3.0, False), (4.0, False)], 4.0, False, 2.0),
        ([(1.0, False), (2.0, True)], 2.0, True, 2.0),
    ],
)
def test_the_last_drill_and_the_last_good_one(
    tmp_path: Path, drills: list[tuple[float, bool]], at: float | None, ok: bool | None, succeeded: float | None
) -> None:
    clock = iter(range(100))
    repository = Repository(DirectoryObjects(tmp_path / "repository"), clock=lambda: NOW + next(clock))
    for time, passed in drills:
        repository.record_drill({"time": time, "ok": passed, "snapshot": "s"})
    found = look(repository)
    assert (found.drill_at, found.drill_ok, found.drill_succeeded_at) == (at, ok, succeeded)


@pytest.mark.parametrize("document", [{}, {"ok": "yes", "time": 1.0}, {"ok": True}, {"ok": True, "time": "today"}])
def test_a_record_that_makes_no_sense_is_no_success(repository: Repository, document: dict) -> None:
    repository.record_drill(document)
    found = look(repository)
    assert found.drill_ok is False
    assert found.drill_succeeded_at is None


@pytest.mark.parametrize("address", ["", "ftp://host/place", "s3://"])
def test_an_address_that_is_none_is_a_trouble(address: str) -> None:
    assert look_at(address).trouble


async def test_looking_beside_the_event_loop(tmp_path: Path, repository: Repository) -> None:
    repository.add(manifest(NOW - 500))
    found = await looked_at(str(tmp_path / "repository"))
    assert (found.snapshots, found.trouble) == (1, None)
