"""A Docker engine for tests: finds one, builds the image with it, and runs containers that are cleared away."""

from __future__ import annotations

import configparser
import functools
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from tests.running import ROOT

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
IMAGE = "stoker-test:image"
DEFAULT_BASE = "python:3.12-slim-bookworm"
MARKER = "only-the-secret-knows.invalid"
"""A host that is named in the build's secret and nowhere else."""
READY_WITHIN_S = 90.0
BUILT_WITHIN_S = 850.0


class Docker:
    """A client program of Docker's, beside an engine that answers."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "1"}

    def run(self, *words: str, check: bool = True, stdin: str | None = None, timeout: float = 120) -> str:
        """Standard output of one command; AssertionError with what it said when it fails, unless `check` is off."""
        done = self.outcome(*words, stdin=stdin, timeout=timeout)
        assert not check or done.returncode == 0, f"docker {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def outcome(self, *words: str, stdin: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One command's exit status and output."""
        return subprocess.run(
            [self.program, *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of a container or an image."""
        return json.loads(self.run("inspect", name))[0]

    def has_image(self, name: str) -> bool:
        """Whether an image is here."""
        return self.outcome("image", "inspect", name).returncode == 0

    def build(self, tag: str, context: Path, arguments: Mapping[str, str], secrets: Mapping[str, Path]) -> None:
        """Build the Dockerfile; what the tag named before is removed, unless something else needs it."""
        before = self.outcome("image", "inspect", "--format={{.Id}}", tag).stdout.strip()
        words = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        words += [f"--secret=id={name},src={path}" for name, path in secrets.items()]
        self.run(
            "build", "--quiet", f"--file={DOCKERFILE}", f"--tag={tag}", *words, str(context), timeout=BUILT_WITHIN_S
        )
        if before and before != self.inspect(tag)["Id"]:
            self.run("image", "rm", before, check=False)


@functools.cache
def _usable() -> tuple[Docker | None, str]:
    """The first client on PATH that reaches an engine and can build with BuildKit; or none, and why."""
    reason = "no Docker client; on Debian and Ubuntu: apt-get install docker.io"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        program = shutil.which("docker", path=folder)
        if program is None:
            continue
        docker = Docker(program)
        versions = docker.outcome("version", "--format", "{{.Client.Version}} {{.Server.Version}}")
        if versions.returncode:
            reason = f"no Docker engine answers ({versions.stderr.strip()[:200]}); start one: systemctl start docker"
        # Clients before 23 have BuildKit inside, later ones in a plugin.
        elif int(versions.stdout.split(".")[0]) < 23 or docker.outcome("buildx", "version").returncode == 0:
            return docker, ""
        else:
            reason = "this Docker client lacks BuildKit; its plugin: apt-get install docker-buildx (Ubuntu, Debian 13)"
    return None, reason


def find_docker() -> Docker:
    """A Docker with an engine, or a skipped test."""
    docker, reason = _usable()
    if docker is None:
        pytest.skip(reason)
    return docker


def find_base(docker: Docker) -> str:
    """The base image: DOCKER_BASE_IMAGE, the Dockerfile's own, or any with Python that is here; or a skipped test."""
    named = os.environ.get("DOCKER_BASE_IMAGE")
    if named or docker.has_image(DEFAULT_BASE):
        return named or DEFAULT_BASE
    listed = docker.run("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    # "python:3.12", "debian-python:3.11": the last part of the repository's name tells.
    fitting = [name for name in listed if name.partition(":")[0].rsplit("/", 1)[-1].endswith("python")]
    if not fitting:
        pytest.skip(f"no base image: docker pull {DEFAULT_BASE}, or name another with DOCKER_BASE_IMAGE")
    return fitting[0]


def build_secrets(directory: Path) -> dict[str, Path]:
    """This machine's index and certificates for pip, as the secrets that the Dockerfile takes."""
    secrets = {"pip.conf": directory / "pip.conf"}
    own = configparser.ConfigParser(interpolation=None)
    own["global"] = {"trusted-host": MARKER}
    if index := pip_setting("index-url"):
        own["global"]["index-url"] = index
    if certificates := pip_setting("cert"):
        own["global"]["cert"] = "/run/secrets/ca.pem"
        secrets["ca.pem"] = Path(certificates)
    with secrets["pip.conf"].open("w") as file:
        own.write(file)
    return secrets


def pip_setting(name: str) -> str | None:
    """What pip is told on this machine, by its environment or its files."""
    given = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if given:
        return given
    asked = subprocess.run(
        ["python3", "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


class Container:
    """A container that runs in the background, with its port 8080 at `url`; removed with its volumes at the end.

    Args:
        docker: where.
        image: of what.
        options: of `docker run`.
        command: what follows the image's name.
    """

    def __init__(self, docker: Docker, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        self._docker = docker
        self._words = ["--publish=127.0.0.1::8080", *options, image, *command]
        self.id = ""
        self.url = ""

    def __enter__(self) -> Self:
        self.id = self._docker.run("run", "--detach", *self._words).strip()
        return self

    def __exit__(self, *details: object) -> None:
        self._docker.run("rm", "--force", "--volumes", self.id)

    @property
    def log(self) -> str:
        """Everything that it wrote."""
        said = self._docker.outcome("logs", self.id)
        return said.stdout + said.stderr

    @property
    def state(self) -> dict[str, Any]:
        """Running, ExitCode, OOMKilled and so on."""
        return self._docker.inspect(self.id)["State"]

    def execute(self, *command: str) -> str:
        """Run a command inside."""
        return self._docker.run("exec", self.id, *command)

    def wait_ready(self) -> Self:
        """Wait until it takes requests."""
        self.url = "http://" + self._docker.run("port", self.id, "8080/tcp").splitlines()[0]
        for _ in self.until("ready"):
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                continue
        raise AssertionError  # `until` raises before

    def until(self, what: str) -> Iterator[None]:
        """Turns of a waiting loop; AssertionError with the log when the container ends or it takes too long."""
        limit = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < limit and self.state["Running"]:
            yield
            time.sleep(0.1)
        raise AssertionError(f"not {what}; {self.state}\n{self.log[-3000:]}")

    def stop(self, grace_s: int) -> int:
        """`docker stop`: SIGTERM, and SIGKILL after so many seconds; the exit status."""
        self._docker.run("stop", f"--time={grace_s}", self.id, timeout=grace_s + 30)
        return int(self.state["ExitCode"])
