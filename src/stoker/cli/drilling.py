"""The steps of a recovery drill, one after the other; the first that fails ends it. Blocks.

What was restored lies in a directory of its own, locked while the drill runs. It is removed however the drill ends;
after a SIGKILL the next drill removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from pydantic import ValidationError

from stoker import __version__
from stoker.backup.configured import files_of
from stoker.backup.drill import Drill, DrillError, Stage, Step, UnknownModel, stage
from stoker.backup.manifest import Kind, Manifest
from stoker.backup.repository import Repository
from stoker.backup.restore import CONFIG_FILE, restore
from stoker.backup.sealing import Sealer
from stoker.cli.progress import counting, watching
from stoker.cli.temporary import temporary_server
from stoker.cli.words import octets
from stoker.config.loading import explain, read_yaml
from stoker.config.settings import ExactSettings
from stoker.errors import ConfigError, StokerError
from stoker.evaluation.asking import HttpAsker
from stoker.evaluation.report import Report, document
from stoker.evaluation.run import run_evaluation
from stoker.evaluation.sets import EvaluationSet, load_set, smoke_set
from stoker.evaluation.verdict import judge_report
from stoker.models.registry import ModelRegistry

PREFIX: Final = "stoker-drill-"
LOCK: Final = ".lock"
KEPT: Final = ".keep"
RESTORED: Final[frozenset[Kind]] = frozenset({"model", "registry", "configuration", "rollouts"})
"""Neither jobs, which the server would run, nor secrets, which do not belong in a temporary directory."""
LOAD_S: Final = 300.0
"""Default of `timeouts.load`."""
SPARE_S: Final = 120.0
"""Added to it for whatever else a start takes."""
HEALTH_S: Final = 30.0
LISTED: Final = 20
"""Cases in the record, the failed ones first."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be tried out.

    Attributes:
        snapshot: which, as Repository.snapshot takes it.
        the_set: what is asked. None: the set that the snapshot's configuration names, else the shipped one.
        model: the served model that is asked. None: the default one.
        work_dir: where to restore. None: the system's directory for temporary files.
        keep: whether what was restored stays.
        key: passphrase that must open the secrets. None: they are not tried.
    """

    snapshot: str = "latest"
    the_set: EvaluationSet | None = None
    model: str | None = None
    work_dir: Path | None = None
    keep: bool = False
    key: str | None = None


class _Ended(Exception):
    """A step failed; it is among the steps."""


class Drilling:
    """One drill.

    Args:
        place: the repository.
        order: what is to be tried.
        tell: is called with each step when it has ended.
    """

    def __init__(self, place: Repository, order: Order, tell: Callable[[Step], None]) -> None:
        self._place = place
        self._order = order
        self._tell = tell
        self._steps: list[Step] = []
        self._snapshot: str | None = None
        self._evaluation: dict[str, Any] | None = None
        self.room: Path | None = None
        """Where it was restored to, once it was."""

    def plan(self) -> dict[str, object]:
        """What `run` would do, as far as can be said without doing it."""
        order = self._order
        found = self._place.snapshot(order.snapshot)
        manifest = found.good()
        where = order.work_dir or Path(tempfile.gettempdir())
        return {
            "snapshot": found.id,
            "restores": octets(_size(manifest)),
            "into": str(where),
            "free": octets(shutil.disk_usage(where).free),
            "set": order.the_set.name if order.the_set else "the snapshot's rollout.evaluation, else smoke",
        }

    def run(self) -> Drill:
        """Do it all. Failures are in the result.

        Raises:
            SnapshotMissing, UnknownModel: the order names what is not there.
        """
        if self._order.snapshot != "latest":
            self._place.snapshot(self._order.snapshot)
        began = time.time()
        with contextlib.suppress(_Ended), contextlib.ExitStack() as stack:
            self._go(stack)
        return Drill(
            time=began,
            snapshot=self._snapshot,
            host=socket.gethostname()[:255],
            version=__version__,
            steps=tuple(self._steps),
            evaluation=self._evaluation,
        )

    def _go(self, stack: contextlib.ExitStack) -> None:
        with self._step("find") as notes:
            found = self._place.snapshot(self._order.snapshot)
            manifest = found.good()
            self._snapshot = found.id
            notes.extend(_about(found.id, self._place))
            self.room = room = stack.enter_context(_room(self._order.work_dir, keep=self._order.keep))
        target = room / "restored"
        with self._step("restore") as notes, watching("restoring") as progress:
            restore(self._place, found, target, progress, only=RESTORED)
            notes.append(f"{octets(_size(manifest))}, every file has its SHA-256")
            notes.extend(self._open_secrets(manifest))
        with self._step("start") as notes:
            staged, the_set = self._stage(target)
            server = room / "server"
            server.mkdir()
            limit = float(staged.settings.get("timeouts", {}).get("load", LOAD_S)) + SPARE_S
            url = stack.enter_context(temporary_server(staged.settings, server, limit))
            notes.extend(asyncio.run(_check_models(url, manifest)))
            notes.extend([f"left out: {name}" for name in staged.left_out])
        with self._step("evaluate") as notes:
            notes.append(self._evaluate(url, staged.model, the_set))
        with self._step("stop") as notes:
            stack.close()
            notes.append("the server has ended" if self._order.keep else "nothing is left behind")

    def _stage(self, target: Path) -> tuple[Stage, EvaluationSet]:
        """The server's configuration and what it will be asked."""
        restored = _restored_settings(target)
        by_age = sorted(ModelRegistry(target).list(), key=lambda model: model.added)
        staged = stage(restored, [model.ref for model in by_age], target, self._order.model)
        return staged, self._order.the_set or _own_set(restored)

    def _open_secrets(self, manifest: Manifest) -> list[str]:
        """See that the passphrase opens what is sealed; nothing of it is written anywhere."""
        sealed = [entry for entry in manifest.entries if entry.sealed]
        if not sealed:
            return []
        if self._order.key is None:
            return ["secrets were not tried: no --key-file"]
        sealer = Sealer(self._order.key)
        for entry in sealed:
            sealer.unseal(self._place.get_object(entry.stored))
        return ["the passphrase opens the secrets"]

    def _evaluate(self, url: str, model: str, the_set: EvaluationSet) -> str:
        """Ask the set; what came of it in a sentence. Raises DrillError when the set is not passed."""
        report = _ask(url, model, the_set)
        verdict = judge_report(report, the_set.thresholds)
        self._evaluation = document(report, verdict, listed=LISTED)
        told = f"{model} passed {report.tally.passed} of {report.tally.cases} cases of {the_set.name}"
        if not verdict.passed:
            raise DrillError(f"{told}: {verdict.reason}")
        return told

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[list[str]]:
        """A step and its notes; a failure that can be told in words ends the drill."""
        began = time.monotonic()
        notes: list[str] = []
        try:
            yield notes
        except UnknownModel:
            raise
        except (StokerError, OSError) as error:
            self._ended(Step(name, time.monotonic() - began, ok=False, note=_words(error)))
            raise _Ended from error
        self._ended(Step(name, time.monotonic() - began, ok=True, note="; ".join(notes)))

    def _ended(self, step: Step) -> None:
        self._steps.append(step)
        self._tell(step)


