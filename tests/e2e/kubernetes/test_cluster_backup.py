"""Backups by the chart's CronJobs, to a real S3 server in the cluster, and everything back again from there."""

from __future__ import annotations

import json
import time

import pytest
from tests.cluster import RESTRICTED, Cluster, run_pod
from tests.cluster_release import LOADER, Release
from tests.probes import note

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

IDENTITY = {
    "name": "tests",
    "credentials": [{"accessKey": "e2e-access", "secretKey": "e2e-secret"}],
    "actions": ["Admin", "Read", "Write", "List"],
}
SERVE = (
    "exec weed server -dir=/data -filer -s3 -s3.config=/etc/s3/s3.json -ip=127.0.0.1 -ip.bind=127.0.0.1 "
    "-s3.ip.bind=0.0.0.0 -s3.port=8333 -s3.port.iceberg=0 -s3.port.lance=0 -s3.localSocket=/data/s3.sock "
    "-volume.max=16 -master.volumeSizeLimitMB=256"
)
WARM = """
import os, sys, time, obstore
from obstore.store import S3Store
store = S3Store("backups", client_options={"allow_http": True}, retry_config={"max_retries": 0},
    endpoint=sys.argv[1], access_key_id="e2e-access", secret_access_key="e2e-secret", region="us-east-1")
for turn in range(60):
    try:
        obstore.put(store, "warm-up", b"x")
        break
    except Exception as error:
        if turn == 59: raise
        time.sleep(1)
"""
RESTORE = """
set -e
stoker backup verify --all >&2
stoker backup restore latest /data/back >&2
cd /data/back && find . -type f -size +1M | xargs sha256sum
"""


@pytest.fixture(scope="module")
def repository(cluster: Cluster, namespace: str, image: str, release: Release) -> str:
    """An S3 server in the cluster, and the Secret `s3` with what it takes to reach it."""
    secret = {"s3.json": json.dumps({"identities": [IDENTITY]})}
    about = {"namespace": namespace}
    url = f"http://s3.{namespace}.svc:8333"
    cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {**about, "name": "s3-server"}, "stringData": secret},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {**about, "name": "s3"},
            "stringData": {
                "AWS_ACCESS_KEY_ID": "e2e-access",
                "AWS_SECRET_ACCESS_KEY": "e2e-secret",
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": url,
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**about, "name": "s3"},
            "spec": {"selector": {"app": "s3"}, "ports": [{"port": 8333}]},
        },
    )
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "s3", "mountPath": "/etc/s3"}]
    mounts.append({"name": "tmp", "mountPath": "/tmp"})
    volumes = [{"name": name, "emptyDir": {}} for name in ("data", "tmp")]
    run_pod(
        cluster,
        namespace,
        "s3",
        image,
        ["sh", "-c", SERVE],
        container={"volumeMounts": mounts},
        volumes=[*volumes, {"name": "s3", "secret": {"secretName": "s3-server"}}],
        securityContext={"fsGroup": 10001},
    )
    release.inside(LOADER, "python3", "-c", WARM, url)
    return "s3://backups/e2e"


def _run_now(cluster: Cluster, release: Release, name: str) -> tuple[float, str]:
    """Start what a CronJob would, wait until it succeeded; its seconds and its log."""
    place, job = f"--namespace={release.namespace}", f"{name}-now"
    began = time.monotonic()
    cluster.kubectl("create", "job", job, f"--from=cronjob/{release.name}-{name}", place)
    done = cluster.outcome("kubectl", "wait", "--for=condition=Complete", f"job/{job}", place, "--timeout=150s")
    log = cluster.kubectl("logs", f"job/{job}", place, "--all-containers")
    assert done.returncode == 0, f"{done.stderr}\n{log}\n{release.told()}"
    return time.monotonic() - began, log


def test_what_a_cronjob_backs_up_comes_back(cluster: Cluster, release: Release, repository: str, image: str) -> None:
    served = release.inside(release.ready()[0], "sha256sum", "/models/chat.gguf").split()[0]
    backup = {"enabled": True, "repository": repository, "existingSecret": "s3", "drill": {"enabled": True}}
    release.restore({"backup": backup})
    release.wait_ready(1)
    saved, log = _run_now(cluster, release, "backup")
    assert "snapshot 20" in log
    drilled, log = _run_now(cluster, release, "drill")
    assert "drill passed" in log
    note("backup", backup=f"{saved:.0f} s", drill=f"{drilled:.0f} s")

    environment = {"envFrom": [{"secretRef": {"name": "s3"}}], "securityContext": RESTRICTED}
    environment["env"] = [{"name": "STOKER_BACKUP__REPOSITORY", "value": repository}]
    wait = ["python3", "-c", "import time; time.sleep(1e6)"]
    place = release.namespace
    run_pod(cluster, place, "restore", image, wait, container=environment, securityContext={"fsGroup": 10001})
    files = dict(line.split()[::-1] for line in release.inside("restore", "sh", "-c", RESTORE).splitlines())
    assert served in files.values(), files
