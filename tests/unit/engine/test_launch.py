"""Plans become argument lists: of our own backend, which reads every option back, and of an operator's program."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.config import PlanConfig
from stoker.engine.backends import llamacpp
from stoker.engine.host import Host
from stoker.engine.launch import BACKEND, custom_command, llamacpp_command, offload_devices
from stoker.engine.plan import Plan, make_plan
from stoker.models.gguf import read_header


@pytest.fixture
def plan(model_path: Path) -> Plan:
    host = Host.plain(cpus=4, memory_bytes=8 * 2**30)
    wishes = PlanConfig(threads=3, slots=5, context=1024, batch=64, cache_type="q8_0")
    return make_plan(read_header(model_path), host, wishes, gpu_offload_supported=False)


def test_the_backend_reads_what_is_written_for_it(plan: Plan) -> None:
    command = llamacpp_command(plan, Path("/m.gguf"), Path("/s.sock"))
    assert command[1:3] == ["-m", BACKEND]
    options = llamacpp.parse(list(command[3:]))
    assert (options.model, options.socket) == ("/m.gguf", "/s.sock")
    assert (options.threads, options.slots, options.context, options.batch) == (3, 5, 1024, 64)
    params = llamacpp.parameters(options)
    assert params.n_ctx == 5 * 1024
    assert params.n_batch == params.n_ubatch == 64
    assert params.cpuparams.n_threads == 3
    assert list(params.hostnames) == ["/s.sock"]


def test_places_in_an_operators_command_are_filled_in(plan: Plan) -> None:
    given = ["server", "--host", "{socket}", "-m", "{model}", "-c", "{total_context}", "x={slots},{threads}", "{other}"]
    command = custom_command(given, plan, Path("/m.gguf"), Path("/s.sock"))
    assert command == ["server", "--host", "/s.sock", "-m", "/m.gguf", "-c", "5120", "x=5,3", "{other}"]


def test_the_installed_build_can_be_asked_for_its_devices() -> None:
    assert all(isinstance(name, str) and not name.startswith("CPU") for name in offload_devices())
