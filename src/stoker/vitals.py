"""How the host and the process fare: memory, disk, CPUs. Read now and then in a thread, told from memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stoker.engine.host import cpu_throttled_s, read_host

_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. `used` and `limit` are of the tightest cgroup, or of the machine where no group limits; `engines` by
    process id.
    """

    used: int
    limit: int
    source: str
    host_total: int
    host_available: int
    gateway: int
    engines: dict[int, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the limit that is used, 0..1."""
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a directory, in bytes; `path` is the part of it that exists."""

    path: Path
    free: int
    size: int


@dataclass(frozen=True, slots=True)
class Cpus:
    """`granted` CPUs after affinity and quota, `quota` alone (None without one), the machine's load average over one
    minute, and seconds for which the quota held this group back since it began.
    """

    granted: float
    quota: float | None
    load1: float
    throttled_s: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """Everything at one moment. `disk` is None when the file system did not answer."""

    memory: Memory
    disk: Disk | None
    cpus: Cpus


def read_vitals(data_dir: Path, engine_pids: Sequence[int], root: Path = Path("/")) -> Vitals:
    """Read everything now. Blocks for as long as the file system of `data_dir` does: not for an event loop.

    Args:
        data_dir: whose disk is looked at; its nearest parent while it is not there.
        engine_pids: processes whose memory is told apart.
        root: where `proc` and `sys` are found.
    """
    host = read_host(root, gpus=lambda: ())
    if host.memory_limit is None or host.memory_room is None:
        used, limit = host.memory_total - host.memory_available, host.memory_total
    else:
        used, limit = max(host.memory_limit - host.memory_room, 0), host.memory_limit
    memory = Memory(
        used=used,
        limit=limit,
        source=host.memory_source,
        host_total=host.memory_total,
        host_available=host.memory_available,
        gateway=_resident(root, os.getpid()),
        engines={pid: _resident(root, pid) for pid in engine_pids},
    )
    cpus = Cpus(host.cpus, host.cpu_quota, os.getloadavg()[0], cpu_throttled_s(root))
    return Vitals(memory, _disk(data_dir), cpus)


def private_bytes(pids: Sequence[int], root: Path = Path("/")) -> dict[int, int]:
    """Bytes in memory that each process has for itself, mapped files left out, by proc(5); 0 for one that is gone."""
    found = {}
    for pid in pids:
        found[pid] = 0
        with suppress(OSError, ValueError, IndexError):
            _, resident, shared, *_ = (root / f"proc/{pid}/statm").read_text().split()
            found[pid] = max(int(resident) - int(shared), 0) * _PAGE
    return found


def _resident(root: Path, pid: int) -> int:
    """Bytes of a process that are in memory, by proc(5); 0 for one that is gone."""
    with suppress(OSError, ValueError, IndexError):
        return int((root / f"proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _disk(directory: Path) -> Disk | None:
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        usage = shutil.disk_usage(existing)
    except (OSError, StopIteration):
        return None
    return Disk(existing, usage.free, usage.total)
