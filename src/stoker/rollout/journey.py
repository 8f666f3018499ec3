"""One rollout from its beginning to its end: each phase's act, and the way back.

The order of writing is what makes it survive a crash: a pin goes to disk before the switch that it stands for, a phase
when it begins. A server that died starts again with the pinned version, and `record.resumed` says how to go on.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from stoker.engine.pool import ModelPool
from stoker.errors import StokerError
from stoker.observability.logging import get_logger
from stoker.rollout.engines import Candidate, Means
from stoker.rollout.gate import Gate
from stoker.rollout.record import Outcome, Phase, Rollout, RolloutConflict, Version
from stoker.rollout.shelf import Pin, ShelfFull
from stoker.rollout.trying import warm
from stoker.rollout.watch import WINDOW_S, Level, worse
from stoker.wayfinder import Trial

LOOK_S: Final = 0.5
BRIEFLY_S: Final = 0.1
QUIET_S: Final = 1.0
"""A version that served is stopped when it had nothing to do for so long: a request may be on its way to it."""
STARTS: Final = 2
"""Ends of an engine while it loads after which a new version is given up."""
SILENT_S: Final = 5.0
"""Seconds for which a version that serves may have no engine ready, before the old one comes back."""
_log = get_logger("rollout")


class Undone(Exception):
    """The rollout must be taken back."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class Journey:
    """Carries out one rollout.

    Args:
        rollout: as it stands.
        means: what it works with.
        changed: called after each change.
    """

    def __init__(self, rollout: Rollout, means: Means, changed: Callable[[Rollout], None]) -> None:
        self.rollout = rollout
        self._engines = means.engines
        self._shelf = means.shelf
        self._config = means.config
        self._watch = means.watch
        self._trials = means.trials
        self._changed = changed
        self._new: ModelPool | None = None
        self._old: ModelPool | None = None
        self._baseline = Level()
        self._promoted = asyncio.Event()
        self._ending: Undone | None = None
        self._leaving = False
        self._task: asyncio.Task[None] | None = None

    # -- what others ask of it -------------------------------------------------------------------------------------

    def start(self, candidate: Candidate | None = None) -> asyncio.Task[None]:
        """Begin with a candidate, or go on after a restart without one."""
        self._task = asyncio.create_task(self._run(candidate), name=self.rollout.id)
        return self._task

    def promote(self) -> None:
        """Go on at once from a phase that waits."""
        self._promoted.set()

    def undo(self, outcome: Outcome, reason: str) -> None:
        """Take it back, whatever is under way; RolloutConflict when that happens already."""
        if self._leaving or self._ending is not None or self._task is None:
            raise RolloutConflict(f"rollout {self.rollout.id} is being taken back already")
        self._ending = Undone(outcome, reason)
        self._task.cancel()

    # -- the way ---------------------------------------------------------------------------------------------------

    async def _run(self, candidate: Candidate | None) -> None:
        try:
            if self.rollout.switched:
                await self._rejoin()
            else:
                await self._try(candidate)
                await self._switch()
            await self._bake()
            await self._retire()
        except asyncio.CancelledError:
            if self._ending is None:
                raise  # the server stops; what is written down is taken up again
            await self._back(self._ending)
        except Undone as end:
            await self._back(end)
        except StokerError as error:
            await self._back(Undone("failed", error.message))
        except Exception as error:  # noqa: BLE001 - whatever it is, users must get the version that works
            _log.error("a rollout broke", rollout=self.rollout.id, reason=traceback.format_exc(limit=-5))
            await self._back(Undone("failed", f"unexpected {type(error).__name__}: {error}"))

    async def _try(self, candidate: Candidate | None) -> None:
        """Everything before the new version serves everybody."""
        rollout, options = self.rollout, self.rollout.options
        gate = await asyncio.to_thread(Gate, options.evaluation, self._engines.pools, self._tell)
        if options.gap:
            await gate.ask_before(self._engines.pools[rollout.model])
            await self._make_room()
        if candidate is None:
            candidate = await self._engines.prepare(rollout.model, rollout.after.ref)
        pool = candidate.pool
        await self._load(pool)
        await self._enter("warming")
        await warm(pool)
        if not rollout.passed:
            await self._evaluate(gate, pool)
        if options.promotion == "manual" and not rollout.promoted:
            await self._enter("waiting", "waits for `stoker rollout promote`")
            await self._promoted.wait()
        if options.canary > 0:
            await self._canary(pool)

    async def _load(self, pool: ModelPool) -> None:
        """Start the new version's engines, and return when one can answer."""
        self._new = self._engines.aside[self._name_of(self.rollout.after)] = pool
        await self._put(self.rollout.changed(warm=True))
        pool.start()
        while not pool.ready:
            if _does_not_start(pool):
                raise StokerError(f"the new version does not start: {pool.trouble()}")
            await asyncio.sleep(BRIEFLY_S)

    async def _evaluate(self, gate: Gate, pool: ModelPool) -> None:
        """Have the new version pass its evaluation; Undone when it does not."""
        await self._enter("evaluating")
        if not self.rollout.options.gap:
            await gate.ask_before(self._engines.pools[self.rollout.model])
        report = await gate.ask_after(pool)
        await self._put(self.rollout.changed(evaluation=report))
        if not self.rollout.passed:
            verdict = report["verdict"] if report else {}
            raise Undone("refused", f"the evaluation was not passed: {verdict.get('reason', 'it has no verdict')}")

    async def _canary(self, pool: ModelPool) -> None:
        """Give the new version to a share of callers, and look how they fare."""
        model, options = self.rollout.model, self.rollout.options
        until, note = time.time() + options.canary_time, f"{options.canary:.0%} of callers get the new version"
        await self._enter("canary", note, until=until, promoted=True)
        began = time.monotonic()
        self._trials[model] = Trial(pool, options.canary, self.rollout.id)
        await self._look(pool, until, lambda: self._level(self.rollout.before, began), began)

    async def _switch(self) -> None:
        """Give all new requests to the new version."""
        rollout, pools, aside = self.rollout, self._engines.pools, self._engines.aside
        if self._new is None:
            raise StokerError("there is no new version to switch to")
        self._baseline = self._level(rollout.before, 0.0)
        await _surely(self._pin, rollout.after)
        until, warm_old = time.time() + rollout.options.bake, not rollout.options.gap
        await self._enter("baking", "serves everybody", until=until, warm=warm_old, promoted=True)
        old, pools[rollout.model] = pools[rollout.model], self._new
        aside.pop(self._name_of(rollout.after), None)
        self._trials.pop(rollout.model, None)
        if warm_old:
            self._old = aside[self._name_of(rollout.before)] = old
        _log.info("switched", model=rollout.model, version=rollout.after.version, rollout=rollout.id)

    async def _rejoin(self) -> None:
        """After a restart in which the new version serves already: have the old one warm again, if there is room."""
        rollout = self.rollout
        self._new = self._engines.pools[rollout.model]
        if rollout.phase == "retiring" or rollout.options.gap:
            return
        try:
            candidate = await self._engines.prepare(rollout.model, rollout.before.ref)
        except StokerError as error:
            _log.warning("the old version is not kept warm", rollout=rollout.id, reason=error.message)
            await self._put(rollout.changed(warm=False))
            return
        self._old = self._engines.aside[self._name_of(rollout.before)] = candidate.pool
        candidate.pool.start()
        await self._put(rollout.changed(warm=True))

    async def _bake(self) -> None:
        """Look how the new version fares, and have the old one ready to come back."""
        if self.rollout.phase == "baking":
            pool = self._engines.pools[self.rollout.model]
            await self._look(pool, self.rollout.until or 0.0, lambda: self._baseline, time.monotonic())

    async def _retire(self) -> None:
        """Let the old version finish what it has, and stop it."""
        if self.rollout.phase == "baking":
            await self._enter("retiring", "the old version finishes its requests")
        if self._old is not None:
            await self._finish(self._old)
            self._engines.aside.pop(self._name_of(self.rollout.before), None)
        await self._enter("succeeded", f"{self.rollout.after.ref} serves", warm=False)

    async def _look(self, pool: ModelPool, until: float, before: Callable[[], Level], began: float) -> None:
        """Compare the versions until that moment (Unix seconds) or a word; Undone when the new one must go."""
        ready_at: float | None = None
        while ((left := until - time.time()) > 0 and not self._promoted.is_set()) or not pool.ready:
            now = time.monotonic()
            ready_at = now if pool.ready else ready_at
            old, new = before(), self._level(self.rollout.after, began)
            reason = worse(old, new, self._config)
            if (ready_at is None and _does_not_start(pool)) or (ready_at is not None and now - ready_at > SILENT_S):
                reason = f"the new version does not answer: {pool.trouble()}"
            if reason is not None and not self._stranded(pool):
                raise Undone("rolled_back", reason)
            self._tell({"before": _figures(old), "after": _figures(new), "seconds_left": round(max(left, 0.0), 1)})
            await asyncio.sleep(min(LOOK_S, max(left, BRIEFLY_S)))

    def _stranded(self, new: ModelPool) -> bool:
        """Whether a new version that answers is all there is: the old one ended, or is still being loaded."""
        return new.ready and self._old is not None and not self._old.ready

    # -- the way back ----------------------------------------------------------------------------------------------

    async def _back(self, end: Undone) -> None:
        """Have the old version serve everybody, and clear the new one away."""
        self._leaving = True
        rollout, aside = self.rollout, self._engines.aside
        if rollout.phase == "retiring" and self._ending is None:  # what breaks now concerns the old version alone
            if self._old is not None:
                await self._finish(self._old)
                aside.pop(self._name_of(rollout.before), None)
            await self._enter("succeeded", f"{rollout.after.ref} serves; {end.reason}", warm=False)
            return
        outcome: Phase = "rolled_back" if rollout.switched else end.outcome
        reason, new = end.reason, self._new
        self._trials.pop(rollout.model, None)
        try:
            await _surely(self._pin, rollout.before)
        except ShelfFull as error:
            reason += f"; a restart would bring the new version back: {error.message}"
        if self._old is not None:
            self._engines.pools[rollout.model] = self._old
            aside.pop(self._name_of(rollout.before), None)
        elif self._engines.pools[rollout.model] is new or self._engines.pools[rollout.model].stopped:
            reason += await self._bring_back()
            new = None
        if new is not None:
            aside[self._name_of(rollout.after)] = new
        _log.warning("a rollout was taken back", rollout=rollout.id, outcome=outcome, reason=reason)
        await self._enter(outcome, reason, warm=False)
        if new is not None:
            await self._finish(new)
        aside.pop(self._name_of(rollout.after), None)

    async def _bring_back(self) -> str:
        """Load the old version again, for which there was no room; the new one, should that fail. What went wrong."""
        rollout = self.rollout
        if self._new is not None:
            self._new.refuse_new(_replaced(rollout.model))
            await self._finish(self._new)
            self._engines.aside.pop(self._name_of(rollout.after), None)
        wrong = ""
        for version in (rollout.before, rollout.after):
            try:
                candidate = await self._engines.prepare(rollout.model, version.ref)
            except StokerError as error:
                wrong += f"; {version.ref} cannot be loaded again: {error.message}"
                continue
            candidate.pool.start()
            self._engines.pools[rollout.model] = candidate.pool
            break
        return wrong

    async def _make_room(self) -> None:
        """Stop the old version before the new one is loaded."""
        old = self._engines.pools[self.rollout.model]
        old.refuse_new(_replaced(self.rollout.model))
        await self._finish(old)

    async def _finish(self, pool: ModelPool) -> None:
        """Stop a version's engines when its requests have ended or taken too long, or when none of them answers any."""
        limit, quiet, silent = time.monotonic() + self._config.drain, 0.0, 0.0
        while quiet < QUIET_S and silent < SILENT_S and time.monotonic() < limit:
            await asyncio.sleep(BRIEFLY_S)
            quiet = 0.0 if pool.running or len(pool.line) else quiet + BRIEFLY_S
            silent = 0.0 if pool.ready else silent + BRIEFLY_S
        pool.refuse_new(_replaced(self.rollout.model))
        await pool.stop()

    # -- writing down ----------------------------------------------------------------------------------------------

    def _name_of(self, version: Version) -> str:
        return f"{self.rollout.model}@{version.version}"

    def _level(self, version: Version, since: float) -> Level:
        return self._watch.level(version.digest, max(since, time.monotonic() - WINDOW_S))

    def _pin(self, version: Version) -> None:
        self._shelf.pin(self.rollout.model, Pin(self._engines.configured(self.rollout.model), version))

    async def _enter(self, phase: Phase, note: str = "", **changes: Any) -> None:
        await self._put(self.rollout.at(phase, note, **changes))
        self._promoted.clear()  # whoever said the word until now saw the phase before

    async def _put(self, rollout: Rollout) -> None:
        """Write the rollout down, then let it be seen.

        From the switch on a full disk must not keep anything from happening: what matters then, the pin, is written.
        """
        self.rollout = rollout
        try:
            await _surely(self._shelf.save, rollout)
        except ShelfFull as error:
            if not (rollout.switched or rollout.ended):
                raise
            _log.error("a rollout was not written down", rollout=rollout.id, reason=error.message)
        self._changed(rollout)

    def _tell(self, progress: Mapping[str, Any]) -> None:
        """Let progress be seen; it is not worth writing down."""
        self.rollout = self.rollout.changed(progress=progress)
        self._changed(self.rollout)


async def _surely(write: Callable[..., None], *given: Any) -> None:
    """Write in a thread, and when cancelled wait for its end all the same: what is written next must come after it."""
    writing = asyncio.ensure_future(asyncio.to_thread(write, *given))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise


def _does_not_start(pool: ModelPool) -> bool:
    return pool.failed or any(engine.restarts >= STARTS for engine in pool.engines)


def _figures(level: Level) -> dict[str, Any]:
    return {"requests": level.requests, "error_rate": level.error_rate, "ttft_p95": level.ttft_p95}


def _replaced(model: str) -> str:
    return f"the version of {model} is being changed; try again in a moment"
