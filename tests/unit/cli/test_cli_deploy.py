"""`stoker deploy` from its command line: a helm program that is a script, and a cluster of memory."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.deploys import DEFAULTS, Killed, World
from typer.testing import CliRunner

from stoker.cli import deploy
from stoker.cli.main import app
from stoker.errors import ConfigError, OperatorError, StokerError
from stoker.rollout import cluster_api, cluster_drive

HELM = f"""#!{sys.executable}
import json, os, sys
place = os.environ["HELM_PLACE"]
words = sys.argv[1:]
stdin = sys.stdin.read()
with open(place + "/calls", "a") as file:
    file.write(json.dumps([words, stdin]) + "\\n")
if words[0] == "version":
    print(os.environ.get("HELM_VERSION", "v3.19.0"))
elif words[0] == "history":
    print(json.dumps([{{"revision": 1, "status": "deployed", "updated": "2026-11-24T20:00:00.123456789Z"}}]))
elif words[:2] == ["get", "values"]:
    print(open(place + ("/full" if "--all" in words else "/values")).read())
elif words[0] == "template":
    active = json.loads(stdin).get("active", "blue")
    print(f"kind: Service\\nmetadata: {{{{name: chat}}}}\\nspec: {{{{selector: {{{{slot: {{active}}}}}}}}}}")
elif words[0] == "upgrade":
    sys.exit("Error: UPGRADE FAILED: no such chart")
"""


@pytest.fixture
def helm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A helm that writes down what it is asked."""
    program = tmp_path / "bin" / "helm"
    program.parent.mkdir()
    program.write_text(HELM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "values").write_text("null")
    (tmp_path / "full").write_text(json.dumps(DEFAULTS))
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("HELM_PLACE", str(tmp_path))
    return tmp_path


class Kubernetes:
    """The cluster of a world."""

    world = World()

    def __init__(self, release: str, namespace: str | None, context: str | None) -> None:
        self.namespace = namespace or "default"
        assert (release, context) == ("chat", None)
        for name in ("slots", "serving", "metrics", "gate_log"):
            setattr(self, name, getattr(self.world, name))

    def version(self) -> str:
        return "v1.34.0"

    def close(self) -> None:
        """As the real one."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> type[Kubernetes]:
    Kubernetes.world = World()
    monkeypatch.setattr(cluster_api, "Kubernetes", Kubernetes)
    return Kubernetes


@pytest.fixture
def world(cluster: type[Kubernetes], monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose Helm is of memory, too."""
    from types import SimpleNamespace

    from stoker.rollout import cluster_helm

    made = cluster.world
    made.check = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(cluster_helm, "Helm", lambda *_: made)
    clock = SimpleNamespace(time=made.time, sleep=made.sleep)
    monkeypatch.setattr(cluster_drive, "time", clock)
    monkeypatch.setattr(deploy, "time", clock)
    real = cluster_drive.Driver
    monkeypatch.setattr(
        cluster_drive, "Driver", lambda helm, site, view, wish=None: real(helm, site, view, wish, made.sleep)
    )
    return made


def run(verb: str, *arguments: str, chart: bool = True) -> Result:
    more = ["--chart", "chart.tgz"] if chart else []
    return CliRunner().invoke(app, ["deploy", verb, "chat", *arguments, *more])


def words_of(result: Result) -> str:
    assert isinstance(result.exception, StokerError), (result.output, result.exception)
    return result.exception.message


def calls(helm: Path) -> list[Any]:
    return [json.loads(line) for line in (helm / "calls").read_text().splitlines()]


def test_start_status_history_rollback(world: World) -> None:
    result = run("start", "--image", "chat:2", "--yes", "--bake", "30s")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout == "green serves chat: succeeded (chat:2)\n"
    assert [line[10:].split()[0] for line in result.stderr.splitlines() if line[10] != " "] == [
        "loading",
        "baking",
        "succeeded",
    ]
    told = json.loads(run("status", "--json", chart=False).stdout)
    assert (told["serves"], told["deploy"]["step"]) == ("green", "succeeded")
    assert "1 of 1 pods ready" in run("status", chart=False).stdout
    assert run("rollback").exit_code == 0
    assert world.active == "blue"
    deploys = json.loads(run("history", "--json", chart=False).stdout)["data"]
    assert [(one["title"], one["step"]) for one in deploys] == [("back to blue", "succeeded"), ("chat:2", "succeeded")]
    assert "back to blue" in run("history", chart=False).stdout


