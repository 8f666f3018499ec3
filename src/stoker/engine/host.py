"""What this host really grants: CPUs, memory and GPUs after affinity and cgroup limits.

Libraries that ask the system for its processors get the whole machine's, not the container's share; threads beyond the
quota are throttled together, and memory beyond the limit ends the process. So the limits are read where the kernel
keeps them: cgroup v2 (`cpu.max`, `memory.max`, `memory.high`) and v1 (`cpu.cfs_*`, `memory.limit_in_bytes`), by the
kernel's `admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`. A limit of any parent group holds too, so that the
tightest on the way from the process's own group to the root of the mount counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

NO_LIMIT_V1: Final = 1 << 60
"""Version 1 says "none" with the largest page-aligned number there is; anything this large is none."""
GPU_TIMEOUT_S: Final = 10.0
_MIB: Final = 1 << 20
_READ_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor with its memory in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Host:
    """What the host grants this process.

    `logical_cpus` are those it may run on (affinity), `physical_cores` the cores they belong to (None when unknown);
    `cpu_quota` is in CPUs, None without one. Memory is in bytes: `memory_total` and `memory_available` of the whole
    machine, `memory_limit` the tightest limit of its groups and `memory_room` what is left under them (None without
    a limit). `cpu_source` and `memory_source` name the files that decided.
    """

    logical_cpus: int
    physical_cores: int | None
    cpu_quota: float | None
    memory_total: int
    memory_available: int
    memory_limit: int | None
    memory_room: int | None
    gpus: tuple[Gpu, ...] = ()
    cpu_source: str = "affinity"
    memory_source: str = "/proc/meminfo"

    @classmethod
    def plain(cls, *, cpus: int, memory_bytes: int, gpus: tuple[Gpu, ...] = ()) -> Self:
        """A host without groups and limits, all of it free: for estimates about another machine."""
        return cls(cpus, cpus, None, memory_bytes, memory_bytes, None, None, gpus)

    @property
    def cpus(self) -> float:
        """CPUs that may be used at once, a fraction where the quota is one."""
        return float(self.logical_cpus) if self.cpu_quota is None else min(float(self.logical_cpus), self.cpu_quota)

    @property
    def memory_bytes(self) -> int:
        """Bytes that may still be taken: what is free under the limits and on the machine."""
        room = self.memory_available if self.memory_room is None else min(self.memory_available, self.memory_room)
        return max(room, 0)


def query_gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs by `nvidia-smi`; none where the program is missing, fails, or takes longer than 10 s."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=index,uuid,memory.total,memory.free,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=GPU_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if done.returncode == 0 else ()


def parse_gpus(listing: str, visible: str | None) -> tuple[Gpu, ...]:
    """GPUs from `nvidia-smi`'s lines of index, UUID, total MiB, free MiB, name.

    `visible` is CUDA_VISIBLE_DEVICES: indices or beginnings of UUIDs; as CUDA does, what follows an entry that names
    no GPU is left out. Lines without figures (boards that share the host's memory) are left out.
    """
    found: dict[tuple[str, str], Gpu] = {}
    for line in listing.splitlines():
        index, uuid, total, free, name = ([part.strip() for part in line.split(",", 4)] + [""] * 5)[:5]
        if total.isdecimal() and free.isdecimal():
            found[index, uuid] = Gpu(name or "GPU", int(total) * _MIB, int(free) * _MIB)
    if visible is None:
        return tuple(found.values())
    chosen: list[Gpu] = []
    for wish in (part.strip() for part in visible.split(",")):
        match = next((gpu for (index, uuid), gpu in found.items() if _named(wish, index, uuid)), None)
        if match is None:
            break
        chosen.append(match)
    return tuple(chosen)


def _named(wish: str, index: str, uuid: str) -> bool:
    return wish == index or (wish.startswith("GPU-") and uuid.startswith(wish))


def read_host(
    root: Path = Path("/"),
    *,
    affinity: Collection[int] | None = None,
    gpus: Callable[[], tuple[Gpu, ...]] = query_gpus,
) -> Host:
    """Read what the host grants this process now. What cannot be read limits nothing.

    Args:
        root: where `proc` and `sys` are found.
        affinity: numbers of the CPUs that may be used; None asks the kernel.
        gpus: lists the GPUs; asking can take seconds.
    """
    cpus = frozenset(os.sched_getaffinity(0) if affinity is None else affinity)
    machine = _meminfo(root)
    quota, cpu_source = _tightest(_quotas(root))
    rooms = list(_memories(root))
    total = machine.get("MemTotal", 0)
    # A limit above the machine's memory is none.
    limits = [(limit, used, source) for limit, used, source in rooms if not total or limit < total]
    room, memory_source = _tightest((limit - used, source) for limit, used, source in limits)
    return Host(
        logical_cpus=max(len(cpus), 1),
        physical_cores=_cores(root, cpus),
        cpu_quota=quota,
        memory_total=total,
        memory_available=machine.get("MemAvailable", machine.get("MemFree", total)),
        memory_limit=min((limit for limit, _, _ in limits), default=None),
        memory_room=None if room is None else max(int(room), 0),
        gpus=gpus(),
        cpu_source=cpu_source or "affinity",
        memory_source=memory_source or "/proc/meminfo",
    )


def _tightest(limits: Iterator[tuple[float, str]]) -> tuple[float | None, str]:
    """The smallest value with its source; (None, "") when there is none."""
    return min(limits, default=(None, ""), key=lambda limit: limit[0] or 0.0)


def _text(path: Path) -> str:
    """A small system file's text; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_READ_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None  # noqa: PLR2004 - 64 bits


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name, from /proc/meminfo's lines `Name:  123 kB`."""
    values: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = _number(rest.split()[0]) if rest.split() else None
        if number is not None:
            values[name] = number * 1024
    return values


def _cores(root: Path, cpus: Collection[int]) -> int | None:
    """Physical cores behind the CPUs: those with the same siblings share one."""
    siblings = {_text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip() for cpu in cpus}
    return None if not siblings or "" in siblings else len(siblings)


def _quotas(root: Path) -> Iterator[tuple[float, str]]:
    """CPU quotas (in CPUs) of all groups that this process is in, with the files that say so."""
    for folder in _groups(root, None):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        yield from _quota(_number(quota), _number(period), folder / "cpu.max", root)
    for folder in _groups(root, "cpu"):
        quota = _text(folder / "cpu.cfs_quota_us")  # -1 says none
        period = _text(folder / "cpu.cfs_period_us")
        yield from _quota(_number(quota), _number(period), folder / "cpu.cfs_quota_us", root)


def _quota(quota: int | None, period: int | None, file: Path, root: Path) -> Iterator[tuple[float, str]]:
    if quota and period:
        yield quota / period, _shown(file, root)


def _memories(root: Path) -> Iterator[tuple[int, int, str]]:
    """Memory limit and use (bytes) of all groups that this process is in, with the files that say so.

    Cached file pages that have not been used lately do not count as used: the kernel drops them first.
    """
    for folder in _groups(root, None):
        used = (_number(_text(folder / "memory.current")) or 0) - _statistic(folder, "memory.stat", "inactive_file")
        for name in ("memory.max", "memory.high"):
            limit = _number(_text(folder / name))  # "max" says none
            if limit is not None:
                yield limit, max(used, 0), _shown(folder / name, root)
    for folder in _groups(root, "memory"):
        limit = _number(_text(folder / "memory.limit_in_bytes"))
        if limit is not None and limit < NO_LIMIT_V1:
            used = (_number(_text(folder / "memory.usage_in_bytes")) or 0) - _statistic(
                folder, "memory.stat", "total_inactive_file"
            )
            yield limit, max(used, 0), _shown(folder / "memory.limit_in_bytes", root)


def cpu_throttled_s(root: Path = Path("/")) -> float:
    """Seconds for which a CPU quota held this process's groups back since they began; 0 without a quota."""
    held = [_statistic(folder, "cpu.stat", "throttled_usec") / 1e6 for folder in _groups(root, None)]
    held += [_statistic(folder, "cpu.stat", "throttled_time") / 1e9 for folder in _groups(root, "cpu")]
    return max(held, default=0.0)


def _shown(file: Path, root: Path) -> str:
    return f"/{file.relative_to(root)}"


def _statistic(folder: Path, file: str, name: str) -> int:
    """A figure of a group's `memory.stat` or `cpu.stat`, whose lines are `name number`."""
    for line in _text(folder / file).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value) or 0
    return 0


