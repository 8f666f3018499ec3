"""One engine child process and the single task that owns its life: start, ready, watch, restart, stop.

Only the owner task (`EngineProcess.run`) starts or ends the child. Everybody else reads its state, which may be stale
and therefore never gates anything that matters, or asks for a kill, which the owner's `wait` notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from stoker.config import RestartConfig
from stoker.engine.canary import Canary, CanaryTimes
from stoker.engine.client import EngineClient, out_of_files
from stoker.engine.output import Output
from stoker.errors import EngineDied, EngineError
from stoker.observability.logging import get_logger

READY_POLL_S = 0.02
WATCH_INTERVAL_S = 0.5
SAMPLE_INTERVAL_S = 2.0
OBITUARY_WAIT_S = 0.2  # after a broken connection, for the news of the child's death to arrive
SHORT_SPINS = {"GOMP_SPINCOUNT": "1000"}
"""llama.cpp's threads wait for one another by spinning. On cores of their own that costs nothing; where something else
wants a core, a thread that spins for long keeps the one that it waits for from running, and speed falls to a tenth.
Two threads on two cores beside one busy process, tokens/s at 1 and 8 clients: 10000 spins 15 and 43, 1000 spins 35 and
88, 300 spins 50 and 110; alone all three 120 to 150 and 215 to 250, while 100 spins lose a fifth at one client."""
DOUBTFUL = 2 / 3
"""Share of the stall timeout after which a silent engine gets no more requests."""
STOP_GRACE_S = 3.0
SOCKET_NAME_BYTES = 15


class EngineState(StrEnum):
    """Where an engine process is in its life."""

    STARTING = "starting"
    READY = "ready"
    CHECKING = "checking"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class Engine(ABC):
    """What the pool needs of an engine, whether a child process or a server by URL.

    Args:
        name: shown in logs and health, for example `smollm2/0`.
        on_change: called after each change of state, on the event loop.

    `tokens_held` are those in the KV cache of requests that are being worked on, as of a moment ago; None when the
    engine does not tell.
    """

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self.state = EngineState.STARTING
        self.pid: int | None = None
        self.restarts = 0
        self.stalls = 0
        self.load_seconds = 0.0
        self.tokens_held: int | None = None
        self.last_error: str | None = None
        self.canary = Canary("", None)
        self._away_since: float | None = None
        self._begun = time.monotonic()
        self.props: Mapping[str, Any] = {}
        self.client: EngineClient | None = None
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._log = get_logger("engine").bind(engine=name)

    @abstractmethod
    async def run(self) -> None:
        """Own the engine's life until `stop`."""

    @property
    def away_s(self) -> float:
        """Seconds for which it has not been ready after it had been, or had failed; 0 while it is, or first loads."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    @property
    def starting_s(self) -> float:
        """Seconds since its present start, while it is not ready; 0 when it is."""
        return 0.0 if self.state is EngineState.READY else time.monotonic() - self._begun

    def stop(self) -> None:
        """Ask the owner to end."""
        self._stopping.set()

    def _enter(self, state: EngineState) -> None:
        if state is EngineState.READY:
            self._away_since = None
        elif state is EngineState.RESTARTING and self._away_since is None:
            self._away_since = time.monotonic()
        self.state = state
        self._on_change()

    def note_success(self) -> None:  # noqa: B027 - by default there is nothing to forget
        """A request was answered in full."""

    @abstractmethod
    def note_broken(self) -> None:
        """A request's connection broke: no more requests until the engine is known to live."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start an engine: `command` makes its argument list from the socket's path."""

    command: Callable[[Path], Sequence[str]]
    load_timeout: float
    stall_timeout: float
    restart: RestartConfig = field(default_factory=RestartConfig)
    canary: CanaryTimes | None = None


def backoff(failures: int, restart: RestartConfig) -> float:
    """Seconds to wait before the start that follows `failures` (>= 1) failures in a row; doubles up to the maximum."""
    return float(min(restart.backoff_max, restart.backoff * 2 ** min(failures - 1, 32)))


def socket_name(engine: str, incarnation: int) -> str:
    """A file name of its own for each life of an engine, short because the whole path of a Unix socket has to be.

    `SOCKET_NAME_BYTES` long, whatever the model is called (unix(7): 107 bytes for the path).
    """
    return f"{hashlib.blake2s(engine.encode(), digest_size=4).hexdigest()}{incarnation % 100:02}.sock"


class EngineProcess(Engine):
    """An engine child and its supervisor.

    Args:
        name: shown in logs and health, for example `smollm2/0`.
        launch: the command and the times that bound its life.
        sockets: an existing directory, private to this gateway, for the socket files.
        on_change: called after each change of state, on the event loop.
    """

    def __init__(self, name: str, launch: Launch, sockets: Path, on_change: Callable[[], None]) -> None:
        super().__init__(name, on_change)
        self._launch = launch
        self._sockets = sockets
        self.canary = Canary(name.rsplit("/", 1)[0], launch.canary)
        self._incarnation = 0
        self._failures = 0  # in a row, of any kind: the pause before the next start
        self._false_starts = 0  # in a row, without ever being ready: giving up
        self._suspected = asyncio.Event()
        self._child: asyncio.subprocess.Process | None = None
        self._output = Output(self._log)

    async def run(self) -> None:
        """Own the child until `stop` is called or the engine is given up. Never raises for the child's faults."""
        while not self._stopping.is_set():
            try:
                reason = await self._live_once()
            except Exception as error:  # noqa: BLE001 - the owner must outlive every surprise, or nobody restarts the child
                self._log.exception("engine supervision failed")
                reason = f"supervision failed: {error!r}"
            if self._stopping.is_set():
                break
            self._failures += 1
            self.restarts += 1
            self.last_error = reason
            if self._false_starts >= self._launch.restart.give_up_after:
                self._log.error("engine given up", reason=reason, starts=self._false_starts, log=self._output.latest(8))
                self._enter(EngineState.FAILED)
                return
            pause = backoff(self._failures, self._launch.restart)
            self._log.warning("engine restarts", reason=reason, failures=self._failures, pause_s=round(pause, 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
        self._enter(EngineState.STOPPED)

    def stop(self) -> None:
        """Ask the owner to end the child; the `run` task finishes soon after."""
        super().stop()
        if self._child and self._child.stdin:
            self._child.stdin.close()

    def note_success(self) -> None:
        """A request was answered in full: earlier failures are forgotten."""
        self._failures = 0

    def note_broken(self) -> None:
        """A request's connection broke: the owner looks at once whether the child still lives."""
        if self.state is EngineState.READY:
            self.state = EngineState.CHECKING  # nobody is sent to a dying engine in the meantime
        self._suspected.set()

    async def _live_once(self) -> str:
        """One incarnation, from start to end; returns why it ended."""
        self._incarnation += 1
        self._false_starts += 1  # until it is ready
        socket = self._sockets / socket_name(self.name, self._incarnation)
        started = self._begun = time.monotonic()
        try:
            child = await asyncio.create_subprocess_exec(
                *self._launch.command(socket),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**SHORT_SPINS, **os.environ},
                start_new_session=True,  # Ctrl-C in a terminal must reach the gateway only
            )
        except OSError as error:
            if out_of_files(error):
                self._false_starts -= 1  # no fault of the engine's
            return f"cannot be started: {error}"
        self._child, self.pid = child, child.pid
        self.client = EngineClient.local(socket)
        reader = asyncio.create_task(self._output.follow(child.stdout))
        try:
            return await self._supervise(child, self.client, started)
        finally:
            client, self.client, self.pid = self.client, None, None
            self._enter(EngineState.RESTARTING)
            await self._end(child)
            await asyncio.wait({reader}, timeout=OBITUARY_WAIT_S)
            reader.cancel()  # somebody who left the child's group may hold its output open for ever
            await client.close()
            socket.unlink(missing_ok=True)

    async def _supervise(self, child: asyncio.subprocess.Process, client: EngineClient, started: float) -> str:
        """Wait for readiness, then for the end; returns the reason of the end."""
        ended = asyncio.create_task(child.wait())
        try:
            problem = await self._await_ready(client, ended) or await self._await_token(client, ended, started)
            if problem:
                return problem
            self.load_seconds = time.monotonic() - started
            self._false_starts = 0
            self._log.info("engine ready", pid=child.pid, load_s=round(self.load_seconds, 2))
            self._enter(EngineState.READY)
            return await self._watch(client, ended)
        finally:
            ended.cancel()

    async def _await_ready(self, client: EngineClient, ended: asyncio.Task[int]) -> str | None:
        """Poll the child's health until it answers; returns a reason if it ends or takes too long."""
        limit = time.monotonic() + self._launch.load_timeout
        while time.monotonic() < limit and not self._stopping.is_set():
            if ended.done():
                return self._obituary(ended.result())
            if await client.healthy():
                with contextlib.suppress(EngineDied, EngineError):
                    self.props = await client.props()
                    return None
            await asyncio.sleep(READY_POLL_S)
        return f"not ready after {self._launch.load_timeout:.0f} s"

    async def _await_token(self, client: EngineClient, ended: asyncio.Task[int], started: float) -> str | None:
        """Have a first token made, which also fetches into memory what no request should wait for; else the reason."""
        if self.canary.times is None:
            return None
        patience = max(self.canary.times.patience_s, self._launch.load_timeout - (time.monotonic() - started))
        stopping = asyncio.create_task(self._stopping.wait())
        singing = asyncio.create_task(self.canary.sing(client, patience))
        try:
            await asyncio.wait({singing, ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if singing.done() and singing.result() is None:
                await asyncio.wait({ended}, timeout=OBITUARY_WAIT_S)  # the connection breaks before the child is gone
            if ended.done():
                return self._obituary(ended.result())
            if not singing.done():
                return "stopped"
            if singing.result():
                return None
            return f"loaded, but made no token within {patience:.0f} s"
        finally:
            singing.cancel()
            stopping.cancel()

    async def _watch(self, client: EngineClient, ended: asyncio.Task[int]) -> str:
        """Wait for the child's end, a stall, or a request to stop."""
        ready_at = time.monotonic()
        stopping = asyncio.create_task(self._stopping.wait())
        suspected = asyncio.create_task(self._suspected.wait())
        sampling = asyncio.create_task(self._sample(client))
        try:
            while True:
                await asyncio.wait(
                    {ended, stopping, suspected}, timeout=WATCH_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
                )
                if suspected.done():
                    await asyncio.wait({ended}, timeout=OBITUARY_WAIT_S)
                    if not ended.done() and not await client.healthy():
                        return "its connections broke and it does not answer, killed"
                    self._suspected.clear()
                    suspected = asyncio.create_task(self._suspected.wait())
                    self._enter(EngineState.READY if not ended.done() else EngineState.RESTARTING)
                if ended.done():
                    return self._obituary(ended.result())
                if stopping.done():
                    return "stopped"
                stuck = await self._stuck(client, {ended, stopping, suspected})
                if stuck:
                    self.stalls += 1
                    return stuck
                if time.monotonic() - ready_at > self._launch.restart.healthy_after:
                    self._failures = 0
        finally:
            for task in (stopping, suspected, sampling):
                task.cancel()

    async def _stuck(self, client: EngineClient, news: set[asyncio.Task[Any]]) -> str | None:
        """Why the child counts as stuck, or None; in doubt it is asked, until its time is over or there is `news`."""
        limit = self._launch.stall_timeout
        silence = client.silence()
        if client.doubted or silence > limit / 2:
            asked = client.computes(max(0.0, limit - silence))
            doubt = "busy but silent, asked whether it still computes"
            if await self._answer(asked, limit * DOUBTFUL - silence, news, doubt) is False:
                return f"no sign of life for {limit:g} s, killed"
        elif self.canary.times is not None and self.canary.due(client):
            patience = self.canary.times.patience_s
            doubt = f"idle, and made no token within {patience:g} s"
            if await self._answer(self.canary.sing(client, 2 * patience), patience, news, doubt) is False:
                return f"made no token within {2 * patience:g} s although it had nothing else to do, killed"
        silence = client.silence()
        return f"busy but silent for {silence:.1f} s, killed" if silence > limit else None

    async def _answer(
        self, question: Coroutine[Any, Any, bool | None], patience_s: float, news: set[asyncio.Task[Any]], doubt: str
    ) -> bool | None:
        """What the child answers; None if there is news before. After `patience_s` it gets no requests until then."""
        began = time.monotonic()
        asking = asyncio.create_task(question)
        either = {asking, *news}
        await asyncio.wait(either, timeout=max(0.0, patience_s), return_when=asyncio.FIRST_COMPLETED)
        works = self.client is not None and self.client.last_sign > began  # for others who came first
        doubted = not works and not any(task.done() for task in either)
        before = self.last_error
        if doubted:
            self.last_error = doubt
            self._enter(EngineState.CHECKING)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self.last_error = before
        if not asking.done():
            asking.cancel()
            return None
        answer = asking.result()
        if doubted and answer is not False:
            self._enter(EngineState.READY)
        return answer

    async def _sample(self, client: EngineClient) -> None:
        """Ask now and then how much of its KV cache the child uses."""
        while True:
            self.tokens_held = await client.tokens_held()
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        """Make sure that the child and its own children are gone: politely when stopping, at once otherwise."""
        if child.stdin:
            child.stdin.close()
        if self._stopping.is_set() and child.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), STOP_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the child leads a group of its own; a wrapper's children are in it
        await child.wait()

    def _obituary(self, code: int) -> str:
        """Why the child ended, in words, with its own last words."""
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                hint = " (the kernel's out-of-memory killer sends this too)" if name == "SIGKILL" else ""
                return f"killed by {name}{hint}"
        return f"exited with status {code}: {self._output.last_words()}"
