"""Models from a Hugging Face hub: the real client library against a local server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import huggingface_hub.constants
import pytest
from model_server import Served, gguf_bytes, serve_on_hub

from stoker.errors import SourceError
from stoker.models.sources import parse

REPOSITORY = "maker/Tiny-GGUF"
FILE = "sub/Tiny-Q8_0.gguf"
ADDRESS = f"hf:{REPOSITORY}/{FILE}"


@pytest.fixture
def content() -> bytes:
    return gguf_bytes()


@pytest.fixture
def hub(server, other_server, content, monkeypatch):
    """A hub with one file, whose bytes lie on another server."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    serve_on_hub(server, other_server, content, repository=REPOSITORY, file=FILE)
    return server


def test_a_file_is_fetched_pinned_to_its_commit_and_the_token_stays_with_the_hub(hub, other_server, registry, content):
    model = registry.add(parse(ADDRESS))
    assert (model.ref, model.digest, model.source) == ("tiny@1", hashlib.sha256(content).hexdigest(), ADDRESS)
    # The library may ask the hub about itself as well.
    head, get = [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert (head.method, head.path) == ("HEAD", f"/{REPOSITORY}/resolve/main/{FILE}")
    assert (get.method, get.path) == ("GET", f"/{REPOSITORY}/resolve/{hashlib.sha1(content).hexdigest()}/{FILE}")
    assert head.headers["authorization"] == get.headers["authorization"] == "Bearer hf_secret"
    assert [seen.headers.get("authorization") for seen in other_server.seen] == [None]


def test_a_broken_download_resumes(hub, other_server, registry, content):
    served = next(iter(other_server.files.values()))
    served.drops.append(5000)
    assert registry.add(parse(ADDRESS)).digest == hashlib.sha256(content).hexdigest()
    assert "range" in other_server.seen[1].headers


def test_what_the_hub_says_of_the_digest_is_held_against_it(hub, other_server, registry, left_behind):
    served = next(iter(other_server.files.values()))
    served.content = gguf_bytes(seed=9)
    with pytest.raises(SourceError, match="expected"):
        registry.add(parse(ADDRESS))
    assert left_behind() == set()
    with pytest.raises(SourceError, match="promises"):
        registry.add(parse(ADDRESS), sha256="0" * 64)


def test_a_file_that_is_stored_is_not_fetched_again(hub, other_server, registry):
    registry.add(parse(ADDRESS))
    fetched = len(other_server.seen)
    assert registry.add(parse(ADDRESS), name="again").ref == "again@1"
    assert len(other_server.seen) == fetched


@pytest.mark.parametrize(
    ("status", "code", "complaint"),
    [
        (404, "RepoNotFound", "no repository"),
        (404, "EntryNotFound", "no file 'gone.gguf'"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (403, "GatedRepo", "gated.*HF_TOKEN"),
        (401, "", "HF_TOKEN"),
        (500, "", "cannot be asked"),
    ],
)
def test_refusals_say_what_to_do(hub, registry, status, code, complaint):
    path = f"/{REPOSITORY}/resolve/v9/gone.gguf"
    hub.refusals[path] = (status, {"X-Error-Code": code} if code else {})
    with pytest.raises(SourceError, match=complaint):
        registry.add(parse(f"hf:{REPOSITORY}/gone.gguf@v9"))
    assert registry.list() == ()


def test_a_mirror_without_the_hubs_headers_serves_too(hub, registry):
    hub.files[f"/{REPOSITORY}/resolve/main/plain.gguf"] = Served(gguf_bytes(seed=3))
    # There is neither commit nor digest then; the file itself is still checked.
    assert registry.add(parse(f"hf:{REPOSITORY}/plain.gguf")).digest == hashlib.sha256(gguf_bytes(seed=3)).hexdigest()


def test_endpoint_and_token_come_from_the_environment(server, other_server, content, data_dir, tmp_path):
    serve_on_hub(server, other_server, content, repository=REPOSITORY, file=FILE, revision="v1.0")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "STOKER_"))}
    environment |= {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_from_env", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", "from stoker.cli.models import app; app()", "add", f"{ADDRESS}@v1.0", "--json"]
    done = subprocess.run(
        [*command, "--data-dir", str(data_dir)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["name"], answer["digest"]) == ("tiny", hashlib.sha256(content).hexdigest())
    asked = [seen for seen in server.seen if "/resolve/" in seen.path]
    assert [seen.headers.get("authorization") for seen in asked] == ["Bearer hf_from_env"] * 2
