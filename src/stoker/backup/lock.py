"""The lock under which a repository is pruned: one holder among all hosts, and a dead one holds nobody up for long.

An object store can create an object only if it is new, and has no other way to decide between two. So each holder makes
an object with the next number, and who made the highest one has the lock until it is released or expires. The highest
one is never deleted: a holder that was away for long sees that its number is no longer the highest. Hosts' clocks must
agree within half of LEASE_S.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stoker.errors import OperatorError
from stoker.models.names import printable
from stoker.objects.store import ObjectExists, ObjectMissing, ObjectStore

LEASE_S: Final = 600.0
"""A living holder renews it every minute or so, see `prune`; a dead one holds backups and prunes up for so long."""
PREFIX: Final = "prune.lock/"
_KEY: Final = re.compile(re.escape(PREFIX) + r"(\d{8})")


class PruneRunning(OperatorError):
    """Another process prunes the repository."""

    code = "prune_running"


class PruneLost(OperatorError):
    """The lock expired while its holder was away, and another process has it now."""

    code = "prune_lost"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the lock, or had it: `since` and `expires` in Unix seconds."""

    number: int
    owner: str
    since: float
    expires: float


class PruneLock:
    """The lock, held. Whoever deletes must call `renew` before each batch.

    Args:
        objects: the repository's store.
        clock: Unix seconds.
    """

    def __init__(self, objects: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._objects = objects
        self._clock = clock
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._since = clock()
        self._number = self._take()

    def renew(self) -> None:
        """Hold it for another LEASE_S; PruneLost when that is too late. Costs a listing and a write."""
        if self._highest() != self._number:
            raise PruneLost(
                f"{self._objects.url}: this prune was away for so long that another one took over; "
                "nothing is harmed, run it again"
            )
        self._objects.put(_key(self._number), self._words(self._clock() + LEASE_S))

    def release(self) -> None:
        """Let go. Does nothing when another has it already."""
        if self._highest() == self._number:
            self._objects.put(_key(self._number), self._words(0.0))

    def _take(self) -> int:
        # One look decides who holds it and which number is next: a second one might see a holder that is new.
        old = _numbers(self._objects)
        held = _holder(self._objects, max(old, default=0), self._clock())
        if held is not None:
            raise PruneRunning(
                f"{self._objects.url}: is being pruned by {held.owner}; wait for it, "
                f"or for {max(1, round((held.expires - self._clock()) / 60))} min if it died"
            )
        number = max(old, default=0) + 1
        try:
            self._objects.put(_key(number), self._words(self._clock() + LEASE_S), only_new=True)
        except ObjectExists:
            raise self._too_late() from None
        if self._highest() != number:
            # While this one looked, others came and went, and tidied the number away that it took.
            self._objects.delete(_key(number))
            raise self._too_late()
        for one in old:
            self._objects.delete(_key(one))
        return number

    def _too_late(self) -> PruneRunning:
        return PruneRunning(f"{self._objects.url}: another prune began at the same moment; wait for it")

    def _highest(self) -> int:
        return max(_numbers(self._objects), default=0)

    def _words(self, expires: float) -> bytes:
        return json.dumps({"owner": self._owner, "since": self._since, "expires": expires}).encode()


def holder(objects: ObjectStore, now: float) -> Holder | None:
    """Who holds the lock at `now` (Unix seconds), if anybody does."""
    return _holder(objects, max(_numbers(objects), default=0), now)


def _holder(objects: ObjectStore, number: int, now: float) -> Holder | None:
    if not number:
        return None
    try:
        words = json.loads(objects.get(_key(number)))
        held = Holder(number, printable(str(words["owner"]), 300), float(words["since"]), float(words["expires"]))
    except ObjectMissing:
        # A newer holder has just tidied up.
        return _holder(objects, max(_numbers(objects), default=0), now)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # garbage holds nothing; the next holder takes the number above
    # A lock from the far future is a clock's mistake, not a longer lease.
    return held if now < held.expires <= now + 2 * LEASE_S else None


def _numbers(objects: ObjectStore) -> frozenset[int]:
    keys = (_KEY.fullmatch(item.key) for item in objects.list(PREFIX))
    return frozenset(int(key[1]) for key in keys if key is not None)


def _key(number: int) -> str:
    return f"{PREFIX}{number:08}"
