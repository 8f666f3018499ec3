"""deploy/compose.yaml: what it mounts is there, what it publishes is this machine's own, and no secret stands in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.running import ROOT

from stoker.config import load

COMPOSE = ROOT / "deploy" / "compose.yaml"
STACK: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
REQUIRED = {"MODEL_FILE": "/models/any.gguf", "GRAFANA_PASSWORD": "from-the-environment"}
SECRETIVE = re.compile("password|secret|token|key", re.IGNORECASE)

every_service = pytest.mark.parametrize("name", SERVICES)


def compose_command() -> list[str]:
    """Docker Compose, as a plugin or as a program; or a skipped test."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    program = shutil.which("docker-compose")
    # Version 1 is another program; it does not know this file's form.
    if program:
        version = subprocess.run([program, "version", "--short"], capture_output=True, check=False).stdout
        if not version.startswith(b"1."):
            return [program]
    pytest.skip("no Docker Compose 2; apt-get install docker-compose-v2 (Ubuntu) or docker-compose (Debian 13)")


def config(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """What `docker compose config` makes of the file, as JSON."""
    clean = {name: value for name, value in os.environ.items() if name not in REQUIRED}
    return subprocess.run(
        [*command, "-f", str(COMPOSE), "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, **variables},
    )


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Targets and sources of a service's volumes, short and long form."""
    found = {}
    for volume in service.get("volumes", ()):
        source, target = (volume["source"], volume["target"]) if isinstance(volume, dict) else volume.split(":")[:2]
        found[target] = source
    return found


def mebibytes(size: str) -> int:
    """`192m`, `4g` or `${NAME:-4g}` in MiB."""
    number, unit = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)([mg])\}?", size).groups()
    return int(number) * {"m": 1, "g": 1024}[unit]


def test_compose_itself_accepts_it() -> None:
    whole = config(compose_command(), **REQUIRED)
    assert whole.returncode == 0, whole.stderr
    services = json.loads(whole.stdout)["services"]
    assert set(services) == set(SERVICES)
    published = {(port["host_ip"], port["target"]) for entry in services.values() for port in entry.get("ports", ())}
    assert published == {("127.0.0.1", 8080), ("127.0.0.1", 3000)}


@pytest.mark.parametrize("missing", REQUIRED)
def test_compose_asks_for_what_nobody_can_guess(missing: str) -> None:
    given = {name: value for name, value in REQUIRED.items() if name != missing}
    refused = config(compose_command(), **given)
    assert refused.returncode != 0
    assert f"set {missing}" in refused.stderr


def test_only_the_api_and_grafana_are_published_and_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"stoker", "grafana"}
    for port in (port for ports in published.values() for port in ports):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:(8080|3000)", port)
    assert not any("network_mode" in service for service in SERVICES.values())
    inside = {name for name, network in STACK["networks"].items() if network and network.get("internal")}
    assert set(SERVICES["valkey"]["networks"]) <= inside
    assert set(SERVICES["prometheus"]["networks"]) <= inside


@every_service
def test_every_service_is_confined_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service)
    assert mebibytes(service["mem_limit"]) > 0
    assert service["cpus"]
    assert service["pids_limit"] > 0
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert service["healthcheck"]["interval"]


@every_service
def test_images_are_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert re.search(r"\d+\.\d+\.\d+", tag)


@every_service
def test_no_secret_stands_in_the_file(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRETIVE.search(variable):
            assert re.fullmatch(r"\$\{\w+:\?.+\}", value), (
                f"{variable} must come from the environment, without a default"
            )


@every_service
def test_what_is_mounted_is_there(name: str) -> None:
    for target, source in mounts(SERVICES[name]).items():
        if source.startswith("."):
            assert (COMPOSE.parent / source).exists(), f"{source} at {target}"
        else:
            assert source in STACK["volumes"] or source.startswith("${MODEL_FILE:?")


def test_the_image_is_built_from_this_checkout() -> None:
    build = SERVICES["stoker"]["build"]
    assert (COMPOSE.parent / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_stokers_configuration_fits_the_stack() -> None:
    targets = mounts(SERVICES["stoker"])
    settings = load(COMPOSE.parent / targets["/etc/stoker/stoker.yaml"])
    assert settings.models[0].source in targets
    assert settings.store.redis is not None
    assert re.match(r"redis://valkey:6379", settings.store.redis.get_secret_value())
    assert set(SERVICES["stoker"]["networks"]) >= set(
        SERVICES["valkey"]["networks"] + SERVICES["prometheus"]["networks"]
    )
    assert (settings.monitor.host, settings.monitor.port) == ("0.0.0.0", 9464)


def test_the_grace_period_outlasts_stokers_own() -> None:
    settings = load(ROOT / "deploy" / "compose" / "stoker.yaml")
    assert int(SERVICES["stoker"]["stop_grace_period"].removesuffix("s")) >= settings.timeouts.shutdown + 10


def test_valkeys_memory_is_bounded_below_its_containers() -> None:
    command = SERVICES["valkey"]["command"]
    most = int(command[command.index("--maxmemory") + 1].removesuffix("mb"))
    assert most <= 0.75 * mebibytes(SERVICES["valkey"]["mem_limit"])
    assert command[command.index("--maxmemory-policy") + 1] == "volatile-lru"


def test_prometheus_finds_its_files_and_stoker() -> None:
    folder = COMPOSE.parent / mounts(SERVICES["prometheus"])["/etc/prometheus"]
    scraping = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
    assert all((folder / name).is_file() for name in scraping["rule_files"])
    targets = [
        target for job in scraping["scrape_configs"] for entry in job["static_configs"] for target in entry["targets"]
    ]
    assert targets == ["stoker:9464"]


def test_grafana_finds_its_dashboards_and_prometheus() -> None:
    targets = mounts(SERVICES["grafana"])
    provisioning = COMPOSE.parent / targets["/etc/grafana/provisioning"]
    providers = provided(provisioning / "dashboards", "providers")
    for provider in providers:
        path = provider["options"]["path"]
        assert path in targets, f"{path} is not mounted"
        assert list((COMPOSE.parent / targets[path]).glob("*.json")), f"no dashboards for {path}"
    sources = provided(provisioning / "datasources", "datasources")
    assert [source["url"] for source in sources if source["type"] == "prometheus"] == ["http://prometheus:9090"]


def provided(folder: Path, key: str) -> list[dict[str, Any]]:
    """Entries of all provisioning files of a kind; at least one."""
    files = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in folder.glob("*.y*ml")]
    entries = [entry for file in files for entry in file[key]]
    assert entries, f"{folder} provides no {key}"
    return entries
