"""Rollouts on disk: which version of each model serves, and every rollout as it stands.

Under the data directory: `rollouts/pins.json` says which version a model was switched to, `rollouts/<id>.json` is one
rollout. A pin is written before the switch that it stands for, so that a server that dies in between starts again with
the version that was to serve. Everything here blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stoker.errors import StartupError, StokerError
from stoker.models.partial import write_atomically
from stoker.rollout.record import Rollout, Version

KEPT: Final = 50
"""Rollouts that are remembered; the oldest go first."""
_ID: Final = re.compile(r"rol-[0-9a-f]{16}")


class ShelfFull(StokerError):
    """What must survive a restart cannot be written."""

    status = 503
    code = "storage_full"


@dataclass(frozen=True, slots=True)
class Pin:
    """The version that serves a model since its last rollout, and the `source` that the configuration named then.

    Where the configuration says something else today, the operator has decided anew, and the pin means nothing.
    """

    configured: str
    version: Version


class Shelf:
    """What is kept of rollouts under one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / "rollouts"
        self._pins = self._directory / "pins.json"

    def pins(self) -> dict[str, Pin]:
        """The pins, by the name of the served model; StartupError for a file that cannot be understood."""
        try:
            document = json.loads(self._pins.read_bytes())
            return {name: Pin(str(one["configured"]), Version(**one["version"])) for name, one in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartupError(
                f"{self._pins}: says which versions serve, and cannot be read ({type(error).__name__}); restore it "
                "from a backup, or delete it to serve what the configuration names"
            ) from None

    def pin(self, model: str, pin: Pin) -> None:
        """Say which version of a model serves from now on; ShelfFull when that cannot be written."""
        self._write(self._pins, {name: asdict(one) for name, one in {**self.pins(), model: pin}.items()})

    def save(self, rollout: Rollout) -> None:
        """Keep a rollout as it stands; ShelfFull when that cannot be written."""
        self._write(self._directory / f"{rollout.id}.json", rollout.saved())
        if rollout.ended:
            self._tidy()

    def load(self) -> list[Rollout]:
        """The rollouts that are kept, oldest first. One that makes no sense any more is left out."""
        found = []
        for path in self._directory.glob("rol-*.json"):
            if not _ID.fullmatch(path.stem):
                continue
            try:
                found.append(Rollout.parse(json.loads(path.read_bytes())))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        found.sort(key=lambda rollout: rollout.created)
        return found[-KEPT:]

    def _tidy(self) -> None:
        """Forget the rollouts that changed longest ago."""
        with suppress(OSError):  # another time, then
            kept = [path for path in self._directory.glob("rol-*.json") if _ID.fullmatch(path.stem)]
            for old in sorted(kept, key=lambda path: (path.stat().st_mtime_ns, path.name))[:-KEPT]:
                old.unlink(missing_ok=True)

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise ShelfFull(
                f"{path} cannot be written ({error.strerror or error}); nothing was changed; make room, "
                "or mend the disk"
            ) from None