def _groups(root: Path, controller: str | None) -> list[Path]:
    """Folders of the process's group and its parents up to the mount; version 2 when `controller` is None.

    /proc/self/cgroup names the group, /proc/self/mountinfo where the hierarchy is mounted and which group that mount
    shows: in a container that is often the container's own group, whose parents are out of sight.
    """
    group = _own_group(root, controller)
    folders: list[Path] = []
    for shown, mount in _mounts(root, controller):
        inside = _below(group, shown)
        folder = root / mount.lstrip("/")
        folders.append(folder)
        for part in inside:
            folder /= part
            folders.append(folder)
    return folders


def _own_group(root: Path, controller: str | None) -> str:
    """The process's group; lines are `id:controllers:path`, version 2's with id 0 and no controllers."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        identity, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (identity == "0" and not controllers) if controller is None else controller in controllers.split(","):
            return path
    return "/"


def _below(group: str, shown: str) -> list[str]:
    """Names on the way from the group that a mount shows down to `group`; none when that is not below it."""
    parts = [part for part in group.split("/") if part]
    above = [part for part in shown.split("/") if part]
    if parts[: len(above)] != above or ".." in parts:
        return []
    return parts[len(above) :]


def _mounts(root: Path, controller: str | None) -> list[tuple[str, str]]:
    """Where the hierarchy is mounted: pairs of the group shown and the mount point.

    Fields by proc(5): `id parent major:minor root mountpoint options [tags] - type source superoptions`.
    """
    found: list[tuple[str, str]] = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or ".." in fields[4].split("/"):  # noqa: PLR2004 - the fields named above
            continue
        wanted = (
            kind[0] == "cgroup2" if controller is None else kind[0] == "cgroup" and controller in kind[2].split(",")
        )
        if wanted:
            found.append((fields[3], fields[4]))
    if not found:
        found = [("/", "/sys/fs/cgroup" if controller is None else f"/sys/fs/cgroup/{controller}")]
    return found
