"""The stack of deploy/compose.yaml, brought up for real: with the images that this engine has."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from tests.containers import IMAGE, Docker, build_secrets, find_base, find_docker
from tests.integration.test_compose import COMPOSE, SERVICES, compose_command
from tests.running import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PASSWORD = uuid.uuid4().hex
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of Germany?"}], "temperature": 0}


@dataclass(frozen=True)
class Stack:
    """A project of Compose's that runs."""

    command: list[str]
    environment: dict[str, str] = field(repr=False)

    def run(self, *words: str) -> str:
        """Standard output of a subcommand."""
        done = subprocess.run(
            [*self.command, *words], capture_output=True, text=True, check=False, env=self.environment, timeout=300
        )
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        """The end of what the services wrote."""
        words = [*self.command, "logs", "--tail=20"]
        return subprocess.run(words, capture_output=True, text=True, check=False, env=self.environment).stdout

    def url(self, variable: str) -> str:
        """Where a published port is."""
        return f"http://127.0.0.1:{self.environment[variable]}"


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def need(docker: Docker, *services: str) -> None:
    """Skip the test where an image of the stack's is missing."""
    missing = [name for name in (SERVICES[service]["image"] for service in services) if not docker.has_image(name)]
    if missing:
        pytest.skip("not on this machine: " + "; ".join(f"docker pull {name}" for name in missing))


@pytest.fixture(scope="module")
def docker() -> Docker:
    return find_docker()


@pytest.fixture(scope="module")
def stack(docker: Docker, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Stoker and the store, up and healthy."""
    command = compose_command()
    need(docker, "valkey")
    docker.build(IMAGE, ROOT, {"BASE": find_base(docker)}, build_secrets(tmp_path_factory.mktemp("secrets")))
    docker.run("tag", IMAGE, "stoker:test")
    environment = docker.environment | {
        "STOKER_VERSION": "test",
        "STOKER_MEMORY": "700m",
        "STOKER_CPUS": "1",
        "MODEL_FILE": str(model_path.resolve()),
        "GRAFANA_PASSWORD": PASSWORD,
        "API_PORT": free_port(),
        "GRAFANA_PORT": free_port(),
    }
    running = Stack([*command, "-f", str(COMPOSE), "-p", f"stoker-test-{uuid.uuid4().hex[:8]}"], environment)
    try:
        running.run("up", "--detach", "--no-build", "--wait", "stoker", "valkey")
        yield running
    finally:
        running.run("down", "--volumes", "--timeout=45")
        docker.run("image", "rm", "stoker:test", check=False)


def test_it_answers_and_remembers_in_the_store(stack: Stack) -> None:
    limit = time.monotonic() + 60
    while True:
        answer = httpx.post(f"{stack.url('API_PORT')}/v1/chat/completions", json=QUESTION, timeout=60)
        assert "Berlin" in answer.json()["choices"][0]["message"]["content"]
        if answer.headers["x-cache"] == "hit":
            break
        assert time.monotonic() < limit, "the answer was never found again"
    assert int(stack.run("exec", "-T", "valkey", "valkey-cli", "dbsize")) > 0


def test_nothing_but_the_api_can_be_reached_from_the_host(stack: Stack) -> None:
    rows = [json.loads(line) for line in stack.run("ps", "--format", "json").splitlines()]
    published = {
        (port["URL"], port["TargetPort"]) for row in rows for port in row["Publishers"] if port["PublishedPort"]
    }
    assert published <= {("127.0.0.1", 8080), ("127.0.0.1", 3000)}
    assert ("127.0.0.1", 8080) in published


def test_a_key_closes_the_door(stack: Stack) -> None:
    try:
        key = stack.run("run", "--rm", "-T", "stoker", "keys", "create", "caller").split()
        models = f"{stack.url('API_PORT')}/v1/models"
        limit = time.monotonic() + 10
        while httpx.get(models, timeout=10).status_code != 401:
            assert time.monotonic() < limit, "the key was not taken in"
            time.sleep(0.2)
        secret = next(word for word in key if word.startswith("sk-stoker-"))
        assert httpx.get(models, headers={"Authorization": f"Bearer {secret}"}, timeout=10).status_code == 200
    finally:
        stack.run("exec", "-T", "stoker", "rm", "-f", "/data/keys.yaml")
        stack.run("restart", "stoker")
        stack.run("up", "--detach", "--no-build", "--wait", "stoker")


def test_prometheus_scrapes_the_monitor_address(docker: Docker, stack: Stack) -> None:
    need(docker, "prometheus")
    stack.run("up", "--detach", "--no-build", "--wait", "prometheus")
    limit = time.monotonic() + 60
    while True:
        answer = stack.run(
            "exec", "-T", "prometheus", "wget", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/targets?state=active"
        )
        targets = {entry["scrapeUrl"]: entry["health"] for entry in json.loads(answer)["data"]["activeTargets"]}
        if targets == {"http://stoker:9464/metrics": "up"}:
            break
        assert time.monotonic() < limit, answer
        time.sleep(1)


def test_grafana_wants_the_password_and_has_the_dashboards(docker: Docker, stack: Stack) -> None:
    need(docker, "prometheus", "grafana")
    stack.run("up", "--detach", "--no-build", "--wait", "grafana")
    search = f"{stack.url('GRAFANA_PORT')}/api/search?type=dash-db"
    assert httpx.get(search, timeout=30).status_code == 401
    assert httpx.get(search, auth=("admin", "admin"), timeout=30).status_code == 401
    assert httpx.get(search, auth=("admin", PASSWORD), timeout=30).json()
