"""The `helm` program: reading a release and its history, upgrading it with whole values, rendering its chart."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from stoker.errors import OperatorError

OLDEST: Final = (3, 12)
READ_S: Final = 60.0
HISTORY: Final = 40
"""Revisions that are kept: a deploy takes three or four."""
PENDING: Final = "pending-"
LAST_WORDS_S: Final = 15.0
"""Seconds in which Helm may write down that it was broken off."""
PARENT_DIED: Final = 1  # PR_SET_PDEATHSIG


class HelmFailed(OperatorError):
    """Helm did not do what it was asked for; the message has its words."""

    code = "helm_failed"


class Disagreement(OperatorError):
    """The release is not in a state in which this can be done."""

    code = "deploy_conflict"


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision in a release's history; `at` in Unix seconds."""

    number: int
    status: str
    at: float
    description: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a release stands: the revision that counts, the last one, and since when that is pending, if it is."""

    deployed: int
    last: int
    pending_since: float | None = None


def standing_of(history: Sequence[Revision]) -> Standing:
    """How a release stands by its history; Disagreement where nothing of it was ever deployed."""
    last = max(history, key=lambda one: one.number)
    deployed = [one.number for one in history if one.status == "deployed"]
    if not deployed:
        raise Disagreement(
            f"no revision of the release is deployed (the last one is {last.status}): install it again by helm first"
        )
    pending = last.at if last.status.startswith(PENDING) else None
    return Standing(max(deployed), last.number, pending)


@dataclass(frozen=True, slots=True)
class Helm:
    """Helm for one release.

    Args:
        release: its name.
        chart: directory, package or address of the chart.
        namespace: None for the one of the kubeconfig's context.
        context: of the kubeconfig; None for its current one.
    """

    release: str
    chart: str
    namespace: str | None = None
    context: str | None = None

    def check(self) -> None:
        """Raise OperatorError unless a helm is there that is new enough."""
        if shutil.which("helm") is None:
            raise OperatorError("there is no `helm` on PATH; install 3.12 or newer: https://helm.sh/docs/intro/install")
        said = self._run(["version", "--template={{.Version}}"], placed=False)
        found = re.search(r"v(\d+)\.(\d+)", said)
        if found and (int(found[1]), int(found[2])) < OLDEST:
            raise OperatorError(f"helm is {found[0]}; 3.12 or newer is needed: https://helm.sh/docs/intro/install")

    def history(self) -> tuple[Revision, ...]:
        """The revisions that are kept, oldest first."""
        told = orjson.loads(self._run(["history", self.release, f"--max={HISTORY}", "--output=json"]))
        return tuple(
            Revision(one["revision"], one["status"], _instant(one["updated"]), one.get("description", ""))
            for one in told
        )

    def values(self, revision: int, *, full: bool = False) -> dict[str, Any]:
        """Values of a revision: those that were given, or `full`, with the chart's defaults under them."""
        more = ["--all"] if full else []
        arguments = ["get", "values", self.release, f"--revision={revision}", "--output=json", *more]
        return orjson.loads(self._run(arguments)) or {}

    def manifest(self, revision: int) -> str:
        """The objects of a revision, as YAML."""
        return self._run(["get", "manifest", self.release, f"--revision={revision}"])

    def upgrade(self, values: Mapping[str, Any], why: str, timeout: float = 300.0) -> None:
        """Upgrade to exactly these values, hooks included; HelmFailed.

        They go in by standard input: a process list shows no value. Helm dies with us, and then says that it was broken
        off, rather than leaving the release pending.
        """
        arguments = [
            *("upgrade", self.release, self.chart, "--reset-values", "--values=-", f"--description={why[:500]}"),
            *(f"--timeout={timeout:.0f}s", f"--history-max={HISTORY}", "--output=json"),
        ]
        self._run(arguments, stdin=orjson.dumps(values), seconds=timeout + READ_S)

    def rendered(self, values: Mapping[str, Any], version: str) -> str:
        """The objects that an upgrade to these values would make, as far as can be said without the cluster.

        `version` is that of its API server: Helm's own guess may be one that the chart does not take.
        """
        arguments = ["template", self.release, self.chart, "--values=-", "--is-upgrade", "--no-hooks"]
        arguments.append(f"--kube-version={version}")
        return self._run(arguments, stdin=orjson.dumps(values))

    def undo(self, revision: int) -> None:
        """Go back to a revision: what frees a release whose upgrade was killed."""
        self._run(["rollback", self.release, str(revision), f"--history-max={HISTORY}"], seconds=6 * READ_S)

    def _run(
        self, arguments: Sequence[str], *, stdin: bytes = b"", seconds: float = READ_S, placed: bool = True
    ) -> str:
        where = [f"--namespace={self.namespace}"] if self.namespace and placed else []
        where += [f"--kube-context={self.context}"] if self.context and placed else []
        try:
            status, said, complaint = _finished(["helm", *arguments, *where], stdin, seconds)
        except FileNotFoundError:
            raise OperatorError("there is no `helm` on PATH; install 3.12 or newer") from None
        except subprocess.TimeoutExpired:
            raise HelmFailed(f"helm {arguments[0]} {self.release} did not end within {seconds:.0f} s") from None
        if status:
            raise HelmFailed(f"helm {arguments[0]} {self.release}: {_words(complaint)}")
        return said


def _finished(command: Sequence[str], stdin: bytes, seconds: float) -> tuple[int, str, str]:
    """A program's exit status, output and complaints; FileNotFoundError, subprocess.TimeoutExpired.

    It writes into files: once a pipe has lost its reader, Helm dies of its first word, before it has written down that
    its upgrade was broken off. For the same reason it gets time to end whenever we cannot wait for it any longer.
    """
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as complaints, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        with subprocess.Popen(
            command,
            stdin=given,
            stdout=told,
            stderr=complaints,
            preexec_fn=_end_with_parent(os.getpid()),  # noqa: PLW1509 - no threads here, and one system call
        ) as process:
            try:
                status = process.wait(seconds)
            except BaseException:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_WORDS_S)
                process.kill()
                raise
        for file in (told, complaints):
            file.seek(0)
        return status, told.read().decode(), complaints.read().decode(errors="replace")


def _end_with_parent(parent: int) -> Any:
    """What a child does before it becomes Helm: it asks for SIGTERM when its parent is no more. Linux only."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)

    def ask() -> None:
        library.prctl(PARENT_DIED, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def _words(text: str) -> str:
    """What Helm said, in one line, without its warnings."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("WARNING", "level="))]
    return " ".join(lines).removeprefix("Error: ")[:1500] or "it failed without a word"


def _instant(text: str) -> float:
    """Unix seconds of a time as Helm writes it, nanoseconds and all."""
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text.strip())
    moment = datetime.fromisoformat(cut)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
