"""What the gateway and the process that makes a snapshot tell each other. The gateway needs no more of backups."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson
from pydantic import SecretStr

from stoker.config import Settings
from stoker.config.settings import ExactSettings

COMMAND: Final = (sys.executable, "-m", "stoker.backup.child")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done: a snapshot of a server with these settings, read from that file, if from any."""

    settings: Settings
    config_file: Path | None = None

    def encode(self, scratch: Path) -> bytes:
        """One line, with every secret in it. `scratch` is a directory for the child alone."""
        tree = self.settings.model_dump(exclude_unset=True)
        whole = {"settings": tree, "config_file": self.config_file, "scratch": scratch}
        return orjson.dumps(whole, default=_plain) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> tuple[Self, Path]:
        """The order and the scratch directory that `encode` wrote: the same settings, whatever the environment says."""
        found = orjson.loads(line)
        file = found["config_file"]
        order = cls(ExactSettings(**found["settings"]), Path(file) if file is not None else None)
        return order, Path(found["scratch"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of it. `reason` says why there is no snapshot, `prune_trouble` why old ones could not be removed."""

    ok: bool
    reason: str = ""
    snapshot: str = ""
    size_bytes: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0
    removed: int = 0
    freed_bytes: int = 0
    prune_trouble: str = ""

    def encode(self) -> bytes:
        """One line."""
        return orjson.dumps(self) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Read what `encode` wrote; ValueError for anything else."""
        try:
            return cls(**orjson.loads(line))
        except TypeError as error:
            raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be part of an order")
