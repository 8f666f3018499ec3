"""Rollouts of one server: at most one at a time, each on a journey of its own; what was and what is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from secrets import token_hex
from typing import Any, Final

from stoker.engine.pool import ModelPool
from stoker.errors import NotFound, NotReady, RequestError, StokerError
from stoker.evaluation.sets import BadSet, load_set, parse_set, smoke_set
from stoker.observability.logging import get_logger
from stoker.observability.snapshot import RolloutFigures
from stoker.rollout.engines import Candidate, Means
from stoker.rollout.gate import checked
from stoker.rollout.journey import Journey
from stoker.rollout.record import (
    OUTCOMES,
    DoesNotFit,
    Options,
    Order,
    Phase,
    Rollout,
    RolloutConflict,
    Step,
    Version,
    resumed,
)
from stoker.rollout.shelf import KEPT, Pin, ShelfFull

LOOK_S: Final = 0.1
CANCEL_AGAIN_S: Final = 1.0
ANSWER_S: Final = 10.0
"""Seconds for which an act is waited for before it is answered with how things stand."""
PROMOTABLE: Final = frozenset[Phase]({"waiting", "canary", "baking"})
REVERSIBLE: Final = frozenset[Phase]({"canary", "baking"})
ABORTABLE: Final = frozenset[Phase]({"loading", "warming", "evaluating", "waiting", "canary"})
_log = get_logger("rollout")


class Conductor:
    """Starts rollouts, and is asked about them.

    Args:
        means: what they work with.
    """

    def __init__(self, means: Means) -> None:
        self._means = means
        self._engines = means.engines
        self._shelf = means.shelf
        self._config = means.config
        self._known: dict[str, Rollout] = {}
        self._journey: Journey | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._news = asyncio.Event()
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))

    # -- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what a server before this one left under way."""
        for rollout in await asyncio.to_thread(self._shelf.load):
            self._known[rollout.id] = rollout
            if rollout.ended or self._busy:
                continue
            try:
                now = resumed(rollout, self._engines.serving(rollout.model))
            except StokerError as error:  # the model is not configured any more
                now = rollout.changed(phase="failed", reason=error.message, warm=False)
            try:
                await asyncio.to_thread(self._shelf.save, now)
            except ShelfFull as error:  # no reason to serve nobody
                _log.error("a rollout was not written down", rollout=now.id, reason=error.message)
            self._note(now)
            if not now.ended:
                self._set_out(now, None)

    async def close(self) -> None:
        """Leave off; what is under way is taken up at the next start."""
        self._closed = True
        while self._task is not None and not self._task.done():
            self._task.cancel()  # again and again: once may have been taken for the word to roll back
            await asyncio.wait({self._task}, timeout=CANCEL_AGAIN_S)

    async def replaces(self, model: str, pool: ModelPool) -> bool:
        """Whether another version takes the place of engines that do not start; returns when that is known."""
        journey, task = self._journey, self._task
        if journey is not None and task is not None and journey.rollout.model == model:
            while not task.done() and self._engines.pools[model] is pool:
                await asyncio.wait({task}, timeout=LOOK_S)
        return self._engines.pools[model] is not pool

    # -- what is asked of it ---------------------------------------------------------------------------------------

    async def start(self, order: Order, by: str | None) -> Rollout:
        """Begin a rollout.

        Raises:
            RolloutConflict: one is under way, or that version serves already.
            ModelNotFound: there is no such version, or no such model is served.
            RequestError: what is ordered makes no sense.
            DoesNotFit: both versions do not fit at once, and no gap is accepted.
            NotReady: the server is stopping.
        """
        if self._task is not None and self.current() is None:
            await asyncio.wait({self._task}, timeout=ANSWER_S)  # the last one's engines are being cleared away
        if self._starting.locked() or self._busy:
            raise RolloutConflict(self._under_way())
        async with self._starting:
            intent = await self._intent(order)
            if intent.refusal is not None and not order.accept_gap:
                raise intent.refusal
            if self._closed:
                raise NotReady("the server is stopping; start the rollout when it runs again")
            rollout = Rollout(
                id=f"rol-{token_hex(8)}",
                model=intent.model,
                before=intent.before,
                after=intent.after,
                options=intent.options,
                by=by,
                steps=(Step("loading", time.time()),),
            )
            # From now on a restart serves what serves now, whatever is the newest by then.
            pin = Pin(self._engines.configured(intent.model), intent.before)
            await asyncio.to_thread(self._shelf.pin, intent.model, pin)
            await asyncio.to_thread(self._shelf.save, rollout)
            self._note(rollout)
            self._set_out(rollout, intent.candidate)
        return rollout

    async def plan(self, order: Order) -> dict[str, Any]:
        """What `start` would do; it raises the same, but for DoesNotFit, which is told."""
        intent = await self._intent(order)
        candidate, options = intent.candidate, intent.options
        return {
            "model": intent.model,
            "before": asdict(intent.before),
            "after": asdict(intent.after),
            "fits": candidate is not None,
            "needed_bytes": candidate.needed_bytes if candidate else None,
            "granted_bytes": candidate.granted_bytes if candidate else None,
            "message": intent.refusal.message if intent.refusal else "",
            "steps": list(steps_of(options)),
        }

    def get(self, rollout_id: str) -> Rollout | None:
        """A rollout by its id."""
        return self._known.get(rollout_id)

    def history(self) -> Sequence[Rollout]:
        """The rollouts that are remembered, newest first."""
        return sorted(self._known.values(), key=lambda rollout: rollout.created, reverse=True)

    def current(self) -> Rollout | None:
        """The one that is under way."""
        return self._journey.rollout if self._journey is not None and not self._journey.rollout.ended else None

    def figures(self) -> RolloutFigures | None:
        """Which rollout is under way, and for how long it has been in its phase."""
        rollout = self.current()
        if rollout is None:
            return None
        since = rollout.steps[-1].at if rollout.steps else rollout.created
        seconds = max(time.time() - since, 0.0)
        return RolloutFigures(
            model=rollout.model, version=rollout.after.version, phase=rollout.phase, phase_seconds=seconds
        )

    async def promote(self, rollout_id: str, by: str | None) -> Rollout:
        """Go on from a phase that waits: to the switch, or from baking to its end; RolloutConflict, NotFound."""
        journey = self._under(rollout_id, PROMOTABLE, "there is nothing to promote")
        _log.info("rollout promoted", rollout=rollout_id, by=by)
        journey.promote()
        return await self._left(self._told(rollout_id))

    async def rollback(self, rollout_id: str, by: str | None) -> Rollout:
        """Have the old version serve everybody again, at once where it is warm; RolloutConflict, NotFound."""
        rollout = self._told(rollout_id)
        if rollout.phase == "succeeded":
            raise RolloutConflict(
                f"{rollout.before.ref} was retired; start a rollout of it: `stoker rollout start {rollout.before.ref} "
                f"--serves {rollout.model}`"
            )
        otherwise = (
            "the old version is being retired already"
            if rollout.switched
            else "nobody is served by the new version: `abort` ends the rollout"
        )
        journey = self._under(rollout_id, REVERSIBLE, otherwise)
        journey.undo("rolled_back", f"rolled back by {by or 'an administrator'}")
        return await self._left(rollout)

    async def abort(self, rollout_id: str, by: str | None) -> Rollout:
        """End a rollout before the switch; RolloutConflict, NotFound."""
        rollout = self._told(rollout_id)
        otherwise = "the switch was made" + (": `rollback` takes it back" if rollout.phase == "baking" else "")
        journey = self._under(rollout_id, ABORTABLE, otherwise)
        journey.undo("aborted", f"aborted by {by or 'an administrator'}")
        return await self._left(rollout)

    async def changed(self, rollout_id: str, seen: int, seconds: float) -> Rollout:
        """A rollout when its revision is another than `seen`, or after so many seconds; NotFound."""
        limit = time.monotonic() + seconds
        while (rollout := self._told(rollout_id)).revision == seen and not rollout.ended:
            if (left := limit - time.monotonic()) <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)
        return rollout

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def _under_way(self) -> str:
        rollout = self._journey.rollout if self._journey else None
        if rollout is None:
            return "another rollout is being started"
        if rollout.ended:
            return f"rollout {rollout.id} has ended, and its engines are being cleared away; try again in a moment"
        return f"rollout {rollout.id} of {rollout.after.ref} is under way ({rollout.phase}); one at a time"

    def _told(self, rollout_id: str) -> Rollout:
        rollout = self._known.get(rollout_id)
        if rollout is None:
            raise NotFound(f"there is no rollout {rollout_id[:64]!r}; `stoker rollout history` lists them")
        return rollout

    def _under(self, rollout_id: str, phases: Collection[Phase], otherwise: str) -> Journey:
        """The journey of a rollout in one of the phases; else RolloutConflict with what can be done."""
        rollout, journey = self._told(rollout_id), self._journey
        if rollout.ended:
            raise RolloutConflict(f"rollout {rollout.id} has ended: {rollout.phase.replace('_', ' ')}")
        if journey is None or journey.rollout.id != rollout_id or rollout.phase not in phases:
            raise RolloutConflict(f"rollout {rollout.id} is {rollout.phase}: {otherwise}")
        return journey

    async def _left(self, before: Rollout) -> Rollout:
        """The rollout once it is in another phase, or as it is after a while."""
        limit, now = time.monotonic() + ANSWER_S, before
        while now.phase == before.phase and (left := limit - time.monotonic()) > 0:
            now = await self.changed(now.id, now.revision, left)
        return now

    def _set_out(self, rollout: Rollout, candidate: Candidate | None) -> None:
        self._journey = Journey(rollout, self._means, self._note)
        self._task = self._journey.start(candidate)

    def _note(self, rollout: Rollout) -> None:
        """A rollout is as it is now."""
        before = self._known.get(rollout.id)
        self._known[rollout.id] = rollout
        if rollout.ended and (before is None or not before.ended):
            self.outcomes[rollout.phase] += 1
            while len(self._known) > KEPT:
                del self._known[min(self._known.values(), key=lambda one: one.created).id]
        self._news.set()
        self._news = asyncio.Event()

    # -- what an order means ---------------------------------------------------------------------------------------

    async def _intent(self, order: Order) -> Intent:
        """What is to be done, with nothing left open."""
        model = order.serves or order.model.partition("@")[0]
        before = self._engines.serving(model)
        after = await self._engines.find(model, order.model)
        if before.digest == after.digest:
            raise RolloutConflict(f"{after.ref} is the very file that serves {model} already")
        candidate, refusal = None, None
        try:
            candidate = await self._engines.prepare(model, after.ref)
        except DoesNotFit as error:
            refusal = error
            await self._engines.fits_instead(model, after.ref)
        options = await self._options(order, gap=refusal is not None)
        return Intent(model, before, after, options, candidate, refusal)

    async def _options(self, order: Order, *, gap: bool) -> Options:
        config = self._config
        canary = config.canary if order.canary is None else order.canary
        if gap and order.promotion == "manual":
            raise RequestError(
                "to wait for a word would leave the model away, for there is no room for both", param="promotion"
            )
        if gap and order.canary:
            raise RequestError("a canary needs both versions at once, for which there is no room", param="canary")
        return Options(
            evaluation=None if order.skip_evaluation else await self._evaluation(order),
            promotion="auto" if gap else order.promotion or config.promotion,
            canary=0.0 if gap else canary,
            canary_time=config.canary_time if order.canary_time is None else order.canary_time,
            bake=config.bake if order.bake is None else order.bake,
            gap=gap,
        )

    async def _evaluation(self, order: Order) -> Mapping[str, Any]:
        """The document of the set that is to be passed; RequestError for one that makes no sense."""
        path = self._config.evaluation
        try:
            if order.evaluation is not None:
                chosen = await asyncio.to_thread(parse_set, dict(order.evaluation))
            else:
                chosen = await asyncio.to_thread(smoke_set if path is None else partial(load_set, path))
        except BadSet as error:
            raise RequestError(error.message, param="evaluation") from None
        return await asyncio.to_thread(checked, chosen, self._engines.pools)


@dataclass(frozen=True, slots=True)
class Intent:
    """What an order comes to: `refusal` says why both versions do not fit at once."""

    model: str
    before: Version
    after: Version
    options: Options
    candidate: Candidate | None
    refusal: DoesNotFit | None


def steps_of(options: Options) -> Iterator[str]:
    """What a rollout with these options does, in words and in order."""
    if options.gap:
        yield "stop the running version: the model is away until the new one answers"
    yield "load and warm the new version" + ("" if options.gap else " beside the running one")
    if options.evaluation is not None:
        yield f"evaluate it by {options.evaluation.get('name') or 'the given set'}"
    if options.promotion == "manual":
        yield "wait for `stoker rollout promote`"
    if options.canary:
        yield f"give it to {options.canary:.0%} of callers for {options.canary_time:g} s"
    yield "give it to everybody in one step"
    warm = "is loaded again" if options.gap else "stays warm and comes back"
    yield f"watch it for {options.bake:g} s; the old version {warm} if it is worse"
    if not options.gap:
        yield "retire the old version"
