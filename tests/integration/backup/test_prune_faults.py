"""Prunes that are killed, and prunes beside backups under way: no snapshot ever lacks an object."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.integration.models.model_server import gguf_bytes
from tests.prune_work import DAY, Interfering, contents, ids, incomplete, keep, keys, pruned

from stoker.backup import create as creating
from stoker.backup.create import Options, create
from stoker.backup.lock import LEASE_S, PruneRunning
from stoker.backup.repository import Repository
from stoker.config import Settings
from stoker.models.partial import Quiet
from stoker.models.registry import ModelRegistry
from stoker.models.sources import PathSource
from stoker.objects.opening import open_objects

ROOT = Path(__file__).resolve().parents[3]


def killed_after(address: str, calls: int) -> bool:
    """Prune in a process that dies before its next change; whether it did."""
    ended = subprocess.run([sys.executable, "-m", "tests.prune_work", address, str(calls)], cwd=ROOT, check=False)
    assert ended.returncode in {0, -9}
    return ended.returncode == -9


def test_a_prune_that_is_killed_before_any_of_its_changes_harms_nothing(object_address):
    """The lock that it leaves is taken over when it is stale, and the next prune does what is left."""
    repository = Repository(open_objects(object_address))
    later = Repository(open_objects(object_address), clock=lambda: time.time() + LEASE_S + 60)
    calls, deaths = 0, 0
    while True:
        new = keep(repository, b"shared", b"new")
        keep(repository, b"shared", b"a", b"b", days=2)
        keep(repository, b"shared", b"c", days=3)
        died = killed_after(object_address, calls)
        assert not incomplete(repository)
        assert new in ids(repository)
        if not died:
            break
        deaths += 1
        if repository.prune_lock():
            with pytest.raises(PruneRunning, match="if it died"):
                pruned(repository)
        pruned(later, grace_s=-DAY)
        assert ids(repository) == {new}
        assert contents(repository) == keys(b"shared", b"new")
        calls += 3 if object_address.startswith("s3:") else 1
    assert deaths > 4
    assert ids(repository) == {new}
    assert contents(repository) == keys(b"shared", b"new")


def host(place: Path, *seeds: int) -> Settings:
    """A host's data directory with some tiny models."""
    place.mkdir()
    registry = ModelRegistry(place)
    for seed in seeds:
        path = place / f"model-{seed}.gguf"
        path.write_bytes(gguf_bytes(seed=seed, elements=64))
        registry.add(PathSource(path), name=f"model-{seed}")
    return Settings(data_dir=place, _env_file=None)


def test_prunes_beside_backups_leave_every_snapshot_whole(object_address, tmp_path, monkeypatch):
    """Hosts have different models and one snapshot is kept: objects lose their last one just when they are wanted."""
    monkeypatch.setattr(creating, "PRUNE_POLL_S", 0.005)
    hosts = [host(tmp_path / f"host-{number}", number, 100 + number % 2) for number in range(3)]
    rounds = 15 if object_address.startswith("s3:") else 60
    done = threading.Event()
    faults: list[BaseException | str] = []
    outcomes = {"sent again": 0, "collected": 0, "refused": 0}

    class Told(Quiet):
        def note(self, text: str) -> None:
            outcomes["sent again"] += "sending it again" in text

    def back_up(settings: Settings) -> None:
        repository = Repository(open_objects(object_address))
        for _ in range(rounds):
            made = create(settings, repository, Options(), Told()).manifest
            lost = repository.missing({entry.stored: entry.size for entry in made.entries})
            if lost and made.id in ids(repository):
                faults.append(f"{made.id} lacks {lost}")

    def prune_again_and_again(seed: int) -> None:
        chance = random.Random(seed)

        def dawdle(what: str, key: str) -> None:
            if what == "delete":
                time.sleep(chance.choice((0.0, 0.002, 0.02)))

        repository = Repository(Interfering(open_objects(object_address), dawdle))
        while not done.is_set():
            try:
                outcomes["collected"] += pruned(repository, grace_s=-DAY).collected
            except PruneRunning:
                outcomes["refused"] += 1
                time.sleep(0.01)

    def guarded(work, *details) -> None:
        try:
            work(*details)
        except BaseException as error:
            faults.append(error)

    creators = [threading.Thread(target=guarded, args=(back_up, settings)) for settings in hosts]
    pruners = [threading.Thread(target=guarded, args=(prune_again_and_again, seed)) for seed in range(2)]
    for thread in (*creators, *pruners):
        thread.start()
    for thread in creators:
        thread.join()
    done.set()
    for thread in pruners:
        thread.join()
    assert faults == []
    repository = Repository(open_objects(object_address))
    assert incomplete(repository) == {}
    assert outcomes["collected"] > 0
    assert ids(repository)
