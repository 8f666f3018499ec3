"""Snapshots of real models in a real S3 server: beside a bare client, with nothing changed, and under users' requests.

    python benchmarks/backups.py [--rounds 5]

The S3 server (SeaweedFS) runs on the same machine, and shares its processors with both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import obstore
from obstore.store import S3Store

import harness
from stoker.backup.create import Options, create
from stoker.backup.order import Order
from stoker.backup.repository import Repository
from stoker.backup.schedule import Times, run_child
from stoker.config import ModelConfig
from stoker.config.settings import ExactSettings
from stoker.models import sources
from stoker.models.partial import Quiet
from stoker.models.registry import ModelRegistry
from stoker.objects.opening import open_objects

sys.path.insert(0, str(harness.HERE.parent))
from tests.rollouts import Users, real_versions
from tests.running import Stoker
from tests.s3_server import BUCKET, S3Server
from tests.versions import bad_version, good_version

MODELS = 10
MIB = 2**20


def one_model(place: Path, file: Path, number: int) -> ExactSettings:
    """A host with one large model, never seen before."""
    data_dir = place / f"host{number}"
    marked = good_version(file, place / "marked.gguf", f"{number:03d}")
    ModelRegistry(data_dir).add(sources.parse(str(marked)), name="large", version="1")
    marked.unlink()
    return ExactSettings(data_dir=data_dir, models=(ModelConfig(name="large", source="large@1"),))


def against_the_client(place: Path, server: S3Server, rounds: int, report: harness.Report) -> None:
    """A new model: `create` beside obstore's own put of the same file, taking turns."""
    file, bare_s, ours_s = bad_version(place / "large.gguf"), [], []
    for number in range(rounds + 1):
        settings = one_model(place, file, number)
        (blob,) = (settings.data_dir / "models" / "blobs").iterdir()
        repository = Repository(open_objects(server.address()))

        def bare(blob: Path = blob, number: int = number) -> None:
            store = S3Store(BUCKET, client_options={"allow_http": True})
            with blob.open("rb") as opened:
                obstore.put(store, f"bare-{number}", opened)

        def ours(settings: ExactSettings = settings, repository: Repository = repository) -> None:
            create(settings, repository, Options(), Quiet())

        pairs = [(bare, bare_s), (ours, ours_s)]
        for act, times in pairs if number % 2 else reversed(pairs):
            began = time.monotonic()
            act()
            if number:  # the first round warms both
                times.append(time.monotonic() - began)
    ratio = statistics.median(ours / bare for ours, bare in zip(ours_s, bare_s, strict=True))
    size = file.stat().st_size
    rates = [f"{size / MIB / statistics.median(times):.0f} MiB/s" for times in (ours_s, bare_s)]
    report.rows.append((f"new model of {size / 1e6:.0f} MB", *rates, f"{ratio:.2f}"))
    report.raw["send"] = {"bare": bare_s, "ours": ours_s, "bytes": size}
    report.aims.append(harness.Aim("sending a new model, time by the bare client's", ratio, 1.3, "times"))


def unchanged(place: Path, server: S3Server, model: Path, rounds: int, report: harness.Report) -> None:
    """Ten models that are there already, by the command line."""
    directory = place / "ten"
    directory.mkdir()
    registry = ModelRegistry(directory / "data")
    for number in range(MODELS):
        file = good_version(model, place / "marked.gguf", f"Ten {number}")
        registry.add(sources.parse(str(file)), name=f"model{number}", version="1")
        file.unlink()
    address = server.address()
    (directory / "stoker.yaml").write_text(f"data_dir: {directory}/data\nbackup: {{repository: '{address}'}}\n")
    command = [sys.executable, "-m", "stoker", "backup", "create", "--config", str(directory / "stoker.yaml")]
    times = []
    for _ in range(rounds + 1):
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - began)
    median = statistics.median(times[1:])
    report.rows.append((f"{MODELS} models, unchanged", f"{median:.2f} s", "", ""))
    report.raw["unchanged"] = {"first": times[0], "again": times[1:]}
    report.aims.append(harness.Aim(f"{MODELS} unchanged models, the whole command", median, 2, "s"))


def p95(users: Users, since: float, until: float) -> float:
    times = sorted(took for at, took in users.times if since <= at <= until)
    return times[int(0.95 * (len(times) - 1))]


def beside_users(where: tuple[str, str], place: Path, model: Path, rounds: int, report: harness.Report) -> None:
    """What users of a server notice of its scheduled backup; the child is the one that the schedule starts."""
    kind, address = where
    directory = place / f"users-{kind}"
    directory.mkdir()
    settings = real_versions(directory, model, good=("1", "2", "3"))
    before, during, failed, sent = [], [], 0, []
    with Stoker(directory, settings) as server, Users(server.url, 4, 24) as users:
        time.sleep(5)
        for number in range(rounds):
            backed = ExactSettings(
                data_dir=directory / "data",
                models=(ModelConfig(name="smollm2", source="smollm2@1"),),
                backup={"repository": f"{address}-{number}", "schedule": "0 3 * * *"},
            )
            start = time.monotonic()
            time.sleep(20)
            begun = time.monotonic()
            result = asyncio.run(run_child(Order(backed), Times()))
            ended = time.monotonic()
            if not result.ok:
                sys.exit(f"a backup failed: {result.reason}")
            while sum(begun <= at <= ended for at, _ in users.times) < 20:  # a short one is watched a little longer
                time.sleep(0.2)
                ended = time.monotonic()
            before.append(p95(users, start, begun))
            during.append(p95(users, begun, ended))
            sent.append(result.sent_bytes / result.seconds / MIB)
            time.sleep(2)
        failed = len(users.wrong)
    ratio = statistics.median(after / old for after, old in zip(during, before, strict=True))
    report.rows.append(
        (
            f"answers, p95, during a backup to {kind}",
            *(f"{statistics.median(t):.2f} s" for t in (during, before)),
            f"{ratio:.2f}",
        )
    )
    report.raw[f"users {kind}"] = {"before": before, "during": during, "MiB/s": sent, "failed": failed}
    report.aims.append(harness.Aim(f"p95 of answers during a backup to {kind}, by before", ratio, 1.2, "times"))
    report.aims.append(harness.Aim(f"failed requests during backups to {kind}", failed, 0, ""))


def main() -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=5)

    options = harness.arguments(__doc__, add)
    rounds = 1 if options.quick else options.rounds
    report = harness.Report("backups", ("what", "Stoker", "beside", "ratio (median of rounds)"))
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "s3").mkdir()
        with S3Server(place / "s3") as server:
            os.environ.update(server.environment)
            against_the_client(place, server, rounds, report)
            unchanged(place, server, options.model, rounds, report)
            beside_users(("S3", server.address()), place, options.model, rounds, report)
        beside_users(("a directory", str(place / "repository")), place, options.model, rounds, report)
    report.notes.append(
        "Beside: obstore's own `put` of the same file (it sends no SHA-256, Stoker does); answers of 24 tokens to 4 "
        "clients in the 20 s before."
    )
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
