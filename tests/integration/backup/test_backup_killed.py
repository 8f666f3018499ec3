"""A backup that is killed at any moment leaves no damaged snapshot, and is in nobody's way."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from tests.backup_data import Data, child_environment, restore_to
from tests.backup_stores import STORES, address_of, repository_at
from tests.probes import note

from stoker.backup.verify import verify
from stoker.models.partial import Quiet

ROUNDS = 24


@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", STORES)
def test_killed_at_any_moment_no_snapshot_is_damaged(store, request, monkeypatch, tmp_path):
    address = address_of(store, request, monkeypatch, tmp_path)
    repository = repository_at(address)
    data = Data(tmp_path)
    kept = data.add(1)
    data.create(repository)
    chance = random.Random(store)
    for seed in range(ROUNDS):
        command = [sys.executable, "-m", "tests.backup_victim", str(tmp_path), address, str(seed)]
        with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(chance.random() * 0.5)
            assert process.poll() is None
            process.kill()
        assert all(snapshot.trouble is None for snapshot in repository.snapshots())
    found = verify(repository, repository.snapshots(), Quiet())
    assert found.ok, found.bad
    before = len(repository.snapshots())
    made = data.create(repository)
    assert repository.snapshot("latest").id == made.manifest.id
    assert len(repository.snapshots()) == before + 1
    restore_to(tmp_path / "new", repository)
    assert (tmp_path / "new/models/blobs" / kept.digest).read_bytes() == kept.path.read_bytes()
    note(
        f"a backup killed at {ROUNDS} random moments",
        store=str(store),
        found=f"{before} whole snapshots, none damaged; the next backup and its restore are good",
    )
