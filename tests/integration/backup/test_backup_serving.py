"""A snapshot of a running server, and the real server on an empty host."""

from __future__ import annotations

import json
import urllib.request

import pytest
import yaml
from tests.backup_data import restore_to
from tests.backup_stores import repository_at
from tests.running import Stoker

from stoker.backup.create import Options, create
from stoker.backup.occupancy import InUse
from stoker.config import load
from stoker.models.partial import Quiet

pytestmark = pytest.mark.model


def ask(url: str) -> str:
    body = json.dumps({"text": "Say hello.", "max_tokens": 8, "cache": False}).encode()
    request = urllib.request.Request(url + "/query", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["text"]


def test_what_is_restored_serves_the_same_answers(model_path, tmp_path):
    repository = repository_at(str(tmp_path / "repository"))
    (tmp_path / "old").mkdir()
    models = [{"name": "smollm2", "source": str(model_path), "plan": {"slots": 1, "context": 512}}]
    with Stoker(tmp_path / "old", {"models": models}) as running:
        config = tmp_path / "old" / "stoker.yaml"
        create(load(config), repository, Options(jobs=True, config_file=config), Quiet())
        answer = ask(running.url)
        with pytest.raises(InUse, match="stop that"):
            restore_to(tmp_path / "old" / "data", repository, force=True)
    restore_to(tmp_path / "new" / "data", repository)
    settings = yaml.safe_load((tmp_path / "new" / "data" / "stoker.yaml").read_text())
    assert str(model_path) not in str(settings)
    with Stoker(tmp_path / "new", settings) as restored:
        assert ask(restored.url) == answer
