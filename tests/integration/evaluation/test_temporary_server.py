"""A `stoker serve` of its own for a while: it is there, it touches nothing, and it never outlives its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from tests.running import ROOT

from stoker.cli.temporary import temporary_server
from stoker.errors import StartupError


@pytest.fixture
def config(fake_model):
    return {"models": [fake_model.settings]}


@pytest.fixture
def place(tmp_path):
    made = tmp_path / "place"
    made.mkdir()
    return made


def models_at(url):
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        return [model["id"] for model in json.load(response)["data"]]


def test_it_answers_and_is_gone_afterwards(config, place, monkeypatch):
    monkeypatch.setenv("STOKER_PORT", "1")  # the environment's settings are not its
    monkeypatch.setenv("STOKER_NONSENSE", "x")
    before = signal.getsignal(signal.SIGTERM)
    with temporary_server(config, place, 60) as url:
        assert url.startswith("http://127.0.0.1:")
        assert models_at(url) == ["fake"]
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(urllib.error.URLError):
        models_at(url)
    assert (place / "stoker.yaml").stat().st_mode & 0o077 == 0
    assert yaml.safe_load((place / "stoker.yaml").read_text())["data_dir"] == str(place / "data")


def test_in_a_thread(config, place):
    found = []

    def serve():
        with temporary_server(config, place, 60) as url:
            found.extend(models_at(url))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert found == ["fake"]


def test_its_last_words_are_told(place):
    with (
        pytest.raises(StartupError, match=r"ended with status 1 before it was ready: .*there is no such file"),
        temporary_server({"models": [{"name": "m", "source": "/none.gguf"}]}, place, 60),
    ):
        pass


def test_a_model_that_does_not_fit_is_told_in_the_plans_words(model_path, place):
    config = {"models": [{"name": "m", "source": str(model_path), "plan": {"memory_mib": 64}}]}
    with pytest.raises(StartupError, match="MiB"), temporary_server(config, place, 60):
        pass


def test_one_that_is_never_ready_is_ended(config, place, fake_model):
    fake_model.set("never_ready")
    with pytest.raises(StartupError, match=r"not ready within 3 s; it said: "), temporary_server(config, place, 3):
        pass
    assert not children_in(place)


def test_an_exception_ends_it(config, place):
    with pytest.raises(KeyError), temporary_server(config, place, 60):
        raise KeyError
    assert not children_in(place)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_owner(config, place, sent):
    script = textwrap.dedent(
        """
        import json, sys, time
        from pathlib import Path
        from stoker.cli.temporary import temporary_server
        with temporary_server(json.loads(sys.argv[1]), Path(sys.argv[2]), 60) as url:
            print(url, flush=True)
            time.sleep(3600)
        """
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(config), str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=dict(os.environ),
    )
    url = owner.stdout.readline().decode().strip()
    assert models_at(url) == ["fake"]
    owner.send_signal(sent)
    owner.wait(30)
    owner.stdout.close()
    limit = time.monotonic() + 30
    while children_in(place) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not children_in(place)


def children_in(directory: Path) -> list[str]:
    """Command lines that name a directory's configuration."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"{directory}/stoker.yaml" in line:
            found.append(line)
    return found
