"""Reads the configuration file, the environment and the flags, and explains what is wrong in them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from stoker.config.access import KeyConfig, KeysFile
from stoker.config.settings import ENV_PREFIX, ExactSettings, Settings
from stoker.errors import ConfigError

DEFAULT_FILE = Path("stoker.yaml")
SECRETIVE = re.compile("key|secret|canary|redis|hash|headers")
"""Settings whose value is not repeated in errors."""
OTHER_VARIABLES = frozenset({"CONFIG", "URL", "API_KEY", "AGAINST_KEY"})
"""Variables after the prefix that are no settings: the file to read, and what verbs like `stoker query` ask."""


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the configuration.

    Args:
        file: YAML file to read; None reads `$STOKER_CONFIG`, else `stoker.yaml` if it exists.
        flags: values from the command line, as nested mappings; None values are ignored.

    Returns: validated, frozen settings.

    Raises:
        ConfigError: a file that cannot be read, or a value that is wrong, with key, value and remedy.
    """
    origin = origin_of(file)
    from_file = _with_collector(read_yaml(origin) if origin else {})
    given = _without_none(flags or {})
    _refuse_unknown_environment()
    try:
        settings = Settings(**from_file)
        if given:
            # Re-validate the merged tree, so that a wrong flag is reported like a wrong file.
            merged = _merge(settings.model_dump(exclude_unset=True), given)
            settings = ExactSettings(**merged)
    except ValidationError as error:
        raise ConfigError(explain(error, origin)) from None
    except SettingsError as error:  # a group given as JSON in one variable
        named = re.search(r'field "(\w+)"', str(error))
        variable = ENV_PREFIX + named[1].upper() if named else f"{ENV_PREFIX}..."
        raise ConfigError(
            f"{variable}: is not valid JSON; a group's values go one by one: {variable}__KEY=value"
        ) from None
    return settings


def origin_of(file: Path | None = None) -> Path | None:
    """The file that `load` reads; None where there is none."""
    if file is None and os.environ.get("STOKER_CONFIG"):
        return Path(os.environ["STOKER_CONFIG"])
    return DEFAULT_FILE if file is None and DEFAULT_FILE.is_file() else file


def _with_collector(tree: dict[str, Any]) -> dict[str, Any]:
    """The file's values, with OpenTelemetry's own variable for the collector where they name none."""
    collector = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    tracing = tree.get("tracing", {})
    if not collector or not isinstance(tracing, dict):
        return tree
    return {**tree, "tracing": {"endpoint": collector, **tracing}}


def load_keys(path: Path) -> tuple[KeyConfig, ...] | None:
    """The keys in a keys file; None when there is no file. Raises ConfigError for one that is wrong."""
    if not path.exists():
        return None
    try:
        return KeysFile(**read_yaml(path)).keys
    except (ValidationError, TypeError) as error:
        reason = explain(error, path, KeysFile) if isinstance(error, ValidationError) else f"{path}: {error}"
        raise ConfigError(reason) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a configuration file into a mapping; raises ConfigError when that cannot be done."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=OneKeyLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name another file with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{path}: must hold `key: value` lines at the top; `stoker config init` writes an example")
    return document


class OneKeyLoader(yaml.SafeLoader):
    """YAML without tags of Python's, in which a key that is there twice is an error, as YAML 1.2 says (3.2.1.3)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, or a complaint about its double key with the line."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def explain(error: ValidationError, origin: Path | None, root: type[BaseModel] = Settings) -> str:
    """Every complaint of a ValidationError on a line of its own: key, value, what is wrong, where to mend it."""
    lines = []
    for problem in error.errors(include_url=False):
        location = problem["loc"]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        if problem["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(location[:-1], root))
            lines.append(f"{key}: unknown key" + (f"; known here: {known}" if known else ""))
            continue
        value = problem["input"] if not isinstance(problem["input"], (dict, BaseModel)) else None
        shown = "" if value is None or SECRETIVE.search(key) else f" = {value!r}"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{key}{shown}: {message}" if key else message)
    variable = ENV_PREFIX + "<KEY>"
    where = f"{origin}, {variable} or a flag" if origin else f"a stoker.yaml, {variable} or a flag"
    return (
        "configuration is not valid:\n  "
        + "\n  ".join(lines)
        + f"\nMend it in {where}; `stoker config schema` lists every key."
    )


def _known_keys(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Keys that are allowed at a place in the settings; empty when the place itself is unknown."""
    model = root
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inside = next((kind for kind in (annotation, *get_args(annotation)) if _is_group(kind)), None)
        if inside is None:
            return []
        model = inside
    return list(model.model_fields)


def _is_group(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _refuse_unknown_environment() -> None:
    """A mistyped STOKER_ variable must not be silently without effect."""
    known = {name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for variable in os.environ:
        if not variable.startswith(ENV_PREFIX):
            continue
        head = variable.removeprefix(ENV_PREFIX).split("__", 1)[0]
        # Kubernetes makes variables like STOKER_SERVICE_HOST and STOKER_PORT_80_TCP for a Service named stoker.
        if head in known or head.startswith(("SERVICE_", "PORT_")):
            continue
        raise ConfigError(
            f"{variable}: no such setting; known: {', '.join(sorted(ENV_PREFIX + name for name in known))}"
        )


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without None leaves, which stand for flags that were not given."""
    clean: dict[str, Any] = {}
    for key, value in tree.items():
        kept = _without_none(value) if isinstance(value, Mapping) else value
        if kept is not None and kept != {}:
            clean[key] = kept
    return clean


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees in one; where both have a leaf, `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
