"""The container image: built from the Dockerfile, then run by a real engine with production's rights and limits."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.containers import IMAGE, MARKER, Container, Docker, build_secrets, find_base, find_docker, pip_setting
from tests.running import ROOT

from stoker import __version__

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CONFINED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
LIMITED = ("--memory=700m", "--memory-swap=700m", "--cpus=1")
OPEN = "--env=STOKER_ALLOW_PUBLIC=true"
MODEL = "/models/smollm2.gguf"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of Germany?"}], "temperature": 0}
STORY = {"messages": [{"role": "user", "content": "Tell a long story about a lighthouse."}], "temperature": 0}
MIB = 1 << 20
LARGEST_ADDITION = 450 * 1000 * 1000
"""Bytes that the image may add to its base."""


@pytest.fixture(scope="module")
def docker() -> Docker:
    return find_docker()


@pytest.fixture(scope="module")
def base(docker: Docker) -> str:
    return find_base(docker)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_secrets(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def image(docker: Docker, base: str, secrets: dict[str, Path]) -> str:
    """The image, built from this checkout."""
    docker.build(IMAGE, ROOT, {"BASE": base, "REVISION": "0123abc"}, secrets)
    return IMAGE


@pytest.fixture(scope="module")
def mounted(model_path: Path) -> str:
    """The option that mounts the real model at MODEL."""
    return f"--volume={model_path.resolve()}:{MODEL}:ro"


@pytest.fixture(scope="module")
def server(docker: Docker, image: str, mounted: str) -> Iterator[Container]:
    """A server that may do nothing but serve, with one CPU and 700 MiB."""
    options = (*CONFINED, *LIMITED, OPEN, mounted, "--health-interval=1s")
    with Container(docker, image, *options, command=("serve", MODEL)) as running:
        yield running.wait_ready()


def test_it_answers_as_the_unprivileged_user_of_a_closed_system(server: Container) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, timeout=60)
    assert answer.status_code == 200
    assert "Berlin" in answer.json()["choices"][0]["message"]["content"]
    statuses = server.execute("sh", "-c", "cat /proc/[0-9]*/status")
    assert len(re.findall(r"^Name:\s+(?:stoker|python)", statuses, re.MULTILINE)) >= 2  # the gateway and its engine
    assert set(re.findall(r"^Uid:\s+(.*)$", statuses, re.MULTILINE)) == {"\t".join(["10001"] * 4)}
    assert set(re.findall(r"^CapBnd:\s+(\w+)$", statuses, re.MULTILINE)) == {"0" * 16}
    assert set(re.findall(r"^NoNewPrivs:\s+(\d)$", statuses, re.MULTILINE)) == {"1"}


def test_the_plan_keeps_to_the_containers_limits(docker: Docker, image: str, mounted: str, server: Container) -> None:
    plan = re.search(r"plan: CPU, (\d+) threads, .* memory (\d+) of (\d+) MiB", server.log)
    assert plan, server.log
    threads, needed, granted = map(int, plan.groups())
    assert threads == 1
    assert needed <= granted <= 0.9 * (700 - 150)  # less the gateway's part and a tenth
    report = json.loads(docker.run("run", "--rm", *CONFINED, *LIMITED, mounted, image, "doctor", MODEL, "--json"))
    assert report["host"]["cpus"] == 1
    assert report["host"]["memory_limit"] == 700 * MIB
    assert report["plan"]["threads"] == 1
    assert report["plan"]["granted_bytes"] <= 0.9 * (700 - 150) * MIB


def test_the_log_is_json_lines_after_the_greeting(server: Container) -> None:
    httpx.post(f"{server.url}/query", json={"text": "hello", "max_tokens": 4}, timeout=60).raise_for_status()
    for _ in server.until("logged"):
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        if any(line["event"] == "request" and line["route"] == "/query" for line in lines):
            break


def test_its_health_check_follows_readiness(docker: Docker, image: str, server: Container) -> None:
    for _ in server.until("healthy"):
        if server.state["Health"]["Status"] == "healthy":
            break
    kind, program, *words = docker.inspect(image)["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    alone = docker.outcome("run", "--rm", "--network=none", f"--entrypoint={program}", image, *words)
    assert alone.returncode == 1, "healthy without a server"


def test_what_does_not_fit_is_refused_with_words(docker: Docker, image: str, mounted: str) -> None:
    small = (*CONFINED, "--memory=150m", "--memory-swap=150m", OPEN, mounted)
    with Container(docker, image, *small, command=("serve", MODEL)) as refused:
        assert docker.run("wait", refused.id).strip() == "1"
        assert refused.state["OOMKilled"] is False
        assert re.search(r"does not fit: \d+ MiB needed, \d+ MiB granted", refused.log), refused.log
        assert "What would fit:" in refused.log


def test_stopping_finishes_the_stream_that_has_begun(docker: Docker, image: str, mounted: str) -> None:
    begun = threading.Event()

    def read(url: str) -> str:
        lines = []
        asked = {**STORY, "stream": True, "max_tokens": 400}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=120) as response:
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) > 4:
                    begun.set()
        return "\n".join(lines)

    options = (*CONFINED, *LIMITED, OPEN, mounted)
    with (
        Container(docker, image, *options, command=("serve", MODEL)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = pool.submit(read, server.wait_ready().url)
        assert begun.wait(60), server.log
        assert server.stop(grace_s=45) == 0, server.log
        assert "stopping: finishing 1 requests" in server.log
        text = stream.result(60)
    assert '"error"' not in text
    assert re.search(r'"finish_reason":"(stop|length)"', text)
    assert text.rstrip().endswith("data: [DONE]")


def test_it_writes_only_under_data_and_tmp(docker: Docker, image: str, mounted: str) -> None:
    # With a root file system that would take it: /data is a volume, and so not in the difference.
    with Container(docker, image, OPEN, mounted, command=("serve", MODEL)) as server:
        httpx.post(f"{server.wait_ready().url}/v1/chat/completions", json=QUESTION, timeout=60).raise_for_status()
        changed = [line.split(" ", 1)[1] for line in docker.run("diff", server.id).splitlines()]
    allowed = {"/models", MODEL}  # where the model was mounted
    assert [path for path in changed if path not in allowed and path != "/tmp" and not path.startswith("/tmp/")] == []


def test_without_keys_it_stays_closed_and_a_key_opens_it(docker: Docker, image: str, mounted: str) -> None:
    refused = docker.outcome("run", "--rm", *CONFINED, image)
    assert refused.returncode == 1
    assert "no API key is needed" in refused.stderr
    assert "STOKER_ALLOW_PUBLIC=true" in refused.stderr
    volume = f"stoker-test-{uuid.uuid4().hex}"
    data = f"--volume={volume}:/data"
    try:
        made = docker.run("run", "--rm", *CONFINED, data, image, "keys", "create", "caller")
        key = re.search(r"sk-stoker-\S+", made)
        assert key, made
        with Container(docker, image, *CONFINED, mounted, data, command=("serve", MODEL)) as server:
            models = f"{server.wait_ready().url}/v1/models"
            assert httpx.get(models, timeout=30).status_code == 401
            known = httpx.get(models, headers={"Authorization": f"Bearer {key[0]}"}, timeout=30)
            assert known.json()["data"][0]["id"] == "smollm2"
    finally:
        docker.run("volume", "rm", "--force", volume)


@pytest.fixture
def context(model_path: Path, tmp_path: Path) -> Path:
    """What the image is built from, with a model beside it."""
    for name in (".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("requirements", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "models").mkdir()
    shutil.copy(model_path, tmp_path / "models" / "any.gguf")
    return tmp_path


def test_a_model_can_be_baked_in(docker: Docker, base: str, secrets: dict[str, Path], context: Path) -> None:
    baked = f"{IMAGE}-baked"
    try:
        docker.build(baked, context, {"BASE": base, "MODEL": "models/any.gguf", "MODEL_NAME": "tiny"}, secrets)
        with Container(docker, baked, *CONFINED, *LIMITED, OPEN) as server:  # the image's own command alone
            answer = httpx.post(f"{server.wait_ready().url}/v1/chat/completions", json=QUESTION, timeout=60).json()
        assert answer["model"] == "tiny"
        assert "Berlin" in answer["choices"][0]["message"]["content"]
    finally:
        docker.run("image", "rm", "--force", baked, check=False)


def test_it_holds_no_compiler_no_cache_and_no_second_installer(docker: Docker, image: str) -> None:
    script = """
        for program in cc gcc g++ clang cpp ld make cmake cargo rustc git; do command -v $program; done
        find / -xdev \\( -path '*/.cache/*' -o -path '/var/lib/apt/lists/*' -o -name '*.deb' -o -name '*.whl' \
            -path '/tmp/*' \\) -type f
        ls -d /opt/stoker/lib/python3*/site-packages/pip /opt/stoker/bin/pip* /opt/build /source /wheels /run/secrets/*
        true
    """
    found = docker.run("run", "--rm", "--user=0", "--network=none", "--entrypoint=sh", image, "-c", script)
    assert found == ""


def test_no_index_address_is_left_in_it(docker: Docker, base: str, image: str) -> None:
    steps = docker.run("history", "--no-trunc", "--format={{.CreatedBy}}", image).splitlines()
    below = docker.run("history", "--no-trunc", "--format={{.CreatedBy}}", base).splitlines()
    told = "\n".join([*(step for step in steps if step not in below), json.dumps(docker.inspect(image))])
    index = urlsplit(pip_setting("index-url") or "https://pypi.org/simple").hostname
    for word in filter(None, (MARKER, index, "pypi.org", "index-url", "PIP_CONFIG_FILE")):
        assert word not in told
    search = ("--entrypoint=grep", image, "-rlsF", MARKER, "/etc", "/home", "/opt", "/root", "/usr", "/var", "/data")
    assert docker.outcome("run", "--rm", "--user=0", "--network=none", *search).stdout == ""


def test_labels_user_ports_and_signals(docker: Docker, image: str) -> None:
    config = docker.inspect(image)["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "Stoker"
    assert labels["description"]
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == __version__
    assert labels["revision"] == "0123abc"
    assert config["User"] == "10001:10001"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "9464/tcp"}
    assert (config["Entrypoint"], config["Cmd"]) == (["stoker"], ["serve"])
    assert config.get("StopSignal", "SIGTERM") == "SIGTERM"
    assert set(config["Volumes"]) == {"/data"}


def test_its_size_stays_within_bounds(
    docker: Docker, base: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, below = docker.inspect(image)["Size"], docker.inspect(base)["Size"]
    with capsys.disabled():
        sys.stdout.write(f"\nimage {whole / 1e6:.0f} MB, of which {base} {below / 1e6:.0f} MB\n")
    assert whole - below < LARGEST_ADDITION


def test_the_builder_sees_only_what_it_needs(docker: Docker, base: str) -> None:
    tag = "stoker-test:context"
    recipe = f"FROM {base}\nCOPY . /context\n"
    try:
        docker.run("build", "--quiet", f"--tag={tag}", "--file=-", str(ROOT), stdin=recipe)
        found = docker.run("run", "--rm", "--network=none", "--entrypoint=find", tag, "/context", "-type", "f")
    finally:
        docker.run("image", "rm", "--force", tag, check=False)
    files = [Path(line).relative_to("/context") for line in found.splitlines()]
    allowed = {"LICENSE", "README.md", "pyproject.toml", "requirements", "src", "models"}
    assert {file.parts[0] for file in files} <= allowed
    assert {"pyproject.toml", "requirements", "src"} <= {file.parts[0] for file in files}
    assert [file for file in files if file.suffix == ".pyc" or file.name == "keys.yaml"] == []
