"""docs/recovery.md, followed to the letter: each section's commands are run as they stand, after what it is about.

Only names are put in place of others (paths, buckets). `systemctl` and `docker run` are done by the test, for not every
machine has them: a real `stoker serve` is started and stopped, or the verb is run that would run in the container.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.backup_host import BackupHost, digest_of, flip
from tests.running import ROOT
from tests.s3_server import S3Server
from tests.versions import good_version

PAGE = ROOT / "docs" / "recovery.md"
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DAMAGED = "20261124T205841Z-bcdd19ff"
QUICK = {
    "name": "quick",
    "cases": [{"prompt": "What is the capital of Germany?", "expect": {"contains_any": ["Berlin"]}}],
}
READY_WITHIN_S = 90


def sections() -> dict[str, list[str]]:
    """The shell blocks of each section of the page that has some."""
    found = {title: BLOCK.findall(text) for title, text in SECTION.findall(PAGE.read_text(encoding="utf-8"))}
    return {title: blocks for title, blocks in found.items() if blocks}


class Place:
    """A host on which the page is followed: two versions of a model, keys, a passphrase, and a snapshot of it all."""

    def __init__(self, directory: Path, repository: str, environment: dict[str, str], model: Path) -> None:
        self.model = model
        self.key = directory / "backup.key"
        self.key.write_text("correct horse battery staple\n")
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = held.getsockname()[1]
        the_set = directory / "quick.yaml"
        the_set.write_text(yaml.safe_dump(QUICK))
        settings = {
            "models": [{"name": "chat", "source": "chat@1", "plan": {"slots": 2, "context": 1024}}],
            "rollout": {"evaluation": str(the_set), "bake": 120, "min_requests": 1000},
        }
        self.host = BackupHost(directory / "host", repository, settings, environment)
        self.host.add_model(model, "chat", "1")
        second = good_version(model, directory / "second.gguf", "V2")
        self.host.add_model(second, "chat", "2")
        made = self.host.stoker("keys", "create", "billing", "--scope", "admin", "--scope", "inference")
        here = {"STOKER_PORT": str(self.port), "STOKER_URL": self.url, "STOKER_API_KEY": made.stdout.strip()}
        self.host.environment |= here
        # The shell finds this checkout's program, and openssl and jq of the system.
        self.host.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.snapshot = self.host.answer("create", "--key-file", str(self.key))["id"]
        self.names = {
            "s3://backups-2/stoker": f"{repository}-2",
            "s3://backups/stoker": repository,
            "/mnt/backup/stoker": repository,
            "/etc/stoker/stoker.yaml": str(self.host.config),
            "/var/lib/stoker": str(self.host.data_dir),
            "/root/backup.key": str(self.key),
            "/tmp/look": str(directory / "look"),
        }
        (directory / "look").mkdir()
        self.log = directory / "log"
        self.server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def follow(self, title: str) -> list[str]:
        """Do what a section says; what each of its blocks printed."""
        return [self.block(text) for text in sections()[title]]

    def block(self, text: str) -> str:
        """Run a block, but for the lines that are not the shell's to do here."""
        printed, waiting = "", ""
        for line in text.replace("\\\n", " ").splitlines(keepends=True):
            words = shlex.split(line, comments=True)
            if words[:1] == ["systemctl"]:
                printed, waiting = printed + self.shell(waiting), ""
                self.start(self.host.config) if words[1] == "start" else self.stop()
            elif words[:2] == ["docker", "run"]:
                inside = [word.replace("/data", str(self.host.data_dir)) for word in words]
                arguments = inside[inside.index("stoker:0.1.0") + 1 :]
                if arguments == ["serve"]:
                    printed, waiting = printed + self.shell(waiting), ""
                    (config,) = [Path(word.split("=")[1]) for word in inside if word.startswith("STOKER_CONFIG=")]
                    self.start(config)
                else:
                    waiting += shlex.join(["stoker", *arguments]) + "\n"
            else:
                waiting += line
        return printed + self.shell(waiting)

    def shell(self, script: str) -> str:
        if not script.strip():
            return ""
        for name, real in self.names.items():
            script = script.replace(name, real)
        (first,) = BLOCK.findall(PAGE.read_text(encoding="utf-8").partition("\n## ")[0])
        first = first.replace("s3://backups/stoker", self.names["s3://backups/stoker"])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", first + script],
            capture_output=True,
            text=True,
            timeout=150,
            cwd=self.host.directory,
            env=self.host.environment,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, config: Path) -> None:
        assert self.server is None
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "stoker", "serve", "--config", str(config)],
                stderr=log,
                cwd=self.host.directory,
                env=self.host.environment,
            )
        limit = time.monotonic() + READY_WITHIN_S
        while "ready after" not in self.log.read_text():
            assert self.server.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait(60)
            self.server = None

    def ask(self) -> str:
        return self.host.stoker("query", "What is the capital of Germany?").stdout

    def blob(self, model: Path) -> Path:
        return self.host.data_dir / "models" / "blobs" / digest_of(model)


