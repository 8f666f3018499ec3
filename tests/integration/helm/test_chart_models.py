"""How a model gets to the pods."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.helm_chart import PUBLIC, environment, kinds, merged, one, rendered, server, values_of


def source(values: dict[str, Any]) -> str:
    models = json.loads(environment(server(rendered(values))[1])["STOKER_MODELS"])
    return models[0]["source"]


def test_in_the_image() -> None:
    assert source(PUBLIC) == "/models/chat.gguf"
    assert source(PUBLIC | {"model": {"name": "other"}}) == "/models/other.gguf"
    assert source(PUBLIC | {"model": {"file": "/srv/m.gguf"}}) == "/srv/m.gguf"
    models = json.loads(environment(server(rendered(values_of("baked")))[1])["STOKER_MODELS"])
    assert models == [{"name": "chat", "source": "/models/chat.gguf", "plan": {"slots": 4, "memory_mib": 1500}}]


def test_on_a_claim_that_holds_it_already() -> None:
    manifests = rendered(values_of("claim-existing"))
    spec, container = server(manifests)
    assert "PersistentVolumeClaim" not in kinds(manifests)
    assert "initContainers" not in spec
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    assert source(values_of("claim-existing")) == "/models/smollm2/model.gguf"


def test_fetched_onto_a_claim_of_the_releases() -> None:
    manifests = rendered(values_of("claim"))
    claim = one(manifests, "PersistentVolumeClaim", "chat-stoker-models")
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "nfs",
        "resources": {"requests": {"storage": "5Gi"}},
    }
    spec, container = server(manifests)
    fetch = spec["initContainers"][0]
    assert {"name": "model", "mountPath": "/data/models"} in container["volumeMounts"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "huggingface"}}]
    assert "envFrom" not in container  # the server needs no way to the source
    assert source(values_of("claim")) == f"chat@{environment(fetch)['MODEL_VERSION']}"


def test_two_slots_keep_their_versions_on_one_claim() -> None:
    own = {"source": "https://example.com/new.gguf"}
    manifests = rendered(merged(values_of("claim"), {"slots": {"green": {"enabled": True, "model": own}}}))
    told = [environment(server(manifests, slot)[1])["STOKER_MODELS"] for slot in ("blue", "green")]
    assert len({json.loads(text)[0]["source"] for text in told}) == 2
    assert kinds(manifests).count("PersistentVolumeClaim") == 1


def test_in_an_image_of_its_own() -> None:
    spec, container = server(rendered(values_of("image-volume")))
    reference = "registry.example.com/models/chat@sha256:" + "0" * 63 + "3"
    volume = {"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}
    assert volume in spec["volumes"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    assert source(values_of("image-volume")) == "/models/chat.gguf"


def test_as_the_settings_say() -> None:
    _, container = server(rendered(values_of("upstream")))
    assert "STOKER_MODELS" not in environment(container)
    hub = {"delivery": "none", "source": "hf:org/repo/file.gguf", "existingSecret": "huggingface"}
    _, container = server(rendered(PUBLIC | {"model": hub}))
    assert json.loads(environment(container)["STOKER_MODELS"])[0]["source"] == "hf:org/repo/file.gguf"
    assert container["envFrom"] == [{"secretRef": {"name": "huggingface"}}]


@pytest.mark.model
def test_what_the_fetching_container_runs_fetches_once(tmp_path: Path, model_path: Path) -> None:
    """The script itself, with the real program: the second run asks nobody, for the source is gone by then."""
    values = merged(values_of("claim"), {"model": {"source": str(tmp_path / "source.gguf"), "sha256": ""}})
    fetch = server(rendered(values))[0]["initContainers"][0]
    shutil.copy(model_path, tmp_path / "source.gguf")
    config = tmp_path / "stoker.yaml"
    config.write_text("{}", encoding="utf-8")
    variables = {name: value or "" for name, value in environment(fetch).items() if name.startswith("MODEL_")}
    told = {
        **os.environ,
        **variables,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STOKER_CONFIG": str(config),
        "STOKER_DATA_DIR": str(tmp_path / "data"),
    }
    for _ in range(2):
        command = [*fetch["command"], *fetch["args"]]
        done = subprocess.run(command, env=told, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        (tmp_path / "source.gguf").unlink(missing_ok=True)
    assert (tmp_path / "data/models/refs/chat" / f"{variables['MODEL_VERSION']}.json").exists()
