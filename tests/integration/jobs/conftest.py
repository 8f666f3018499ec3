"""Shared pieces of the webhooks' tests: a receiver, one with TLS, policies."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable

import pytest
from hook_server import CERTIFIED, KEY, Certificate, HookServer

from stoker.jobs.webhooks import WebhookPolicy


@pytest.fixture
def make_policy() -> Callable[..., WebhookPolicy]:
    """A policy that allows private addresses, and waits long enough for a slow machine."""

    def make(**changed: object) -> WebhookPolicy:
        settings: dict[str, object] = {
            "secrets": (KEY,),
            "attempts": 5,
            "backoff_s": 1.0,
            "backoff_max_s": 60.0,
            "timeout_s": 30.0,
            "allow_private": True,
        }
        return WebhookPolicy(**(settings | changed))

    return make


@pytest.fixture
async def hook() -> AsyncIterator[HookServer]:
    async with HookServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate; install it with `apt-get install openssl`")
    place = tmp_path_factory.mktemp("certificate")
    made = Certificate(place / "certificate.pem", place / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(made.key), "-out", str(made.file), "-days", "2", "-subj", "/CN=hooks.example"]
    subprocess.run([*command, "-addext", f"subjectAltName={CERTIFIED}"], check=True, capture_output=True, timeout=60)
    return made


@pytest.fixture
async def tls_hook(certificate: Certificate) -> AsyncIterator[HookServer]:
    async with HookServer(tls=certificate.server()).running() as server:
        yield server
