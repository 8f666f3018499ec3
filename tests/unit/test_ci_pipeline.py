"""deploy/pipeline: what a run is told, what each step decides, what is kept and said; and whole runs with stand-ins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.running import ROOT

PIPELINE = ROOT / "deploy" / "pipeline"
sys.path.insert(0, str(PIPELINE))
try:
    import order as orders
    import report
    import steps
finally:
    sys.path.remove(str(PIPELINE))

DIGEST = "sha256:" + "ab" * 32
HERE = steps.Here(
    version="0.1.0",
    revision="62d2a93c12ca2121fad40f7082afae4b0ae2ce48",
    created="2026-11-24T21:17:38+00:00",
    programs=frozenset({"docker", "helm", "stoker"}),
    image="ghcr.io/me/stoker:1",
    has_cluster=True,
)


def told(**environment: str) -> orders.Order:
    return orders.read_order(environment, steps.STEPS)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"VARIANT": "rocm"}, "it is cpu or cuda"),
        ({"VARIANT": "cuda"}, "needs ENGINE_CONF=FILE and ENGINE_SHA256"),
        ({"SCAN_FAIL_ON": "grave"}, "one of low, medium, high, critical"),
        ({"REFERENCE": "stoker:1"}, "an image with its digest is wanted"),
        ({"REGISTRY": "https://ghcr.io/me"}, "that is no registry"),
        ({"TAG": "a b"}, "that is no tag"),
        ({"RELEASE": "-x"}, "that is no release"),
        ({"MODEL_SHA256": "abc"}, "64 hexadecimal digits"),
        ({"PIP_CONF": "/nowhere/pip.conf"}, "there is no such file"),
        ({"REQUIRE": "scan, sbomb"}, "REQUIRE=sbomb: there is no such step"),
    ],
)
def test_nonsense_is_refused_with_words(environment: dict[str, str], words: str) -> None:
    with pytest.raises(orders.Refused, match=words):
        told(**environment)


def test_what_is_empty_counts_as_not_told() -> None:
    assert told(MODEL_NAME="", RELEASE=" ") == orders.Order()


@pytest.mark.parametrize(
    ("environment", "dirty", "tag"),
    [
        ({}, False, "0.1.0-62d2a93c12ca"),
        ({}, True, "0.1.0-62d2a93c12ca-dirty"),
        ({"MODEL": "hf:o/r/f.gguf", "MODEL_VERSION": "2"}, False, "0.1.0-62d2a93c12ca-chat-2"),
        ({"MODEL": "hf:o/r/f.gguf", "MODEL_SHA256": "cd" * 32}, False, "0.1.0-62d2a93c12ca-chat-cdcdcdcdcdcd"),
        ({"MODEL": "m", "MODEL_VERSION": "v2+q4"}, False, "0.1.0-62d2a93c12ca-chat-v2-q4"),
        ({"TAG": "mine"}, True, "mine"),
    ],
)
def test_a_tag_tells_program_commit_and_model(environment: dict[str, str], dirty: bool, tag: str) -> None:
    assert orders.image_tag(told(**environment), "0.1.0", HERE.revision, dirty=dirty) == tag


def test_an_image_is_named_after_its_registry() -> None:
    assert orders.image_name(told(REGISTRY="10.0.0.1:5000/me/"), "1") == "10.0.0.1:5000/me/stoker:1"
    assert orders.image_name(told(), "1") == "stoker:1"


def test_the_build_is_told_the_model_and_secrets_only_by_their_paths(tmp_path: Path) -> None:
    secret = tmp_path / "model.env"
    secret.write_text("HF_TOKEN=never-shown")
    order = told(MODEL="m.gguf", MODEL_VERSION="2", MODEL_SHA256="cd" * 32, MODEL_ENV=str(secret))
    (command,) = steps.image(order, replace(HERE, model="models/chat-2.gguf")).commands
    assert {
        "--build-arg=MODEL=models/chat-2.gguf",
        "--build-arg=MODEL_NAME=chat",
        "--build-arg=VARIANT=cpu",
        f"--build-arg=REVISION={HERE.revision}",
        "--label=dev.stoker.model=chat@2",
        f"--secret=id=model.env,src={secret}",
    } <= set(command)
    assert "never-shown" not in " ".join(command)
    assert not any(word.endswith("=") for word in command)


def test_an_image_without_a_model_says_nothing_of_one() -> None:
    (command,) = steps.image(told(), HERE).commands
    assert "MODEL" not in " ".join(command)


@pytest.mark.parametrize(
    ("programs", "sbom", "scan"),
    [
        ({"syft", "grype", "trivy"}, "syft", "grype"),
        ({"trivy"}, "trivy", "trivy"),
        ({"syft"}, "syft", ""),
        (set(), "", ""),
    ],
)
def test_contents_are_listed_and_scanned_by_what_is_there(programs: set[str], sbom: str, scan: str) -> None:
    here = replace(HERE, programs=frozenset(programs))
    listed, scanned = steps.sbom(told(), here), steps.scan(told(SCAN_FAIL_ON="high"), here)
    assert [command[0] for command in listed.commands] == ([sbom] if sbom else [])
    assert [command[0] for command in scanned.commands] == ([scan] if scan else [])
    assert bool(listed.skipped) is not bool(sbom)
    assert bool(scanned.skipped) is not bool(scan)
    assert "high" in str(scanned).lower() or not scan


def test_a_scan_reads_the_list_of_contents_where_there_is_one() -> None:
    here = replace(HERE, programs=frozenset({"grype"}), has_sbom=True)
    assert steps.scan(told(), here).commands[0][1] == f"sbom:{steps.SBOM}"


def test_a_push_goes_to_the_registry_else_through_the_loader_else_nowhere() -> None:
    assert steps.push(told(REGISTRY="ghcr.io/me"), HERE).commands == (("docker", "push", HERE.image),)
    loaded = steps.push(told(IMAGE_LOADER="kind load docker-image --name x"), HERE)
    assert loaded.commands == (("kind", "load", "docker-image", "--name", "x", HERE.image),)
    assert "IMAGE_LOADER" in steps.push(told(), HERE).skipped


def test_a_deploy_takes_what_was_pushed_or_named() -> None:
    pushed = f"ghcr.io/me/stoker:1@{DIGEST}"
    order = told(NAMESPACE="models", BAKE="5m", GATE="off", KUBE_CONTEXT="staging")
    (command,) = steps.deploy(order, replace(HERE, pushed=pushed)).commands
    assert command[:6] == ("stoker", "deploy", "start", "stoker", "--image", pushed)
    assert command[6:] == (
        *("--namespace", "models", "--kube-context", "staging", "--bake", "5m"),
        *("--no-gate", "--yes"),
    )
    named = told(REFERENCE=f"other:2@{DIGEST}")
    assert f"other:2@{DIGEST}" in steps.deploy(named, replace(HERE, pushed=pushed)).commands[0]


@pytest.mark.parametrize(
    ("environment", "change", "words"),
    [
        ({"DEPLOY": "off"}, {"pushed": "x"}, "DEPLOY=off"),
        ({}, {"pushed": "x", "has_cluster": False}, "no cluster"),
        ({}, {}, "no image that a cluster could take"),
    ],
)
def test_why_a_deploy_is_skipped(environment: dict[str, str], change: dict[str, Any], words: str) -> None:
    assert words in steps.deploy(told(**environment), replace(HERE, **change)).skipped


def test_what_a_deploy_needs_is_named() -> None:
    with pytest.raises(orders.Refused, match=r"no helm here: https://helm\.sh"):
        steps.deploy(told(), replace(HERE, programs=frozenset({"stoker"}), pushed="x"))


def test_a_drill_is_told_the_repository() -> None:
    (command,) = steps.drill(told(REPOSITORY="s3://backups/stoker"), HERE).commands
    assert command == ("stoker", "backup", "drill", "--repository", "s3://backups/stoker")


def test_sizes_are_told_by_part() -> None:
    history = (
        '0\tCMD ["serve"]\n98000000\tCOPY /baked/ / # buildkit\n3000000\tCOPY /program/opt/stoker /opt/stoker\n'
        "320000000\tCOPY /opt/stoker /opt/stoker # buildkit\n500000\tRUN ... libgomp1 ...\n120000000\tADD rootfs\n"
    )
    parts = steps.parts_of(history)
    assert parts["model"] == 98_000_000
    assert parts["base and settings"] == 120_000_000
    assert report.size_words(parts).startswith("542 MB: libraries 320 MB, base and settings 120 MB, model 98 MB")


def test_a_run_is_kept_told_and_a_step_counts_once(tmp_path: Path) -> None:
    state = report.State(image="r/stoker:1", pushed=f"r:5000/stoker:1@{DIGEST}")
    state.add(report.Result("scan", "failed", 2, "grype ended with status 1"))
    state.add(report.Result("scan", "ok", 61))
    state.add(report.Result("sbom", "skipped", note="neither | nor"))
    state.write(tmp_path / "state.json")
    again = report.State.read(tmp_path / "state.json")
    assert again == state
    text = report.markdown(again)
    assert "| scan | ok | 1 min 1 s |" in text
    assert "neither \\| nor" in text
    assert report.outputs(again) == f"reference=r:5000/stoker:1@{DIGEST}\nrepository=r:5000/stoker\ndigest={DIGEST}\n"
    (tmp_path / "state.json").write_text("{}")
    assert report.State.read(tmp_path / "state.json") == report.State()


class Checkout:
    """A copy of the pipeline beside stand-ins for every program, which write down how they were called."""

    def __init__(self, folder: Path, **statuses: int) -> None:
        self.root = folder / "checkout"
        shutil.copytree(PIPELINE, self.root / "deploy" / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.called = folder / "called"
        for name in ("docker", "helm", "syft", "grype", "stoker", "make"):
            digests = f"image\\ inspect*) echo 'ghcr.io/me/stoker@{DIGEST} other@{DIGEST}'"
            said = f"case \"$*\" in {digests};; history*) printf '7\\tx\\n';; esac"
            script = f'#!/bin/sh\necho "{name} $*" >>{self.called}\n{said}\nexit {statuses.get(name, 0)}\n'
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.touch()

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.root / "deploy" / "pipeline" / "run.py"), *words],
            env={"PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin", "HOME": str(self.root), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        return [line.split()[0] for line in self.called.read_text().splitlines()]


def test_the_whole_chain_runs_in_order_and_deploys_the_digest(tmp_path: Path) -> None:
    here = Checkout(tmp_path)
    model = tmp_path / "new.gguf"
    model.write_bytes(b"GGUF")
    done = here.run(
        "pipeline", MODEL=str(model), MODEL_VERSION="2", REGISTRY="ghcr.io/me", KUBECONFIG=str(here.kubeconfig), TAG="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert here.calls == ["make", "make", "docker", "docker", "syft", "grype", "docker", "docker", "stoker"]
    assert f"--image ghcr.io/me/stoker:1@{DIGEST} --yes" in here.called.read_text()
    assert (here.root / "models" / "chat-2.gguf").read_bytes() == b"GGUF"
    summary = (here.root / "dist" / "pipeline" / "summary.md").read_text()
    assert summary in done.stdout
    assert hashlib.sha256(b"GGUF").hexdigest() in summary
    kept = json.loads((here.root / "dist" / "pipeline" / "state.json").read_text())
    assert {one["step"]: one["outcome"] for one in kept["results"]} == dict.fromkeys(steps.PIPELINE, "ok")


def test_steps_one_by_one_know_what_came_before(tmp_path: Path) -> None:
    here = Checkout(tmp_path)
    for step in ("image", "sbom", "scan", "push"):
        assert here.run(step, REGISTRY="ghcr.io/me", TAG="1").returncode == 0
    assert f"reference=ghcr.io/me/stoker:1@{DIGEST}" in here.run("outputs").stdout
    assert "| push | ok |" in here.run("summary").stdout


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    here = Checkout(tmp_path, grype=1)
    done = here.run("pipeline", REGISTRY="ghcr.io/me", SKIP_TESTS="1")
    assert done.returncode == 1
    assert here.calls[-1] == "grype"
    assert "| scan | failed |" in done.stdout
    assert "grype ended with status 1" in done.stdout


def test_what_is_required_is_not_skipped(tmp_path: Path) -> None:
    here = Checkout(tmp_path)
    (here.bin / "syft").unlink()
    assert "sbom: skipped, neither syft nor trivy" in here.run("sbom").stdout
    done = here.run("sbom", REQUIRE="sbom scan")
    assert (done.returncode, "neither syft nor trivy is here" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MODEL": "nowhere.gguf"}, "there is no such file, and it is no address"),
        ({"MODEL": __file__, "MODEL_SHA256": "cd" * 32}, "and MODEL_SHA256 says"),
    ],
)
def test_a_model_that_is_not_what_was_meant_is_refused(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    done = Checkout(tmp_path).run("image", **environment)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_dry_run_runs_nothing_and_tells_all(tmp_path: Path) -> None:
    here = Checkout(tmp_path)
    done = here.run("pipeline", DRY_RUN="1", REGISTRY="ghcr.io/me", KUBECONFIG=str(here.kubeconfig))
    assert done.returncode == 0
    assert not here.called.exists()
    assert "stoker deploy start stoker --image" in done.stdout


def test_an_address_is_shown_without_its_query(tmp_path: Path) -> None:
    done = Checkout(tmp_path).run("image", MODEL="https://host/model.gguf?signature=secret")
    assert "https://host/model.gguf?..." in done.stdout
    assert "signature" not in done.stdout
