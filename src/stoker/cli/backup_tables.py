"""What the backup verbs print: snapshots, their entries, and what was done, as tables and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from stoker.cli.progress import output
from stoker.cli.words import age, octets, printable, took, when

if TYPE_CHECKING:  # imported when it is needed, for a quick --help
    from stoker.backup.create import Created
    from stoker.backup.manifest import Entry, Manifest
    from stoker.backup.prune import Pruned
    from stoker.backup.repository import Snapshot
    from stoker.backup.restore import Restored
    from stoker.backup.verify import Verified

SHOWN_LINES = 40
"""Files that are listed before a count takes the place of the rest; --json lists all."""


def models_of(manifest: Manifest) -> tuple[str, ...]:
    """The `name@version` that a snapshot holds."""
    refs = (
        entry.path.removeprefix("models/refs/").removesuffix(".json")
        for entry in manifest.entries
        if entry.kind == "registry"
    )
    return tuple(sorted("@".join(ref.rsplit("/", 1)) for ref in refs if "/" in ref))


def state_of(snapshot: Snapshot, now: float) -> str:
    """In a word or two: whether it can be restored, and what holds it."""
    if snapshot.manifest is None:
        return f"DAMAGED: {printable(snapshot.trouble or 'its manifest cannot be read')}"
    held = ["pinned"] if snapshot.pinned else []
    locked = snapshot.manifest.locked_until
    if locked is not None and locked > now:
        held.append(f"locked until {when(locked)}")
    return ", ".join(["good", *held])


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot for programs; times in Unix seconds, sizes in bytes."""
    known: dict[str, Any] = {"id": snapshot.id, "good": snapshot.manifest is not None, "pinned": snapshot.pinned}
    if snapshot.manifest is None:
        return {**known, "trouble": snapshot.trouble}
    return {**known, **manifest_document(snapshot.manifest)}


