"""`stoker evaluate`, as users run it: the real model, and an engine with faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from tests.running import FakeModel, Stoker
from tests.versions import bad_version

pytestmark = pytest.mark.model


def evaluate(*arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("STOKER_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "stoker", "evaluate", *map(str, arguments)],
        cwd=cwd,
        env={**clean, "XDG_DATA_HOME": str(cwd / "xdg"), "TMPDIR": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def write(path: Path, cases, **fields) -> Path:
    path.write_text(yaml.safe_dump({"cases": cases, **fields}))
    return path


EASY = [
    {"id": "capital", "prompt": "What is the capital of England?", "expect_any": ["london"], "tags": ["facts"]},
    {"id": "wrong", "prompt": "What is the capital of Germany?", "expect_any": ["paris"], "tags": ["facts"]},
    {
        "id": "json",
        "prompt": "The colour of the sky as JSON.",
        "tags": ["json"],
        "expect": {
            "json_schema": {"type": "object", "properties": {"c": {"enum": ["blue"]}}, "required": ["c"]},
            "contains_all": ["blue"],
        },
    },
]


def test_the_shipped_set_is_passed_by_the_real_model(stoker_url, tmp_path):
    done = evaluate("smoke", "--url", stoker_url, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout.splitlines()[-1]
    assert "pass rate of facts" in done.stdout


def test_the_shipped_set_is_not_passed_by_a_model_that_repeats_questions(tmp_path):
    model = bad_version(tmp_path / "base.gguf")
    done = evaluate("smoke", "--model", model, "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (done.returncode, told["errors"]) == (1, 0)
    assert told["pass_rate"] < 0.2


def test_a_failed_run_says_which_and_why(stoker_url, tmp_path):
    file = write(tmp_path / "set.yaml", EASY, thresholds={"pass_rate": 0.9, "tags": {"json": 1.0}})
    junit, report = tmp_path / "report.xml", tmp_path / "report.json"
    done = evaluate(file, "--url", stoker_url, "--junit", junit, "--output", report, cwd=tmp_path)
    assert done.returncode == 1
    assert "none of 'paris' is in it" in done.stdout
    assert "Berlin" in done.stdout
    assert "pass rate 66.7 %, at least 90 % wanted" in done.stdout
    suite = ET.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "2", "0")
    told = json.loads(report.read_text())
    assert [row["outcome"] for row in told["results"]] == ["passed", "failed", "passed"]
    assert told["ttft_p95"] > 0
    assert told["tokens_per_s"] > 0


def test_json_and_one_tag(stoker_url, tmp_path):
    file = write(tmp_path / "set.yaml", EASY)
    done = evaluate(file, "--tag", "json", "--json", cwd=tmp_path, STOKER_URL=stoker_url)
    told = json.loads(done.stdout)
    assert (done.returncode, told["cases"], told["model"]) == (0, 1, "smollm2")
    assert told["verdict"]["passed"]


def test_a_model_is_served_for_the_occasion_and_compared(model_path, stoker_url, tmp_path):
    file = write(tmp_path / "set.yaml", EASY, thresholds={"pass_rate_drop": 0.0})
    done = evaluate(file, "--model", model_path, "--against", stoker_url, "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told["model"].startswith("smollm2-135m-instruct@")
    assert told["against"]["model"] == "smollm2"
    assert told["differences"] == []
    assert [check["name"] for check in told["verdict"]["checks"]] == ["errors", "pass_rate_drop"]
    assert not list(tmp_path.glob("stoker-evaluate-*"))


def test_a_configured_model_runs_as_it_is_configured(model_path, tmp_path):
    fake = FakeModel(tmp_path, model_path, plan={"slots": 2, "context": 1024})
    (tmp_path / "stoker.yaml").write_text(yaml.safe_dump({"models": [fake.settings]}))
    file = write(tmp_path / "set.yaml", [{"prompt": "a", "expect": {"exact": "w0 w1 w2 w3 w4"}}])
    done = evaluate(file, "--model", "fake", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_failed_requests_fail_the_run(model_path, tmp_path):
    fake = FakeModel(tmp_path, model_path, plan={"slots": 2, "context": 1024})
    cases = [{"id": f"c{n}", "prompt": f"question {n}", "expect_any": ["w0"]} for n in range(6)]
    file = write(tmp_path / "set.yaml", cases, thresholds={"pass_rate": 0.0}, timeout=4.0, concurrency=1)
    with Stoker(tmp_path, {"models": [fake.settings]}) as running:
        assert evaluate(file, "--url", running.url, cwd=tmp_path).returncode == 0
        fake.set("refuse")
        done = evaluate(file, "--url", running.url, cwd=tmp_path)
        assert done.returncode == 1
        assert "failed requests 6, at most 0 wanted" in done.stdout
        fake.set(delay=2.0)  # five tokens take ten seconds
        slow = evaluate(file, "--url", running.url, "--concurrency", 6, cwd=tmp_path)
        assert slow.returncode == 1
        assert "no whole answer within 4 s" in slow.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["none.yaml"], 2, "none.yaml: cannot be read"),
        (["smoke", "--url", "http://127.0.0.1:1"], 1, "stoker serve"),
        (["smoke", "--url", "nonsense://x"], 1, "not a server's address"),
        (["smoke", "--model", "nothing@1"], 1, "nothing"),
        (["smoke", "--tag", "nothing"], 2, "its tags: facts, json, length"),
        (["smoke", "--junit", "/nowhere/x.xml"], 2, "cannot be written"),
        (["smoke", "--model", "x", "--against", "chat", "--against-model", "y"], 2, "--against NAME@VERSION"),
        (["judged.yaml"], 2, "--judge-url"),
        (["smoke", "--concurrency", "0"], 2, "concurrency"),
        ([], 2, "SET"),
    ],
)
def test_mistakes_are_told_in_words(arguments, status, words, tmp_path):
    judge = {"judge": {"criteria": "is kind"}}
    write(tmp_path / "judged.yaml", [{"prompt": "a", "expect": judge}])
    done = evaluate(*arguments, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)
    assert words in " ".join(done.stderr.split())


def test_ctrl_c_leaves_nothing_behind(model_path, tmp_path):
    """The server that was served for the occasion ends, and its directory goes."""
    file = write(tmp_path / "set.yaml", [{"id": str(n), "prompt": f"Count to {n}00."} for n in range(500)])
    for sent in (signal.SIGINT, signal.SIGTERM):
        running = subprocess.Popen(
            [sys.executable, "-m", "stoker", "evaluate", str(file), "--model", str(model_path)],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "xdg")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = wait_for(lambda: next(iter(tmp_path.glob("stoker-evaluate-*/log")), None))
        wait_for(lambda log=log: "ready after" in log.read_text())
        running.send_signal(sent)
        assert running.wait(30) != 0
        assert not list(tmp_path.glob("stoker-evaluate-*"))
        assert not served_in(tmp_path)


def served_in(directory: Path) -> list[str]:
    """Command lines of servers whose configuration is in a directory."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if "serve --config" in line and str(directory) in line:
            lines.append(line)
    return lines


def wait_for(look, within=60.0):
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")
