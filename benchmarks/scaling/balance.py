"""Who gets the next request. A balancer knows what it has sent itself and what has come back, and nothing else.

Where several stand side by side, as the proxies of an ingress or the nodes' kube-proxies do, each sees its own share.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
from collections.abc import Callable

from scaling.replica import Replica

POINTS = 40  # of each replica on the ring


class Balancer:
    """Replicas that it may send to, and how many requests it has at each of them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.members: list[Replica] = []
        self.load: dict[int, int] = {}
        self.total = 0
        self._place: dict[int, int] = {}

    def join(self, replica: Replica) -> None:
        """A replica is ready."""
        self._place[replica.number] = len(self.members)
        self.members.append(replica)
        self.load[replica.number] = 0

    def leave(self, replica: Replica) -> None:
        """A replica is no longer ready; what it still has is not counted any more."""
        place = self._place.pop(replica.number, None)
        if place is None:
            return
        last = self.members.pop()
        if last is not replica:
            self.members[place] = last
            self._place[last.number] = place
        self.total -= self.load.pop(replica.number)

    def choose(self, beginning: int) -> Replica:
        """The replica for a request whose prompt begins so; there is at least one member."""
        raise NotImplementedError

    def began(self, replica: Replica) -> None:
        """A request was sent."""
        if replica.number in self.load:
            self.load[replica.number] += 1
            self.total += 1

    def ended(self, replica: Replica) -> None:
        """A request came back, in whatever way."""
        if self.load.get(replica.number):
            self.load[replica.number] -= 1
            self.total -= 1


class Chance(Balancer):
    """Any of them, as kube-proxy with iptables does."""

    def choose(self, beginning: int) -> Replica:  # noqa: ARG002 - not every balancer looks at it
        return self.members[int(self.chance.random() * len(self.members))]


class RoundRobin(Balancer):
    """One after the other."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._next = 0

    def choose(self, beginning: int) -> Replica:  # noqa: ARG002
        self._next = (self._next + 1) % len(self.members)
        return self.members[self._next - 1]


class TwoChoices(Balancer):
    """Of two at random the one with fewer requests."""

    def choose(self, beginning: int) -> Replica:  # noqa: ARG002
        number = len(self.members)
        one = self.members[int(self.chance.random() * number)]
        other = self.members[int(self.chance.random() * number)]
        return one if self.load[one.number] <= self.load[other.number] else other


class LeastLoaded(Balancer):
    """The one with the fewest requests; of several one at random. Replicas stand in buckets by their load, so that a
    choice takes the same time for a thousand of them.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._buckets: list[list[Replica]] = [[]]
        self._spot: dict[int, int] = {}
        self._least = 0

    def join(self, replica: Replica) -> None:
        super().join(replica)
        self._put(replica, 0)

    def leave(self, replica: Replica) -> None:
        if replica.number in self.load:
            self._take(replica, self.load[replica.number])
        super().leave(replica)

    def choose(self, beginning: int) -> Replica:  # noqa: ARG002
        while not self._buckets[self._least]:
            self._least += 1
        bucket = self._buckets[self._least]
        return bucket[int(self.chance.random() * len(bucket))]

    def began(self, replica: Replica) -> None:
        self._move(replica, super().began)

    def ended(self, replica: Replica) -> None:
        self._move(replica, super().ended)

    def _move(self, replica: Replica, change: Callable[[Replica], None]) -> None:
        before = self.load.get(replica.number)
        change(replica)
        after = self.load.get(replica.number)
        if before is not None and after is not None and before != after:
            self._take(replica, before)
            self._put(replica, after)

    def _put(self, replica: Replica, load: int) -> None:
        while len(self._buckets) <= load:
            self._buckets.append([])
        self._spot[replica.number] = len(self._buckets[load])
        self._buckets[load].append(replica)
        self._least = min(self._least, load)

    def _take(self, replica: Replica, load: int) -> None:
        bucket, spot = self._buckets[load], self._spot.pop(replica.number)
        last = bucket.pop()
        if last is not replica:
            bucket[spot] = last
            self._spot[last.number] = spot


class PrefixAffinity(Balancer):
    """The replica where a prompt's beginning has its place on a ring, unless it has more than `most` times the average
    load: then the next one on the ring (Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", 2018;
    HAProxy's `hash-balance-factor`, Envoy's `hash_balance_factor`).
    """

    most = 1.25

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._ring: list[tuple[int, Replica]] = []
        self._points: list[int] = []

    def join(self, replica: Replica) -> None:
        super().join(replica)
        self._ring += [(_point(f"{replica.number}/{point}"), replica) for point in range(POINTS)]
        self._points = []

    def leave(self, replica: Replica) -> None:
        super().leave(replica)
        self._ring = [entry for entry in self._ring if entry[1] is not replica]
        self._points = []

    def choose(self, beginning: int) -> Replica:
        if not self._points:
            self._ring.sort(key=lambda entry: entry[0])
            self._points = [point for point, _ in self._ring]
        allowed = math.ceil(self.most * (self.total + 1) / len(self.members))
        start = bisect.bisect(self._points, _point(str(beginning)))
        for step in range(len(self._ring)):
            replica = self._ring[(start + step) % len(self._ring)][1]
            if self.load[replica.number] < allowed:
                return replica
        raise AssertionError  # not all can be above the average


def _point(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


BALANCERS: dict[str, type[Balancer]] = {
    "random": Chance,
    "round robin": RoundRobin,
    "two choices": TwoChoices,
    "least loaded": LeastLoaded,
    "prefix affinity": PrefixAffinity,
}