def manifest_document(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says of its snapshot, without its entries."""
    return {
        "id": manifest.id,
        "created": manifest.created,
        "host": manifest.host,
        "version": manifest.version,
        "tags": list(manifest.tags),
        "models": list(models_of(manifest)),
        "kinds": sorted({entry.kind for entry in manifest.entries}),
        "files": len(manifest.entries),
        "size": manifest.size,
        "sent": manifest.sent_bytes,
        "seconds": manifest.seconds,
        "locked_until": manifest.locked_until,
    }


def entry_document(entry: Entry) -> dict[str, Any]:
    """A file of a snapshot for programs."""
    return {
        "path": entry.path,
        "kind": entry.kind,
        "size": entry.size,
        "sha256": entry.sha256,
        "stored": entry.stored,
        "sealed": entry.sealed,
    }


def print_snapshots(snapshots: Sequence[Snapshot], now: float) -> None:
    """The table of `list`, newest first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, right in (
        ("snapshot", False),
        ("made", False),
        ("age", True),
        ("size", True),
        ("new", True),
        ("models", False),
        ("tags", False),
        ("state", False),
    ):
        # What may be long is folded, never cut: an id is copied from here.
        table.add_column(
            column, justify="right" if right else "left", no_wrap=column not in {"models", "tags", "state"}
        )
    for snapshot in snapshots:
        manifest = snapshot.manifest
        cells: tuple[str, ...] = (when(snapshot.modified), age(now - snapshot.modified), "-", "-", "-", "")
        if manifest is not None:
            cells = (
                when(manifest.created),
                age(now - manifest.created),
                octets(manifest.size),
                octets(manifest.sent_bytes),
                _some(models_of(manifest)),
                _some(manifest.tags, ""),
            )
        state = state_of(snapshot, now)
        style = "" if manifest is not None else "red"
        table.add_row(*(Text(printable(cell)) for cell in (snapshot.id, *cells)), Text(state, style=style))
    output().print(table)


def print_snapshot(snapshot: Snapshot, manifest: Manifest, now: float) -> None:
    """Everything that `show` tells of one snapshot."""
    facts = {
        "snapshot": snapshot.id,
        "made": f"{when(manifest.created)}, {age(now - manifest.created)} ago, on {manifest.host}",
        "state": state_of(snapshot, now),
        "by": f"Stoker {manifest.version}",
        "tags": ", ".join(manifest.tags) or "-",
        "size": f"{octets(manifest.size)} in {len(manifest.entries)} files",
        "sent": f"{octets(manifest.sent_bytes)} in {took(manifest.seconds)}",
        "models": ", ".join(models_of(manifest)) or "-",
    }
    for name, value in facts.items():
        say(f"{name:<10}{printable(value)}")
    table = Table("file", "kind", "size", "SHA-256", box=None, header_style="bold", pad_edge=False)
    for entry in sorted(manifest.entries, key=lambda entry: (entry.kind, entry.path)):
        kind = f"{entry.kind}, sealed" if entry.sealed else entry.kind
        table.add_row(*(Text(cell) for cell in (entry.path, kind, octets(entry.size), entry.sha256[:12])))
    say("")
    output().print(table)


def print_created(created: Created, *, dry_run: bool) -> None:
    """What `create` did, or would do."""
    manifest = created.manifest
    files = f"{octets(manifest.size)} in {_count(len(manifest.entries), 'file')}"
    if dry_run:
        say(f"would hold {files}; would send {_count(created.sent, 'object')}, {created.reused} are there already")
    else:
        say(f"snapshot {manifest.id}: {files}")
        sent = f"sent {_count(created.sent, 'object')}, {octets(manifest.sent_bytes)}, in {took(manifest.seconds)}"
        say(f"{sent}; {created.reused} were there already")
    say(f"models: {', '.join(models_of(manifest)) or 'none are stored'}")
    if not any(entry.kind == "secrets" for entry in manifest.entries):
        say("keys and secrets are left out: they are kept only under a passphrase, --key-file or backup.key")
    if not dry_run and manifest.locked_until is not None:
        say(f"locked until {when(manifest.locked_until)}")


def created_document(created: Created, *, dry_run: bool) -> dict[str, Any]:
    """The same for programs."""
    counts = {"dry_run": dry_run, "objects_new": created.sent, "objects_reused": created.reused}
    return {**manifest_document(created.manifest), **counts}


def print_verified(verified: Verified, *, sampled: bool) -> None:
    """What `verify` found."""
    for bad in verified.bad:
        where = ": ".join(part for part in (bad.snapshot, bad.path) if part)
        say(f"DAMAGED: {printable(where)}: {printable(bad.what)}")
    what = "a sample of " if sampled else ""
    checked = f"checked {what}{_count(verified.checked, 'object')}, {octets(verified.bytes)}"
    say(f"{checked}: {len(verified.bad) or 'nothing'} damaged")
    if verified.bad:
        say("send what is damaged again from a host that has it: stoker backup create --check")


def verified_document(verified: Verified) -> dict[str, Any]:
    """The same for programs."""
    bad = [{"snapshot": one.snapshot, "path": one.path, "digest": one.digest, "what": one.what} for one in verified.bad]
    return {"ok": not bad, "checked": verified.checked, "bytes": verified.bytes, "bad": bad}


def print_restored(restored: Restored, target: object, *, dry_run: bool) -> None:
    """What `restore` did, or would do."""
    lines = [
        f"{_did(action.what, dry_run=dry_run):<12}{octets(action.size):>8}  {action.path}"
        for action in restored.actions
    ]
    for line in lines[:SHOWN_LINES]:
        say(printable(line))
    if len(lines) > SHOWN_LINES:
        say(f"and {len(lines) - SHOWN_LINES} more; --json lists all")
    written = [action for action in restored.actions if action.what == "write"]
    same = sum(action.what == "same" for action in restored.actions)
    verb = "would write" if dry_run else "restored"
    say(
        f"{verb} {len(written)} files, {octets(sum(action.size for action in written))}, to {target}; {same} were there"
    )


def print_about_secrets(manifest: Manifest, *, with_key: bool) -> None:
    """What a restore of everything did about keys and secrets, where a person may expect something else."""
    there = any(entry.kind == "secrets" for entry in manifest.entries)
    if there and not with_key:
        say("keys and secrets were left out: name the passphrase with --key-file")
    elif with_key and not there:
        say("the snapshot holds no keys and secrets: it was made without a passphrase")


def restored_document(snapshot: str, restored: Restored) -> dict[str, Any]:
    """The same for programs."""
    actions = [{"path": action.path, "what": action.what, "size": action.size} for action in restored.actions]
    return {"snapshot": snapshot, "actions": actions}


def print_pruned(pruned: Pruned) -> None:
    """What `prune` decided and did, or would do."""
    decision = pruned.plan.decision
    would = "would be " if pruned.dry_run else ""
    table = Table("snapshot", "what", "why", box=None, header_style="bold", pad_edge=False)
    for name, reasons in decision.keep.items():
        table.add_row(name, "kept", Text(printable(", ".join(reasons))))
    for name in decision.remove:
        gone = pruned.dry_run or name in pruned.removed
        table.add_row(
            name, f"{would}removed" if gone else "stays", "no rule keeps it" if gone else "locked by the store"
        )
    output().print(table)
    for trouble in pruned.plan.troubles:
        say(printable(trouble))
    for key, why in pruned.held.items():
        say(f"not deleted: {printable(key)}: {printable(why)}")
    counted = f"{_count(len(pruned.removed), 'snapshot')} and {_count(pruned.collected, 'object')}"
    say(f"{counted} {would}removed, {octets(pruned.freed)} freed")
    if pruned.plan.young:
        say(f"within the grace period, for a later prune: {_count(pruned.plan.young, 'object')} that nobody needs")


def pruned_document(pruned: Pruned) -> dict[str, Any]:
    """The same for programs."""
    decision = pruned.plan.decision
    return {
        "dry_run": pruned.dry_run,
        "keep": {name: list(reasons) for name, reasons in decision.keep.items()},
        "remove": list(decision.remove),
        "removed": list(pruned.removed),
        "held": dict(pruned.held),
        "objects": pruned.collected,
        "freed": pruned.freed,
        "young": pruned.plan.young,
        "troubles": list(pruned.plan.troubles),
    }


def say(line: str) -> None:
    """A line on standard output, as it is: people copy from it."""
    sys.stdout.write(f"{line}\n")


def _did(what: str, *, dry_run: bool) -> str:
    if what == "write":
        return "would write" if dry_run else "wrote"
    return {"same": "is there", "conflict": "differs"}.get(what, what)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: Iterable[str], none: str = "-") -> str:
    """A few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""  # noqa: PLR2004 - a cell, not a listing
    return (", ".join(listed[:3]) or none) + more
