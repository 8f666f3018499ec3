"""deploy/pipeline/cluster_login.py: a CI's identity becomes a credential of the cluster, and nothing secret is kept."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from tests.running import ROOT

SCRIPT = ROOT / "deploy" / "pipeline" / "cluster_login.py"


def jwt(**claims: object) -> str:
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims))
    return ".".join([*parts, "signature"])


TOKEN = jwt(exp=1795553490, aud="kubernetes")


@pytest.fixture
def issuer() -> Iterator[str]:
    """Stands in for the CI: gives a token for `kubernetes` to whoever has the job's password."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            audience = parse_qs(urlsplit(self.path).query).get("audience")
            allowed = self.headers["Authorization"] == "Bearer job-password" and audience == ["kubernetes"]
            self.send_response(200 if allowed else 403)
            self.end_headers()
            self.wfile.write(json.dumps({"value": TOKEN} if allowed else {}).encode())

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/token?api-version=2"
        server.shutdown()
        thread.join()


def login(word: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, as a copy, so that it writes beside itself."""
    script = folder / "deploy" / "pipeline" / SCRIPT.name
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPT.read_text(encoding="utf-8"))
    return subprocess.run(
        [sys.executable, str(script), word],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_jobs_identity_becomes_a_credential_that_ends_before_it_does(tmp_path: Path, issuer: str) -> None:
    given = {"ACTIONS_ID_TOKEN_REQUEST_URL": issuer, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "job-password"}
    done = login("token", tmp_path, CLUSTER_AUDIENCE="kubernetes", **given)
    assert done.returncode == 0, done.stderr
    credential = json.loads(done.stdout)
    assert credential["kind"] == "ExecCredential"
    assert credential["status"] == {"token": TOKEN, "expirationTimestamp": "2026-11-24T20:51:00Z"}


def test_a_token_that_was_given_is_taken(tmp_path: Path) -> None:
    done = login("token", tmp_path, CLUSTER_TOKEN="opaque")
    assert json.loads(done.stdout)["status"] == {"token": "opaque"}


def test_refusals_are_told_without_the_password(tmp_path: Path, issuer: str) -> None:
    given = {"ACTIONS_ID_TOKEN_REQUEST_URL": issuer, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "job-password"}
    done = login("token", tmp_path, CLUSTER_AUDIENCE="another", **given)
    assert done.returncode == 1
    assert "no identity token for the audience another (HTTP 403)" in done.stderr
    assert "job-password" not in done.stderr
    assert "id-token: write" in login("token", tmp_path).stderr


def test_the_kubeconfig_holds_no_secret_and_asks_for_a_token_each_time(tmp_path: Path) -> None:
    given = {"CLUSTER_SERVER": "https://k8s.example.com", "CLUSTER_CA": "-----BEGIN", "CLUSTER_AUDIENCE": "kubernetes"}
    done = login("config", tmp_path, NAMESPACE="models", CLUSTER_TOKEN="a-secret", **given)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "dist" / "pipeline" / "kubeconfig"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "a-secret" not in text
    config = yaml.safe_load(text)
    assert config["contexts"][0]["context"]["namespace"] == "models"
    plugin = config["users"][0]["user"]["exec"]
    assert plugin["apiVersion"].endswith("/v1beta1")  # all that lightkube knows
    asked = subprocess.run(
        [plugin["command"], *plugin["args"]],
        env={"CLUSTER_TOKEN": "a-secret", **{one["name"]: one["value"] for one in plugin["env"]}},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(asked.stdout)["status"]["token"] == "a-secret"


def test_missing_settings_are_named(tmp_path: Path) -> None:
    done = login("config", tmp_path, CLUSTER_SERVER="https://k8s.example.com")
    assert done.returncode == 1
    assert "set CLUSTER_CA, CLUSTER_AUDIENCE" in done.stderr


def test_the_identity_for_storage_is_a_private_file(tmp_path: Path) -> None:
    assert login("file", tmp_path, CLUSTER_TOKEN="opaque").returncode == 0
    file = tmp_path / "dist" / "pipeline" / "identity"
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("opaque", 0o600)