def _about(snapshot: str, place: Repository) -> list[str]:
    """Which snapshot it is, and whether newer ones are damaged."""
    newer = [one.id for one in place.snapshots() if one.manifest is None and one.id > snapshot]
    return [snapshot, *(f"DAMAGED and newer: {name}" for name in newer)]


def _restored_settings(target: Path) -> dict[str, Any]:
    """The restored configuration file; raises ConfigError, DrillError when a server would stumble over it, or when it
    names a file outside, which belongs to this host and not to the snapshot.
    """
    file = target / CONFIG_FILE
    restored = read_yaml(file) if file.exists() else {}
    try:
        settings = ExactSettings(**restored)
    except ValidationError as error:
        raise ConfigError(explain(error, file)) from None
    for path in files_of(settings):
        if not path.resolve().is_relative_to(target.resolve()):
            raise DrillError(f"the restored configuration names {path}, which is not in the snapshot: make a new one")
    return restored


def _own_set(restored: Mapping[str, Any]) -> EvaluationSet:
    """The set that the restored configuration names, else the one that ships."""
    rollout = restored.get("rollout")
    named = rollout.get("evaluation") if isinstance(rollout, dict) else None
    return load_set(Path(named)) if named else smoke_set()


def _ask(url: str, model: str, the_set: EvaluationSet) -> Report:
    async def asked(count: Callable[[], None]) -> Report:
        async with HttpAsker(url, model, timeout=the_set.timeout) as asker:
            return await run_evaluation(the_set, asker, model=model, on_result=lambda _: count())

    with counting("asking", 0, len(the_set.cases)) as bar:
        done = iter(range(1, len(the_set.cases) + 1))
        return asyncio.run(asked(lambda: bar.update(next(done), len(the_set.cases))))


async def _check_models(url: str, manifest: Manifest) -> list[str]:
    """What the server says it runs; raises DrillError when that is not from the snapshot, or not ready."""
    held = {entry.sha256 for entry in manifest.entries if entry.kind == "model"}
    health = await _health(url)
    notes = []
    for model in health["models"]:
        digest = str(model["digest"]).removeprefix("sha256:")
        if digest not in held:
            raise DrillError(f"the server runs {model['name']} with SHA-256 {digest[:12]}, which the snapshot has not")
        if not model["ready"]:
            raise DrillError(f"the model {model['name']} is not ready: `/health` says {health['status']}")
        notes.append(f"{model['name']} ({digest[:12]}) makes tokens")
    return notes


async def _health(url: str) -> dict[str, Any]:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HEALTH_S)) as session,
            session.get(f"{url}/health") as response,
        ):
            document: dict[str, Any] = orjson.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
        raise DrillError(f"the server does not tell its health: {error or type(error).__name__}") from None
    return document


@contextlib.contextmanager
def _room(work_dir: Path | None, *, keep: bool) -> Iterator[Path]:
    """An empty directory for one drill. Those that killed drills have left are removed first."""
    parent = work_dir or Path(tempfile.gettempdir())
    _clear_abandoned(parent)
    room = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    descriptor = os.open(room / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if keep:
            (room / KEPT).touch()
        yield room
    finally:
        if not keep:
            shutil.rmtree(room, ignore_errors=True)
        os.close(descriptor)


def _clear_abandoned(parent: Path) -> None:
    """Remove what drills left that were killed: nobody holds their lock, and nobody asked to keep them."""
    for room in parent.glob(f"{PREFIX}*"):
        if room.is_symlink() or (room / KEPT).exists():
            continue
        try:
            descriptor = os.open(room / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # just being made or removed, or not ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(room, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _size(manifest: Manifest) -> int:
    """Bytes that a drill restores."""
    return sum({entry.sha256: entry.size for entry in manifest.entries if entry.kind in RESTORED}.values())


def _words(error: StokerError | OSError) -> str:
    return error.message if isinstance(error, StokerError) else str(error)
