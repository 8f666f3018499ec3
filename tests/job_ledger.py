"""Starts and kills processes that work on one job log, and keeps account of what was acknowledged to them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from stoker.store.jobs import JobLog

CHILD = Path(__file__).with_name("job_child.py")
FIRST_WORD_WITHIN_S = 60.0


@dataclass
class Ledger:
    """What all processes together were told."""

    submitted: set[str] = field(default_factory=set)
    finished: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """One line of a child's."""
        what, job_id, word = line.split()
        if what == "submitted":
            self.submitted.add(job_id)
        elif what == "finished":
            if job_id in self.finished:
                self.twice.append(job_id)
            self.finished[job_id] = word

    async def faults(self, log: JobLog) -> list[str]:
        """Acknowledged jobs that are gone, results that are not the acknowledged ones, jobs finished twice."""
        faults = [f"finished twice: {job_id}" for job_id in self.twice]
        for job_id in self.submitted | set(self.finished):
            job = await log.get(job_id)
            if job is None:
                faults.append(f"lost: {job_id}")
            elif job_id in self.finished and (job.state, job.result) != ("succeeded", self.finished[job_id].encode()):
                faults.append(f"another result: {job_id} is {job.state}")
        return faults

    async def finish_all(self, log: JobLog) -> None:
        """Do what the dead have left."""
        while (counts := await log.counts())["queued"] + counts["running"]:
            await log.wait_work(1)
            for one in await log.claim("heir", 30, 100):
                if await log.finish(one.job.id, one.token, "succeeded", result=b"heir"):
                    self.note(f"finished {one.job.id} heir")


class Child:
    """One process.

    Args:
        ledger: what it is told is noted there.
        arguments: see `job_child.py`.
    """

    def __init__(self, ledger: Ledger, *arguments: str) -> None:
        self._ledger = ledger
        self.lines = 0
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.kill()

    def wait_lines(self, number: int) -> None:
        """Wait until it has said so much."""
        limit = time.monotonic() + FIRST_WORD_WITHIN_S
        while self.lines < number:
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise AssertionError("the child said nothing, or ended")
            time.sleep(0.001)

    def wait(self, seconds: float) -> None:
        """Let it live so long; AssertionError when it ends by itself."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise AssertionError("the child ended by itself")
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL, and note what it had said."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self._ledger.note(line)
                self.lines += 1
