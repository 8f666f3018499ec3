"""A data directory with tiny models, snapshots of it, and damage, for tests of the backup room: no server runs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from stoker.backup.create import Created, Options, create
from stoker.backup.manifest import Entry, Manifest, new_id
from stoker.backup.repository import Repository
from stoker.backup.restore import Restored, restore
from stoker.config.settings import ExactSettings, Settings
from stoker.models.partial import Quiet
from stoker.models.registry import ModelRegistry, StoredModel
from stoker.models.sources import parse
from tests.integration.models.model_server import gguf_bytes

KEY = "correct horse battery staple"
PLAIN = Options()


class Data:
    """A data directory, and settings for it.

    Args:
        place: an existing directory for it and for files outside it.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data_dir = place / "data"
        self.registry = ModelRegistry(self.data_dir)

    def file(self, seed: int, name: str = "tiny.gguf", elements: int = 4096) -> Path:
        """A model's file outside the registry."""
        path = self.place / name
        path.write_bytes(gguf_bytes(seed=seed, elements=elements))
        return path

    def add(self, seed: int, name: str = "tiny", elements: int = 4096) -> StoredModel:
        """A stored model."""
        path = self.file(seed, f"source-{seed}.gguf", elements)
        model = self.registry.add(parse(str(path)), name=name)
        path.unlink()
        return model

    def settings(self, **values: Any) -> Settings:
        """Settings of a server here, as `stoker.yaml` would give them."""
        return ExactSettings(data_dir=self.data_dir, **values)

    def pin(self, name: str, configured: str, ref: str, digest: str) -> None:
        """What a rollout writes when another version serves."""
        path = self.data_dir / "rollouts" / "pins.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        version = {"ref": ref, "version": ref.rpartition("@")[2], "digest": digest}
        path.write_text(json.dumps({name: {"configured": configured, "version": version}}))

    def create(self, repository: Repository, options: Options = PLAIN, **values: Any) -> Created:
        """A snapshot of it."""
        self.data_dir.mkdir(exist_ok=True)
        return create(self.settings(**values), repository, options, Quiet())


def restore_to(target: Path, repository: Repository, ref: str = "latest", **how: Any) -> Restored:
    """Restore a snapshot."""
    return restore(repository, repository.snapshot(ref), target, Quiet(), **how)


def files_in(directory: Path) -> dict[str, str]:
    """The digest of every file below a directory, but for locks, memories, and what is rendered for the place."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in {".lock", ".in-use", "stoker.yaml", "digests.json"}
    }


def flip(path: Path, offset: int = -1) -> None:
    """Damage a file: one bit of one byte."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))
    path.chmod(mode)


def a_manifest(created: float = 1.0e9, tags: tuple[str, ...] = (), content: bytes = b"x") -> Manifest:
    """A manifest of one model."""
    digest = hashlib.sha256(content).hexdigest()
    entry = Entry(f"models/blobs/{digest}", "model", len(content), digest, digest)
    return Manifest(new_id(created), created, "host", "1.0", tags, (entry,))


def child_environment() -> dict[str, str]:
    """For processes that import the tests' modules."""
    root = Path(__file__).resolve().parent.parent
    return {**os.environ, "PYTHONPATH": str(root)}
