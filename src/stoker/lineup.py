"""Which models a server runs, from which files, and with which plan: decided before anything is loaded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stoker.config import ModelConfig, PlanConfig, Settings
from stoker.engine.host import Host, read_host
from stoker.engine.launch import offload_devices
from stoker.engine.memory import MIB
from stoker.engine.plan import Plan, divide_memory, grant_bytes, make_plan
from stoker.errors import ConfigError
from stoker.models.gguf import GgufHeader, read_header
from stoker.models.partial import Progress
from stoker.models.registry import ModelRegistry
from stoker.models.resolve import open_model
from stoker.rollout.shelf import Pin, Shelf
from stoker.types import ModelIdentity


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A configured model, found and planned. One by URL has neither path nor plan.

    `ref` is what its file was found by, a stored `name@version` or a path.
    """

    config: ModelConfig
    identity: ModelIdentity
    path: Path | None = None
    plan: Plan | None = None
    ref: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    config: ModelConfig
    identity: ModelIdentity
    path: Path
    header: GgufHeader
    ref: str


def line_up(settings: Settings, progress: Progress | None = None, host: Host | None = None) -> tuple[PlannedModel, ...]:
    """Find and plan every configured model. Blocks on disk and network: not for an event loop.

    Args:
        settings: with at least one model.
        progress: told of downloads and hashing.
        host: what the host grants; read from it when None.

    Raises:
        ConfigError: there is no model.
        ModelFileError, SourceError: a file is bad, or cannot be had.
        PlanError: the models do not fit; with numbers.
    """
    if not settings.models:
        raise ConfigError("no model to serve: name one (`stoker serve MODEL`) or list `models` in stoker.yaml")
    pins = Shelf(settings.data_dir).pins()
    found = [
        _find(config, source_of(config, pins), settings.data_dir, progress)
        for config in settings.models
        if config.source is not None
    ]
    host = host or read_host()
    plans = plan_together(found, settings.plan, host, gpu_offload=bool(host.gpus) and bool(offload_devices()))
    files = {file.config.name: _planned(file, plan) for file, plan in plans}
    return tuple(
        files.get(config.name) or PlannedModel(config, upstream_identity(config)) for config in settings.models
    )


def plan_together(
    found: Sequence[_Found], common: PlanConfig, host: Host, *, gpu_offload: bool
) -> list[tuple[_Found, Plan]]:
    """A plan for each model file, the memory divided between them; what a model sets goes before `common`."""
    wishes = [merge_wishes(common, file.config.plan) for file in found]
    shares: Sequence[int | None] = [wish.memory_mib for wish in wishes]
    if len(found) > 1:
        asked = [(file.header, file.config.replicas, wish.memory_mib) for file, wish in zip(found, wishes, strict=True)]
        shares = divide_memory(host, asked)
    return [
        (
            file,
            make_plan(
                file.header,
                host,
                wish.model_copy(update={"memory_mib": share}),
                replicas=file.config.replicas,
                gpu_offload_supported=gpu_offload,
            ),
        )
        for file, wish, share in zip(found, wishes, shares, strict=True)
    ]


def merge_wishes(common: PlanConfig, own: PlanConfig) -> PlanConfig:
    """The plan choices of one model: its own where it has any, else those for all models."""
    return common.model_copy(update=own.model_dump(exclude_none=True))


def upstream_identity(config: ModelConfig) -> ModelIdentity:
    """A model by URL is known by its address, for its file is not here to be hashed."""
    digest = hashlib.sha256(f"{config.upstream}#{config.upstream_model or config.name}".encode()).hexdigest()
    return ModelIdentity(config.name, "upstream", digest, int(time.time()))


def source_of(config: ModelConfig, pins: Mapping[str, Pin]) -> str:
    """Where a model's file comes from: as configured, unless a rollout has switched to another version since."""
    pin = pins.get(config.name)
    return pin.version.ref if pin is not None and pin.configured == config.source else config.source or ""


def plan_beside(
    settings: Settings, config: ModelConfig, ref: str, serving: Plan, *, untouched: int, host: Host | None = None
) -> PlannedModel:
    """Find another version of a served model, and plan it with as many slots of as much context as the serving one.

    Blocks, as `line_up` does.

    Args:
        settings: the server's.
        config: the model's.
        ref: the other version.
        serving: how the running version runs.
        untouched: bytes that running engines will take and have not so far.
        host: what the host grants; read from it when None.

    Raises:
        ModelFileError, SourceError: there is no such version, or its file is bad.
        PlanError: it does not fit beside what runs; with numbers.
    """
    found = _find(config, ref, settings.data_dir, None)
    host = host or read_host()
    room = grant_bytes(replace(host, memory_room=max(host.memory_bytes - untouched, 0))) // MIB
    wishes = merge_wishes(settings.plan, config.plan)
    same = {
        "slots": serving.slots,
        "context": min(serving.context, found.header.context_train),
        "memory_mib": min(wishes.memory_mib or room, room),
    }
    plan = make_plan(
        found.header,
        host,
        wishes.model_copy(update=same),
        replicas=config.replicas,
        gpu_offload_supported=bool(host.gpus) and bool(offload_devices()),
    )
    return _planned(found, plan)


def _planned(file: _Found, plan: Plan) -> PlannedModel:
    return PlannedModel(file.config, file.identity, file.path, plan, file.ref)


def _find(config: ModelConfig, source: str, data_dir: Path, progress: Progress | None) -> _Found:
    resolved = open_model(source, ModelRegistry(data_dir), data_dir, progress)
    identity = ModelIdentity(
        config.name, resolved.identity.version, resolved.identity.digest, resolved.identity.created
    )
    return _Found(config, identity, resolved.path, read_header(resolved.path), resolved.ref)
