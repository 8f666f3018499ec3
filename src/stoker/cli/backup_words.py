"""What the backup verbs call the parts of a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from stoker.backup.manifest import Kind

KINDS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "models": ("model", "registry"),
    "configuration": ("configuration",),
    "secrets": ("secrets", "configuration"),
    "rollouts": ("rollouts",),
    "jobs": ("jobs",),
}
"""What --only names, and the kinds of entries that this means: a model's file is useless without its name, and the
sealed configuration without the files that it refers to."""


def kinds(text: str) -> frozenset[Kind]:
    """The kinds of entries that a list such as `models,configuration` means; raises typer.BadParameter."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    found: set[Kind] = set()
    for name in named:
        plural = name if name in KINDS else f"{name}s"
        if plural not in KINDS:
            raise typer.BadParameter(f"{name!r} is nothing that a snapshot holds; there is {', '.join(KINDS)}")
        found.update(KINDS[plural])
    if not found:
        raise typer.BadParameter(f"name at least one of {', '.join(KINDS)}")
    return frozenset(found)
