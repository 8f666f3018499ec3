"""What a recovery drill changes in the restored configuration, and what it writes down. Pure; the act is a verb's.

A drill restores a snapshot into an empty directory, starts a server of it and asks it questions. That server must touch
nothing outside its directory, so only the settings that say how models answer are taken over (`KEPT`): a setting that
is not on the list, and one that is invented later, is left at its default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stoker.errors import ConfigError, OperatorError

KEPT: Final = frozenset(
    {
        "cache",
        "default_model",
        "engine",
        "generation",
        "guard",
        "health",
        "limits",
        "models",
        "plan",
        "queue",
        "restart",
        "routing",
        "timeouts",
    }
)
FORMAT: Final = 1
LONGEST_NOTE: Final = 2000
"""Characters of a step's note in the record."""


class DrillError(OperatorError):
    """The drill cannot go on; the message says why."""

    code = "drill_failed"


class UnknownModel(ConfigError):
    """The drill was told to ask a model that the snapshot does not serve: no failure of the snapshot's."""

    code = "model_not_found"


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a drill: its name, how many seconds it took, whether it went well, and what there is to say."""

    name: str
    seconds: float
    ok: bool
    note: str


@dataclass(frozen=True, slots=True)
class Drill:
    """How a drill went. `time`: when it began, in Unix seconds; `evaluation`: what came of the questions, if asked."""

    time: float
    snapshot: str | None
    host: str
    version: str
    steps: tuple[Step, ...]
    evaluation: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether every step went well, and there was one."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    @property
    def failed(self) -> Step | None:
        """The step that ended it."""
        return next((step for step in self.steps if not step.ok), None)

    def document(self) -> dict[str, Any]:
        """As it is kept in the repository and printed by --json."""
        failed = self.failed
        return {
            "format": FORMAT,
            "time": self.time,
            "snapshot": self.snapshot,
            "ok": self.ok,
            "failed_step": None if failed is None else failed.name,
            "reason": None if failed is None else failed.note[:LONGEST_NOTE],
            "host": self.host,
            "version": self.version,
            "seconds": {step.name: round(step.seconds, 3) for step in self.steps},
            "steps": [{**asdict(step), "note": step.note[:LONGEST_NOTE]} for step in self.steps],
            "evaluation": self.evaluation,
        }


@dataclass(frozen=True, slots=True)
class Stage:
    """The configuration of the drill's server, the model that is evaluated, and what was left out of it."""

    settings: Mapping[str, Any]
    model: str
    left_out: tuple[str, ...]


def stage(restored: Mapping[str, Any], stored: Sequence[str], data_dir: Path, wanted: str | None = None) -> Stage:
    """The restored configuration as a drill's server runs it: on loopback, without keys, with nothing outside.

    Args:
        restored: the restored configuration file's content.
        stored: the `name@version` that the snapshot holds, the newest last.
        data_dir: where it was restored to.
        wanted: the served model to evaluate. Default: the default model.

    Raises:
        DrillError: there is no model to serve, or one that is not in the snapshot.
        UnknownModel: the `wanted` one is not served.
    """
    kept = {name: value for name, value in restored.items() if name in KEPT}
    models = [dict(model) for model in kept.get("models", ())]
    files = [model for model in models if model.get("source") is not None]
    # A program that a repository names is not run because a timer says so: whoever writes there must not rule here.
    commands = [model["name"] for model in files if model.pop("command", None)]
    by_url = [f"{model['name']} (by URL)" for model in models if model.get("source") is None]
    left_out = (
        *by_url,
        *(f"the program that {name} is served with; the usual one serves it here" for name in commands),
    )
    if not models:
        files = _newest(stored)
    if not files:
        raise DrillError(f"the snapshot serves no model of its own, only {', '.join(by_url)}: nothing can be tried")
    _refuse_others(files, stored)
    names = [model["name"] for model in files]
    default = kept.get("default_model")
    settings = {
        **kept,
        "models": files,
        "default_model": default if default in names else names[0],
        "routing": _routing(kept.get("routing", {}), names),
        "host": "127.0.0.1",
        "port": 0,
        "data_dir": str(data_dir),
        "anonymous": True,
    }
    model = wanted or settings["default_model"]
    if model not in names:
        raise UnknownModel(
            f"{model}: the snapshot serves no model of that name from a file; there is {', '.join(names)}"
        )
    return Stage(settings, model, left_out)


def _newest(stored: Sequence[str]) -> list[dict[str, Any]]:
    """The stored model that was added last, where the configuration names none."""
    if not stored:
        raise DrillError("the snapshot holds no model: add one with `stoker models add`, then make a new snapshot")
    return [{"name": stored[-1].partition("@")[0], "source": stored[-1]}]


def _refuse_others(models: Sequence[Mapping[str, Any]], stored: Collection[str]) -> None:
    """A model from elsewhere would be fetched there, and the drill would prove nothing."""
    names = {ref.partition("@")[0] for ref in stored}
    for model in models:
        source = model["source"]
        if source not in stored and source not in names:
            raise DrillError(
                f"the model {model['name']} is served from {source}, which is not in the snapshot; a restored server "
                "would miss it: make a new snapshot with `stoker backup create`"
            )


def _routing(routing: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Without the experts whose model is not served in a drill."""
    experts = [dict(expert) for expert in routing.get("experts", ()) if expert.get("model") in names]
    there = {*names, *(expert.get("name") for expert in experts)}
    for expert in experts:
        if expert.get("fallback") not in there:
            expert.pop("fallback", None)
    return {**routing, "experts": experts}