@pytest.fixture
def place(tmp_path: Path, s3_server: S3Server, model_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, s3_server.address(), s3_server.environment, model_path)
    yield made
    made.stop()


@pytest.fixture
def mounted(tmp_path: Path, model_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, str(tmp_path / "mounted"), {}, model_path)
    yield made
    made.stop()


def test_every_section_is_tried() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [title for title in sections() if f'"{title}"' not in source] == []


@pytest.mark.model
def test_the_host_is_gone(place: Place, model_path: Path) -> None:
    shutil.rmtree(place.host.data_dir)
    place.host.config.unlink()
    (printed,) = place.follow("The host or its disk is gone")
    assert "Berlin" in printed
    assert digest_of(place.blob(model_path)) == digest_of(model_path)


@pytest.mark.model
@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_model_is_damaged(place: Place, model_path: Path, harm: str) -> None:
    place.start(place.host.config)
    blob = place.blob(model_path)
    if harm == "gone":
        blob.unlink()
    else:
        flip(blob)
    before, after = place.follow("A model file is damaged or gone")
    assert "damaged" in before
    assert "DAMAGED" not in after.rpartition("restored")[2]
    assert digest_of(blob) == digest_of(model_path)
    assert "Berlin" in place.ask()


@pytest.mark.model
def test_the_configuration_is_broken(place: Place) -> None:
    place.start(place.host.config)
    place.host.config.write_text("models: [{name: chat, sauce: chat@1}]\n")
    shown, _ = place.follow("The configuration is broken or lost")
    assert "source: chat@1" in shown
    assert "Berlin" in place.ask()


@pytest.mark.model
def test_a_rollout_was_a_mistake(place: Place) -> None:
    place.start(place.host.config)
    start = ("rollout", "start", "chat@2", "--skip-evaluation", "--wait-for", "baking")
    place.host.stoker(*start)
    back, again, stored = sections()["A rollout was a mistake"]
    place.block(back)
    assert "chat@1" in place.host.stoker("rollout", "status").stdout
    assert "Berlin" in place.ask()
    place.host.configure({**yaml.safe_load(place.host.config.read_text()), "rollout": {"bake": 0}})
    place.stop()
    place.start(place.host.config)
    place.host.stoker("rollout", "start", "chat@2", "--skip-evaluation")
    assert "chat@1" in place.block(again)
    place.stop()
    place.start(place.host.config)
    place.host.stoker("models", "remove", "chat@2", "--config", str(place.host.config))
    assert "chat@2" in place.block(stored)


def test_the_repository_is_damaged(mounted: Place) -> None:
    repository = Path(mounted.host.repository)
    old = repository / "snapshots" / f"{mounted.snapshot}.json"
    mounted.names[DAMAGED] = mounted.snapshot
    largest = max((path for path in repository.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flip(largest)
    flip(old, 40)
    mended, cleared = mounted.follow("Something in the repository is damaged")
    assert "DAMAGED" in mended
    assert mended.count("nothing damaged") == 1
    assert "nothing damaged" in cleared


def test_the_bucket_is_gone(place: Place) -> None:
    (printed,) = place.follow("The bucket is gone")
    assert "nothing damaged" in printed


@pytest.mark.model
def test_keys_are_lost(place: Place) -> None:
    place.start(place.host.config)
    old = place.host.environment["STOKER_API_KEY"]
    keys = place.host.data_dir / "keys.yaml"
    revoked, restored, sealed = sections()["API keys or the passphrase are lost"]
    new = place.block(revoked).splitlines()[-1]
    assert new != old
    keys.unlink()
    place.block(restored)
    assert "Berlin" in place.ask(), "the key of the snapshot is good again"
    passphrase = place.key.read_text()
    place.block(sealed)
    assert place.key.read_text() != passphrase
    (left,) = place.host.answer("list")
    assert left["id"] != place.snapshot
    assert "secrets" in left["kinds"]


@pytest.mark.model
def test_in_containers(place: Place) -> None:
    shutil.rmtree(place.host.data_dir)
    place.follow("It runs in containers")
    refused = place.host.stoker("query", "x", status=1)
    assert "key" in refused.stderr, "it was restored without the passphrase, so nobody may ask"


def test_without_stoker(mounted: Place, model_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not here; apt-get install jq brings it")
    (printed,) = mounted.follow("Without Stoker")
    assert digest_of(model_path) in printed
    for line in printed.splitlines():
        digest, file = line.split()
        assert Path(file).stem == digest


@pytest.mark.model
def test_afterwards(place: Place) -> None:
    (printed,) = place.follow("Afterwards")
    assert "drill passed" in printed
    assert len(place.host.answer("list")) == 2
