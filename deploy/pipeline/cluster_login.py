"""Lets a CI's job into a cluster by its identity token (OIDC), so that no password for the cluster is kept anywhere.

    cluster_login.py config     writes dist/pipeline/kubeconfig
    cluster_login.py token      what kubectl, helm and stoker ask through that kubeconfig
    cluster_login.py file       writes dist/pipeline/identity, for AWS_WEB_IDENTITY_TOKEN_FILE

CLUSTER_SERVER (https://...), CLUSTER_CA (a PEM text, no secret) and CLUSTER_AUDIENCE say which cluster. In GitHub
Actions a fresh token is asked for each time, since one lasts minutes and a deploy longer; elsewhere CLUSTER_TOKEN holds
it, as GitLab's `id_tokens` put it there. docs/cicd.md tells what the cluster must be told.
"""  # noqa: INP001 - a script for people, no package

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

OUT: Final = Path(__file__).resolve().parents[2] / "dist" / "pipeline"
API: Final = "client.authentication.k8s.io/v1beta1"
"""Not v1, which lightkube, the client of `stoker deploy`, does not know; kubectl and helm take both."""
SPARE_S: Final = 30
"""A token is renewed so long before it ends."""


def fetched_token(environment: Mapping[str, str], audience: str) -> str:
    """The job's identity token for an audience.

    Raises:
        RuntimeError: there is none, or the CI does not give one.
    """
    if given := environment.get("CLUSTER_TOKEN"):
        return given
    url, bearer = (environment.get(f"ACTIONS_ID_TOKEN_REQUEST_{part}", "") for part in ("URL", "TOKEN"))
    if not url or not bearer:
        raise RuntimeError("no identity token: give the job `permissions: id-token: write`, or set CLUSTER_TOKEN")
    request = urllib.request.Request(  # noqa: S310 - the CI's own address
        f"{url}&audience={urllib.parse.quote(audience, safe='')}", headers={"Authorization": f"Bearer {bearer}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return str(json.load(answer)["value"])
    except (OSError, ValueError, KeyError) as error:
        status = f" (HTTP {error.code})" if isinstance(error, urllib.error.HTTPError) else ""
        raise RuntimeError(f"the CI gave no identity token for the audience {audience}{status}") from None


def expiry(token: str) -> datetime | None:
    """When a JWT ends; None where it does not say, or is none."""
    try:
        part = token.split(".")[1]
        return datetime.fromtimestamp(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["exp"], UTC)
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def credential(token: str) -> dict[str, Any]:
    """What a client of Kubernetes takes from its exec plugin."""
    status: dict[str, str] = {"token": token}
    if ends := expiry(token):
        early = datetime.fromtimestamp(ends.timestamp() - SPARE_S, UTC)
        status["expirationTimestamp"] = early.isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"apiVersion": API, "kind": "ExecCredential", "status": status}


def kubeconfig(environment: Mapping[str, str], namespace: str) -> dict[str, Any]:
    """A kubeconfig without any secret: it says how to ask for a token.

    Raises:
        RuntimeError: a setting is missing.
    """
    missing = [name for name in ("CLUSTER_SERVER", "CLUSTER_CA", "CLUSTER_AUDIENCE") if not environment.get(name)]
    if missing:
        raise RuntimeError(f"set {', '.join(missing)}")
    ca = base64.b64encode(environment["CLUSTER_CA"].encode()).decode()
    plugin = {
        "apiVersion": API,
        "command": sys.executable,
        "args": [str(Path(__file__).resolve()), "token"],
        "env": [{"name": "CLUSTER_AUDIENCE", "value": environment["CLUSTER_AUDIENCE"]}],
        "interactiveMode": "Never",
        "provideClusterInfo": False,
    }
    context = {"cluster": "target", "user": "pipeline", "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "target", "cluster": {"server": environment["CLUSTER_SERVER"], "certificate-authority-data": ca}}
        ],
        "users": [{"name": "pipeline", "user": {"exec": plugin}}],
        "contexts": [{"name": "target", "context": context}],
        "current-context": "target",
    }


def main(words: list[str]) -> int:
    """Do what the one word says."""
    environment = os.environ
    try:
        if words == ["token"]:
            audience = environment.get("CLUSTER_AUDIENCE", "")
            sys.stdout.write(json.dumps(credential(fetched_token(environment, audience))) + "\n")
        elif words == ["config"]:
            text = json.dumps(kubeconfig(environment, environment.get("NAMESPACE") or "default"), indent=1)
            _keep("kubeconfig", text + "\n")  # JSON is YAML
        elif words == ["file"]:
            _keep("identity", fetched_token(environment, environment.get("IDENTITY_AUDIENCE") or "sts.amazonaws.com"))
        else:
            sys.stderr.write("usage: cluster_login.py config | token | file\n")
            return 2
    except RuntimeError as error:
        sys.stderr.write(f"cluster_login: {error}\n")
        return 1
    return 0


def _keep(name: str, text: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / name
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
    sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
