"""A release and a cluster in memory, for tests of `stoker deploy`: they react as Helm and Kubernetes do."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from stoker.rollout.cluster import Deploy, Pod, Slot
from stoker.rollout.cluster_helm import HelmFailed, Revision

DEFAULTS: dict[str, Any] = {
    "active": "blue",
    "slots": {
        "blue": {"enabled": True, "replicas": None, "image": {}, "model": {}},
        "green": {"enabled": False, "replicas": None, "image": {}, "model": {}},
    },
    "replicas": 1,
    "image": {"repository": "chat", "tag": "1", "digest": ""},
    "model": {"name": "chat", "delivery": "image"},
    "gate": {"enabled": False, "timeoutSeconds": 900},
    "autoscaling": {"enabled": False},
    "rollout": {"engine": "deployments"},
    "config": {},
}


class Killed(BaseException):
    """The program was ended just now."""


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values over defaults, as Helm has it."""
    result = deepcopy(dict(below))
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else deepcopy(value)
    return result


class World:
    """Clock, release and cluster together.

    Pods of a slot that is on are ready after `load` seconds. Images in `bad_gate` fail the gate, those in `broken`
    never start, those in `slow` and `failing` serve badly. `kill_at` ends the program before or after an upgrade.
    """

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.load = 20.0
        self.revisions: list[tuple[Revision, dict[str, Any]]] = []
        self.started: dict[str, float] = {}
        self.images: dict[str, str] = {}
        self.bad_gate: set[str] = set()
        self.broken: set[str] = set()
        self.slow: set[str] = set()
        self.failing: set[str] = set()
        self.dead: set[str] = set()
        self.kill_at: tuple[str, int] | None = None
        self.upgrades = 0
        self.active_by_time: list[str] = []
        self.unreadable = False
        self._apply({})
        self._record({}, "deployed")

    # -- clock

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.active_by_time.append(self.active)
        assert self.ready(self.active), f"nobody answers: {self.active} serves and is not ready"

    # -- Helm

    def history(self) -> tuple[Revision, ...]:
        return tuple(revision for revision, _ in self.revisions)

    def values(self, revision: int, *, full: bool = False) -> dict[str, Any]:
        given = next(values for one, values in self.revisions if one.number == revision)
        return merged(DEFAULTS, given) if full else deepcopy(given)

    def upgrade(self, values: Mapping[str, Any], why: str, timeout: float = 300.0) -> None:  # noqa: ARG002 - as Helm
        self.upgrades += 1
        if self.kill_at == ("before", self.upgrades):
            raise Killed
        values = deepcopy(dict(values))
        full = merged(DEFAULTS, values)
        switching = full["active"] != self.active
        if switching and full["gate"]["enabled"] and self.image_of(full, full["active"]) in self.bad_gate:
            self._record(values, "failed")
            raise HelmFailed("helm upgrade chat: pre-upgrade hooks failed: job failed")
        if self.kill_at == ("pending", self.upgrades):
            self._record(values, "pending-upgrade")
            raise Killed
        if switching and not self.ready(full["active"]):
            raise HelmFailed("helm upgrade chat: nobody is ready there")
        if self.kill_at == ("half", self.upgrades):
            self._apply(values)
            self._record(values, "failed")
            raise Killed
        self._apply(values)
        self._record(values, "deployed")
        if self.kill_at == ("after", self.upgrades):
            raise Killed

    def undo(self, revision: int) -> None:
        values = self.values(revision)
        self._apply(values)
        self._record(values, "deployed")

    def _record(self, values: dict[str, Any], status: str) -> None:
        if status == "deployed":
            self.revisions = [
                (
                    Revision(one.number, "superseded", one.at)
                    if one.status in {"deployed", "pending-upgrade"}
                    else one,
                    of,
                )
                for one, of in self.revisions
            ]
        self.revisions.append((Revision(len(self.revisions) + 1, status, self.now), values))

    def _apply(self, values: dict[str, Any]) -> None:
        full = merged(DEFAULTS, values)
        self.active = full["active"]
        self.wanted = {}
        for name in ("blue", "green"):
            slot = full["slots"][name]
            count = slot["replicas"] if slot["replicas"] is not None else full["replicas"]
            self.wanted[name] = count if slot["enabled"] else 0
            image = self.image_of(full, name)
            if not slot["enabled"]:
                self.started.pop(name, None)
            elif name not in self.started or self.images.get(name) != image:
                self.started[name] = self.now if self.revisions else self.now - 1000
            self.images[name] = image

    @staticmethod
    def image_of(full: Mapping[str, Any], slot: str) -> str:
        image = {**full["image"], **full["slots"][slot]["image"]}
        return f"{image['repository']}:{image['tag']}"

    # -- the cluster

    def ready(self, slot: str) -> bool:
        image = self.images[slot]
        up = slot in self.started and self.now - self.started[slot] >= self.load
        return up and image not in self.broken and image not in self.dead

    def slots(self) -> dict[str, Slot]:
        found = {}
        for name, wanted in self.wanted.items():
            ready = self.ready(name)
            stuck = self.images[name] in self.broken and self.now - self.started.get(name, self.now) > 10
            trouble = "CrashLoopBackOff (stoker: Error, status 1)" if stuck else ""
            pods = tuple(Pod(f"{name}-{number}", ready, trouble, stuck, 9464) for number in range(wanted))
            found[name] = Slot(name, wanted, wanted if ready else 0, settled=True, pods=pods)
        return found

    def serving(self) -> str:
        return self.active

    def metrics(self, pod: str, port: int) -> str:  # noqa: ARG002 - as the cluster
        """As if each pod had answered ten requests a second since it started."""
        from stoker.errors import OperatorError

        if self.unreadable:
            raise OperatorError("the cluster refused metrics")
        slot = pod.partition("-")[0]
        count = round(10 * (self.now - self.started[slot]))
        return metrics_text(
            count,
            failed=count // 5 if self.images[slot] in self.failing else 0,
            seconds=1.9 if self.images[slot] in self.slow else 0.09,
        )

    def gate_log(self) -> str:
        return "  england  none of 'london' is in it\nfailed  pass rate 8.3 %, at least 40 % wanted"

    @property
    def deploy(self) -> Deploy:
        """The deploy in the values that count."""
        number = max(one.number for one in self.history() if one.status == "deployed")
        found = Deploy.parse(self.values(number).get("deploy"))
        assert found is not None
        return found


