"""What the host grants, read from made-up /proc and /sys trees."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from stoker.engine import host as host_module
from stoker.engine.host import Gpu, Host, parse_gpus, query_gpus, read_host

MIB = 1 << 20
GIB = 1 << 30

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)


class Tree:
    """A root directory to write system files into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put(
            "proc/meminfo", f"MemTotal: {16 * 1024 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {8 * 1024 * 1024} kB\n"
        )

    def put(self, path: str, content: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def read(self, cpus: int = 8) -> Host:
        return read_host(self.root, affinity=range(cpus), gpus=lambda: ())


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_no_limits(tree: Tree) -> None:
    host = tree.read()
    assert (host.logical_cpus, host.cpu_quota, host.cpus) == (8, None, 8.0)
    assert (host.memory_total, host.memory_limit, host.memory_bytes) == (16 * GIB, None, 8 * GIB)
    assert host.physical_cores is None
    assert host.memory_source == "/proc/meminfo"


def test_v2_in_a_container_sees_its_own_group_as_the_root(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/\n")
    tree.put("proc/self/mountinfo", V2_MOUNT)
    tree.put("sys/fs/cgroup/cpu.max", "150000 100000\n")
    tree.put("sys/fs/cgroup/memory.max", f"{GIB}\n")
    tree.put("sys/fs/cgroup/memory.current", f"{300 * MIB}\n")
    tree.put("sys/fs/cgroup/memory.stat", f"anon 5\ninactive_file {100 * MIB}\nactive_file 7\n")
    host = tree.read()
    assert (host.cpu_quota, host.cpus, host.cpu_source) == (1.5, 1.5, "/sys/fs/cgroup/cpu.max")
    assert host.memory_limit == GIB
    assert host.memory_bytes == GIB - 200 * MIB
    assert host.memory_source == "/sys/fs/cgroup/memory.max"


def test_v2_the_tightest_parent_counts(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/a/b/c\n")
    tree.put("proc/self/mountinfo", V2_MOUNT)
    tree.put("sys/fs/cgroup/a/cpu.max", "300000 100000\n")
    tree.put("sys/fs/cgroup/a/b/cpu.max", "100000 50000\n")
    tree.put("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n")
    tree.put("sys/fs/cgroup/a/memory.max", f"{2 * GIB}\n")
    tree.put("sys/fs/cgroup/a/memory.current", f"{GIB + 500 * MIB}\n")
    tree.put("sys/fs/cgroup/a/b/c/memory.max", f"{GIB}\n")
    tree.put("sys/fs/cgroup/a/b/c/memory.current", f"{100 * MIB}\n")
    host = tree.read()
    assert host.cpu_quota == 2.0
    assert host.memory_limit == GIB  # the smallest limit, while the parent's neighbours leave less room
    assert host.memory_bytes == 2 * GIB - (GIB + 500 * MIB)
    assert host.memory_source == "/sys/fs/cgroup/a/memory.max"


def test_v2_high_is_a_limit_too(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/\n")
    tree.put("proc/self/mountinfo", V2_MOUNT)
    tree.put("sys/fs/cgroup/memory.max", f"{2 * GIB}\n")
    tree.put("sys/fs/cgroup/memory.high", f"{GIB}\n")
    assert tree.read().memory_bytes == GIB


def test_v1_with_the_container_bound_over_the_mount(tree: Tree) -> None:
    # Docker without cgroup namespaces: /proc names the host's path, the mount shows that very group.
    tree.put("proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n")
    tree.put("proc/self/mountinfo", V1_MOUNTS.format(shown="/docker/abc"))
    tree.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n")
    tree.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{512 * MIB}\n")
    tree.put("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{64 * MIB}\n")
    tree.put("sys/fs/cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {32 * MIB}\n")
    host = tree.read()
    assert host.cpu_quota == 2.5
    assert host.memory_limit == 512 * MIB
    assert host.memory_bytes == 480 * MIB


def test_v1_nested_and_unlimited_values(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "4:memory:/job/1\n3:cpu,cpuacct:/job/1\n")
    tree.put("proc/self/mountinfo", V1_MOUNTS.format(shown="/"))
    tree.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    tree.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    tree.put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "400000\n")
    tree.put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    tree.put("sys/fs/cgroup/memory/job/1/memory.limit_in_bytes", f"{GIB}\n")
    host = tree.read()
    assert host.cpu_quota == 4.0
    assert host.memory_limit == GIB


def test_v1_without_mountinfo_is_looked_for_where_it_usually_is(tree: Tree) -> None:
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
    tree.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n")
    tree.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    host = tree.read()
    assert (host.cpu_quota, host.memory_limit) == (1.0, GIB)


def test_a_limit_above_the_machine_is_none(tree: Tree) -> None:
    tree.put("sys/fs/cgroup/memory.max", f"{64 * GIB}\n")
    assert tree.read().memory_limit is None


def test_a_quota_above_the_affinity_does_not_add_cpus(tree: Tree) -> None:
    tree.put("sys/fs/cgroup/cpu.max", "1600000 100000\n")
    assert tree.read(cpus=2).cpus == 2.0


def test_cores_are_counted_by_siblings(tree: Tree) -> None:
    for cpu in range(8):
        tree.put(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    assert tree.read(cpus=8).physical_cores == 4
    assert tree.read(cpus=2).physical_cores == 2


@pytest.mark.parametrize("nonsense", ["", "max", "x y", "-5", "1e9 1e5", "٣ ٤", "9" * 400, "0 0", "100000 0"])
def test_nonsense_limits_nothing(tree: Tree, nonsense: str) -> None:
    tree.put("proc/self/cgroup", "0::/../../escape\nrubbish\n::::\n")
    tree.put("proc/self/mountinfo", V2_MOUNT + "rubbish\n1 2 3 - x\n")
    tree.put("sys/fs/cgroup/cpu.max", nonsense)
    tree.put("sys/fs/cgroup/memory.max", nonsense)
    tree.put("sys/fs/cgroup/memory.current", nonsense)
    tree.put("sys/fs/cgroup/memory.stat", f"inactive_file {nonsense}\n")
    host = tree.read()
    assert host.cpu_quota is None
    assert host.memory_limit is None


def test_a_full_group_grants_nothing(tree: Tree) -> None:
    tree.put("sys/fs/cgroup/memory.max", f"{GIB}\n")
    tree.put("sys/fs/cgroup/memory.current", f"{2 * GIB}\n")
    assert tree.read().memory_bytes == 0


def test_this_very_host() -> None:
    host = read_host(gpus=lambda: ())
    assert host.logical_cpus == len(os.sched_getaffinity(0))
    assert 0 < host.cpus <= host.logical_cpus
    assert 0 < host.memory_bytes <= host.memory_total


LISTING = """0, GPU-aaaa-1, 81559, 80000, NVIDIA H100 80GB HBM3
1, GPU-bbbb-2, 24576, 1024, NVIDIA A10, special
2, GPU-cccc-3, [N/A], [N/A], NVIDIA Thor
"""


def test_gpus_are_read_from_the_listing() -> None:
    first, second = Gpu("NVIDIA H100 80GB HBM3", 81559 * MIB, 80000 * MIB), Gpu("NVIDIA A10, special", 24576 * MIB, GIB)
    assert parse_gpus(LISTING, None) == (first, second)
    assert parse_gpus(LISTING, "1,0") == (second, first)
    assert parse_gpus(LISTING, "GPU-bbbb") == (second,)
    assert parse_gpus(LISTING, "0,-1,1") == (first,)
    assert parse_gpus(LISTING, "") == ()
    assert parse_gpus("No devices were found\n", None) == ()


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("echo '0, GPU-a, 1000, 900, Card'", 1),
        ("echo '0, GPU-a, 1000, 900, Card'; exit 9", 0),
        ("exec sleep 60", 0),
        ("printf '\\377\\376\\n'", 0),
    ],
)
def test_the_gpu_program_may_fail_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, count: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if "sleep" in script:
        monkeypatch.setattr(host_module, "GPU_TIMEOUT_S", 0.2)
    assert shutil.which("nvidia-smi") == str(program)
    assert len(query_gpus()) == count


def test_no_gpu_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_gpus() == ()
