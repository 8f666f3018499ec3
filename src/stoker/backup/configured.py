"""Settings as a snapshot keeps them: what was set, without secrets, and independent of this host's directories. Pure.

Paths below the data directory are written as `${data_dir}/...`, and become real when they are restored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import SecretStr

from stoker.config import Settings
from stoker.models.names import printable

DATA_DIR: Final = "${data_dir}"
DROPPED: Final = frozenset({"data_dir", "keys_file"})
"""Settings that a restored server gets anew."""

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/?#\s]*@")
"""Up to the last `@`, which a password may hold too."""
_MAX_NAMES: Final = 40


@dataclass(frozen=True, slots=True)
class Portable:
    """Settings as a tree of plain values; `left_out` names the secrets that are not in it."""

    tree: dict[str, Any]
    left_out: tuple[str, ...]


def portable(
    settings: Settings, sources: Mapping[str, str], files: Mapping[Path, str], *, secrets: bool, closed: bool
) -> Portable:
    """The settings that were set.

    Args:
        settings: the running ones.
        sources: by the model's name, what its `source` becomes.
        files: by the file that settings name, its path below the data directory.
        secrets: whether secrets stay in.
        closed: whether keys are in force, which must not turn into an open door when they are left out.
    """
    left_out: list[str] = []
    tree = _plain(settings.model_dump(exclude_unset=True), "", left_out, settings.data_dir, files, secrets=secrets)
    for name in DROPPED:
        tree.pop(name, None)
    if not secrets and tree.pop("keys", None):
        left_out.append("keys")
    for model in tree.get("models", ()):
        if model["name"] in sources:
            model["source"] = sources[model["name"]]
    if closed and not secrets and tree.get("anonymous") is None:
        tree["anonymous"] = False
    return Portable(tree, tuple(dict.fromkeys(left_out)))


def to_yaml(found: Portable, note: str) -> bytes:
    """The file's text: `note`, what was left out, then the settings."""
    lines = [f"# {line}" for line in note.splitlines()]
    if found.left_out:
        shown = [printable(name) for name in found.left_out[:_MAX_NAMES]]
        more = len(found.left_out) - len(shown)
        lines.append(f"# Left out, because they are secret: {', '.join(shown)}{f' and {more} more' if more else ''}.")
    return _text(lines, found.tree)


def place(text: bytes, target: Path) -> bytes:
    """A snapshot's configuration file for a data directory: `data_dir` set, paths made real. ValueError for no YAML."""
    try:
        decoded = text.decode()
        # Aliases, which `to_yaml` never writes, can make a small file endless.
        plain = not any(isinstance(token, yaml.AliasToken) for token in yaml.scan(decoded))
        tree = yaml.safe_load(decoded) if plain else ""
        if tree is not None and not isinstance(tree, dict):
            raise ValueError("is no mapping of settings")
        comments = [line for line in decoded.splitlines() if line.startswith("#")]
        return _text(comments, {"data_dir": str(target), **_placed(tree or {}, str(target))})
    except (yaml.YAMLError, UnicodeError, RecursionError, LookupError, AttributeError):
        # The last two are what the library says to `!!int ""` and the like.
        raise ValueError("is not valid YAML") from None


def files_of(settings: Settings) -> tuple[Path, ...]:
    """Files that settings name and a server needs, each once."""
    named = [expert.examples_file for expert in settings.routing.experts]
    found = [*named, settings.routing.out_of_scope_file, settings.rollout.evaluation]
    return tuple(dict.fromkeys(path for path in found if path is not None))


def file_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each file below `configured/`, every one another: by its own name, with a number where two agree."""
    names: dict[Path, str] = {}
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).lstrip("._-")[:100] or "file"
        number, name = 1, stem
        while f"configured/{name}" in names.values():
            number += 1
            name = f"{number}-{stem}"
        names[path] = f"configured/{name}"
    return names


def _text(comments: Sequence[str], tree: Mapping[str, Any]) -> bytes:
    body = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
    return ("".join(f"{line}\n" for line in comments) + body).encode()


def _plain(  # noqa: PLR0911 - one line a type
    value: Any, key: str, left_out: list[str], data_dir: Path, files: Mapping[Path, str], *, secrets: bool
) -> Any:
    """A value in YAML's types. A secret becomes None, and its key is noted, where secrets must not be there."""

    def inside(part: Any, name: str) -> Any:
        return _plain(part, name, left_out, data_dir, files, secrets=secrets)

    if isinstance(value, Mapping):
        pairs = {str(name): (part, inside(part, f"{key}.{name}" if key else str(name))) for name, part in value.items()}
        return {name: plain for name, (part, plain) in pairs.items() if plain is not None or part is None}
    if isinstance(value, (list, tuple)):
        parts = [(part, inside(part, f"{key}[{number}]")) for number, part in enumerate(value)]
        return [plain for part, plain in parts if plain is not None or part is None]
    if isinstance(value, SecretStr):
        if not secrets:
            left_out.append(key)
        return value.get_secret_value() if secrets else None
    if isinstance(value, Path):
        return _path(value, data_dir, files)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return _string(value, key, left_out, secrets=secrets)
    return value


def _string(value: str, key: str, left_out: list[str], *, secrets: bool) -> str:
    """A text; addresses lose a password, and a repository's directory is made absolute."""
    if not secrets and _CREDENTIALS.search(value) and not key.startswith(("guard.", "routing.")):
        left_out.append(f"{key} (its password)")
        return _CREDENTIALS.sub("", value)
    return os.path.abspath(value) if key == "backup.repository" and "://" not in value else value  # noqa: PTH100 - Path has no abspath


def _path(path: Path, data_dir: Path, files: Mapping[Path, str]) -> str:
    if path in files:
        return f"{DATA_DIR}/{files[path]}"
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path has no abspath
    root = Path(os.path.abspath(data_dir))  # noqa: PTH100
    return f"{DATA_DIR}/{absolute.relative_to(root)}" if absolute.is_relative_to(root) else str(absolute)


def _placed(value: Any, target: str) -> Any:
    if isinstance(value, dict):
        return {name: _placed(part, target) for name, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, target) for part in value]
    if isinstance(value, str) and value.startswith(f"{DATA_DIR}/"):
        return target + value.removeprefix(DATA_DIR)
    return value