def test_a_refused_one_says_why(world: World) -> None:
    world.bad_gate = {"chat:2"}
    result = run("start", "--image", "chat:2", "--yes", "--json")
    assert "refused: the gate was not passed: pass rate 8.3 %" in words_of(result)
    assert "blue serves chat" in words_of(result)
    assert json.loads(result.stdout)["step"] == "refused"


def test_one_at_a_time_and_resume_and_abort(world: World) -> None:
    world.kill_at = ("after", 1)
    with pytest.raises(Killed):
        run("start", "--image", "chat:2", "--yes")
    assert "is under way (loading)" in words_of(run("start", "--image", "chat:3", "--yes"))
    assert "stoker deploy resume" in run("status", chart=False).stdout
    world.kill_at = None
    assert run("abort").exit_code == 0
    assert "no deploy is under way" in words_of(run("resume"))
    assert "no deploy is under way" in words_of(run("abort"))
    assert "nothing to go back to" in words_of(run("rollback"))


def test_dry_run_shows_values_and_objects(helm: Path, cluster: type[Kubernetes]) -> None:
    result = run("start", "--image", "chat:2", "--dry-run", "-n", "models")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "+active: green" in result.stdout
    assert "+    slot: green" in result.stdout
    assert all("--kube-version=v1.34.0" in call for call, _ in calls(helm) if call[0] == "template")
    assert not [call for call, _ in calls(helm) if call[0] == "upgrade"]
    assert all("--namespace=models" in call for call, _ in calls(helm) if call[0] != "version")


def test_values_go_by_standard_input(helm: Path, cluster: type[Kubernetes]) -> None:
    (helm / "values").write_text(json.dumps({"config": {"word": "hidden-word"}}))
    result = run("start", "--image", "chat:2", "--yes")
    assert "helm upgrade chat: UPGRADE FAILED: no such chart" in words_of(result)
    ((words, stdin),) = [call for call in calls(helm) if call[0][0] == "upgrade"]
    assert "hidden-word" not in " ".join(words)
    assert json.loads(stdin)["config"] == {"word": "hidden-word"}
    assert {"--reset-values", "--values=-", "chart.tgz"} <= set(words)


def test_a_set_goes_into_the_values(helm: Path, cluster: type[Kubernetes], tmp_path: Path) -> None:
    file = tmp_path / "set.yaml"
    file.write_text("cases:\n- prompt: What is 2 + 2?\n  expect_any: ['4', four]\n")
    run("start", "--image", "chat:2", "--yes", "--set-file", str(file))
    ((_, stdin),) = [call for call in calls(helm) if call[0][0] == "upgrade"]
    assert "What is 2 + 2?" in json.loads(stdin)["gate"]["set"]
    file.write_text("nonsense")
    assert run("start", "--image", "chat:2", "--set-file", str(file)).exit_code != 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing new is named"),
        (("--image", "chat"), "must be REPOSITORY:TAG"),
        (("--model", "hf:org/repo/a.gguf"), "is in the image"),
    ],
)
def test_orders_that_mean_nothing(helm: Path, cluster: type[Kubernetes], words: tuple[str, ...], said: str) -> None:
    result = run("start", "--yes", *words)
    assert isinstance(result.exception, ConfigError)
    assert said in result.exception.message


def test_what_is_missing_is_said(
    helm: Path, cluster: type[Kubernetes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HELM_VERSION", "v3.9.4")
    assert "helm is v3.9" in words_of(run("status", chart=False))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "no `helm` on PATH" in words_of(run("status", chart=False))
    monkeypatch.chdir(tmp_path)
    assert "--chart" in words_of(run("resume", chart=False))


def test_no_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OperatorError, match="KUBECONFIG"):
        cluster_api.Kubernetes("chat", None, None)


def test_helm_can_say_its_last_words_when_its_parent_was_killed(helm: Path) -> None:
    """A helm that is told to end writes to its output first; a pipe without a reader would end it there."""
    program = helm / "bin" / "helm"
    program.write_text(
        f"#!{sys.executable}\nimport os, signal, sys, time\nplace = os.environ['HELM_PLACE']\n"
        "def end(*_):\n    print('cancelled', flush=True)\n    open(place + '/wrote', 'w').close()\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\nopen(place + '/began', 'w').close()\ntime.sleep(60)\n"
    )
    code = "from stoker.rollout.cluster_helm import Helm; Helm('chat', 'chart.tgz').upgrade({}, 'why')"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        _wait_for(helm / "began")
        process.kill()
    _wait_for(helm / "wrote")


def _wait_for(file: Path) -> None:
    limit = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < limit, file
        time.sleep(0.02)