def metrics_text(count: int, *, failed: int = 0, seconds: float = 0.09) -> str:
    """Metrics of a server that has answered so many requests."""
    bounds = ("0.05", "0.1", "0.5", "1.0", "2.0", "+Inf")
    first = "gen_ai_server_time_to_first_token_seconds_bucket"
    labels = 'gen_ai_operation_name="chat",gen_ai_request_model="chat"'
    lines = [
        "# HELP stoker_requests_total Requests that ended.",
        f'stoker_requests_total{{route="/query",model="chat",status="200",cache="miss"}} {count - failed}',
        f'stoker_requests_total{{route="/query",model="chat",status="503",cache="miss"}} {failed}',
        'stoker_requests_total{route="/query",model="chat",status="499",cache="miss"} 7',
        f'gen_ai_server_request_duration_seconds_count{{{labels},error_type=""}} {count - failed}',
        f'gen_ai_server_request_duration_seconds_count{{{labels},error_type="engine_died"}} {failed}',
        f'{first}{{{labels},cache="hit",le="+Inf"}} 1000000',
    ]
    lines += [
        f'{first}{{{labels},cache="miss",le="{bound}"}} {count if float(bound) >= seconds else 0}' for bound in bounds
    ]
    return "\n".join(lines) + "\n"


class Heard:
    """A view that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []

    def step(self, deploy: Deploy, note: str) -> None:  # noqa: ARG002 - as a view
        self.steps.append(deploy.step)

    def waiting(self, note: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)
