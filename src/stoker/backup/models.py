"""Which model files a snapshot needs, and what its configuration calls them.

The registry's models are taken as they are. A configured file outside the registry gets an entry of its own in the
snapshot, and the snapshot's configuration names that, so that a restored server needs no other host's directories.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stoker.config import ModelConfig, Settings
from stoker.errors import ModelFileError, StokerError
from stoker.models import sources
from stoker.models.gguf import read_header
from stoker.models.names import parse_reference
from stoker.models.partial import Progress
from stoker.models.registry import ModelRegistry, StoredModel, summarise
from stoker.models.resolve import DigestMemory

VERSION_DIGITS = 12
"""Of its digest, which are the version of a file outside the registry."""


class DamagedModel(ModelFileError):
    """A model's file is not the one that its digest names, so that a snapshot of it would be worth nothing."""

    code = "damaged_model"


@dataclass(frozen=True, slots=True)
class Pin:
    """What a rollout's pin says: the `source` that was configured then, and what serves since."""

    configured: str
    ref: str
    digest: str


@dataclass(frozen=True, slots=True)
class ModelSet:
    """Every model of a snapshot. `renamed`: by the configured model's name, what its `source` becomes."""

    models: tuple[StoredModel, ...]
    renamed: Mapping[str, str]
    pins: bytes | None
    """The pins' file with these names in it; None when there is none."""


def find_models(settings: Settings, progress: Progress) -> ModelSet:
    """Every stored model, and every configured one.

    Raises:
        ModelFileError: a configured model is not there, or an entry of the registry cannot be read.
        DamagedModel: a file is missing or has another size than it should.
    """
    registry = ModelRegistry(settings.data_dir)
    finder = _Finder(registry, DigestMemory(settings.data_dir), progress, list(registry.list()))
    document = read_pins(settings.data_dir)
    pins = pins_of(document)
    renamed: dict[str, str] = {}
    for config in settings.models:
        if config.source is None:
            continue
        pin = pins.get(config.name)
        ref = _source(finder, config, pin if pin is not None and pin.configured == config.source else None)
        if ref != config.source:
            renamed[config.name] = ref
    served = {
        config.name: finder.name_of(config.name, pins[config.name].ref)
        for config in settings.models
        if config.name in pins and pins[config.name].configured == config.source
    }
    for model in finder.models:
        _check_file(model)
    return ModelSet(tuple(finder.models), renamed, _renamed_pins(document, renamed, served))


def read_pins(data_dir: Path) -> dict[str, Any] | None:
    """The pins' file, as JSON; None when there is none. Raises ModelFileError for one that cannot be read."""
    path = data_dir / "rollouts" / "pins.json"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read ({type(error).__name__}); mend or delete it") from None
    if not isinstance(document, dict):
        raise ModelFileError(f"{path}: is not what a rollout writes; mend or delete it")
    return document


def pins_of(document: Mapping[str, Any] | None) -> dict[str, Pin]:
    """The pins that can be understood, by the served model's name."""
    pins = {}
    for name, one in (document or {}).items():
        try:
            pins[name] = Pin(str(one["configured"]), str(one["version"]["ref"]), str(one["version"]["digest"]))
        except (KeyError, TypeError):
            continue
    return pins


def version_for(name: str, digest: str, there: Sequence[StoredModel]) -> str:
    """The version under which a file outside the registry is entered: the beginning of its digest."""
    short = digest[:VERSION_DIGITS]
    taken = any(model.name == name and model.version == short and model.digest != digest for model in there)
    return digest if taken else short


def added_for(name: str, changed: float, there: Iterable[StoredModel]) -> float:
    """When such an entry counts as added, in Unix seconds: before all others of its name, which stay the newest."""
    return max(0.0, min([changed, *(model.added - 1.0 for model in there if model.name == name)]))


@dataclass(slots=True)
class _Finder:
    registry: ModelRegistry
    memory: DigestMemory
    progress: Progress
    models: list[StoredModel] = field(default_factory=list)

    def name_of(self, name: str, text: str) -> str:
        """What a source is called in the snapshot: a stored name as it is, anything else `name@version`."""
        path = sources.local_path(text)
        if sources.is_address(text) and not path.exists():
            known = self.registry.from_source(sources.parse(text))
            if known is None:
                raise ModelFileError(
                    "its address has not been fetched yet, so there is nothing to keep; start the server once, or "
                    "fetch it with `stoker models add`"
                )
            return known.ref
        if path.is_file():
            return self._enter(name, path)
        if parse_reference(text) is None:
            raise ModelFileError(f"{text}: there is no such file")
        self.registry.find(text)
        return text

    def _enter(self, name: str, path: Path) -> str:
        header = read_header(path)
        try:
            digest = self.memory.digest(path.resolve(), self.progress)
            changed = path.stat().st_mtime
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        same = [model for model in self.models if model.name == name and model.digest == digest]
        if same:
            return same[-1].ref
        source = sources.PathSource(path)
        model = StoredModel(
            name=name,
            version=version_for(name, digest, self.models),
            digest=digest,
            path=path,
            size=header.file_bytes,
            source=source.label,
            source_key=sources.key_of(source),
            added=added_for(name, changed, self.models),
            header=summarise(header),
        )
        self.models.append(model)
        return model.ref


def _source(finder: _Finder, config: ModelConfig, pin: Pin | None) -> str:
    """What a configured model's source becomes; where it is gone and another version serves since, that one."""
    try:
        try:
            return finder.name_of(config.name, config.source or "")
        except StokerError:
            if pin is None:
                raise
            return finder.name_of(config.name, pin.ref)
    except StokerError as error:
        raise ModelFileError(f"model {config.name}: {error.message}") from None


def _check_file(model: StoredModel) -> None:
    try:
        info = model.path.stat()
    except OSError:
        raise DamagedModel(damaged(model, "is missing")) from None
    if not stat.S_ISREG(info.st_mode):
        raise DamagedModel(damaged(model, "is no file"))
    if info.st_size != model.size:
        raise DamagedModel(damaged(model, f"has {info.st_size:,} bytes instead of {model.size:,}"))


def damaged(model: StoredModel, what: str) -> str:
    """What to say, and do, about a model whose file is wrong."""
    return (
        f"{model.ref}: its file {model.path} {what}; no snapshot was made. Restore it from an earlier snapshot "
        f"(`stoker backup restore`), or forget it with `stoker models remove {model.ref}`"
    )


def _renamed_pins(
    document: dict[str, Any] | None, renamed: Mapping[str, str], served: Mapping[str, str]
) -> bytes | None:
    """The pins' file with the snapshot's names: a pin counts only while the configured source is the one it names."""
    if document is None:
        return None
    changed = dict(document)
    for name, ref in served.items():
        pin = document[name]
        version = {**pin["version"], "ref": ref}
        changed[name] = {**pin, "configured": renamed.get(name, pin["configured"]), "version": version}
    return json.dumps(changed, indent=1).encode()
