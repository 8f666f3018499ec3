"""What a drill's server is configured to be, and what is written down of a drill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.backup.drill import KEPT, Drill, DrillError, Step, UnknownModel, stage
from stoker.config import Settings

DATA = Path("/restored")
ONE = {"models": [{"name": "chat", "source": "chat@1"}]}


def test_only_how_models_answer_is_taken_over() -> None:
    outside = {
        "host": "0.0.0.0",
        "port": 80,
        "keys": [{"name": "me"}],
        "keys_file": "/etc/keys.yaml",
        "store": {"redis": "redis://shared"},
        "backup": {"repository": "s3://x", "schedule": "* * * * *"},
        "tracing": {"endpoint": "http://collector"},
        "log": {"file": "/var/log/stoker"},
        "monitor": {"port": 9464},
        "rate_limits": {"anonymous": {"requests": 1}},
        "jobs": {"webhooks": {}},
        "generation": {"max_tokens": 9},
        "invented": {"later": True},
    }
    staged = stage({**ONE, **outside}, ["chat@1"], DATA).settings
    assert staged["generation"] == {"max_tokens": 9}
    assert set(staged) <= KEPT | {"host", "port", "data_dir", "anonymous"}
    assert (staged["host"], staged["port"], staged["data_dir"]) == ("127.0.0.1", 0, "/restored")
    Settings(**staged)


def test_a_program_that_a_snapshot_names_is_not_run() -> None:
    restored = {"models": [{"name": "chat", "source": "chat@1", "command": ["/bin/harm", "{socket}"]}]}
    staged = stage(restored, ["chat@1"], DATA)
    assert staged.settings["models"] == ONE["models"]
    assert "program" in staged.left_out[0]


def test_every_kept_setting_is_one() -> None:
    assert set(Settings.model_fields) >= KEPT


def test_servers_by_url_are_left_out_with_what_leads_to_them() -> None:
    restored = {
        "models": [{"name": "far", "upstream": "http://far"}, {"name": "chat", "source": "chat@1"}],
        "default_model": "far",
        "routing": {
            "threshold": 0.4,
            "experts": [
                {"name": "a", "model": "far"},
                {"name": "b", "model": "chat", "fallback": "a"},
                {"name": "c", "model": "chat", "fallback": "b"},
            ],
        },
    }
    staged = stage(restored, ["chat@1"], DATA)
    assert staged.model == "chat"
    assert staged.left_out == ("far (by URL)",)
    assert staged.settings["default_model"] == "chat"
    experts = staged.settings["routing"]["experts"]
    assert experts == [{"name": "b", "model": "chat"}, {"name": "c", "model": "chat", "fallback": "b"}]
    Settings(**staged.settings)


def test_the_newest_stored_model_stands_in_for_a_configuration() -> None:
    staged = stage({}, ["old@1", "new@2"], DATA)
    assert staged.settings["models"] == [{"name": "new", "source": "new@2"}]
    assert staged.model == "new"


@pytest.mark.parametrize("source", ["hf:org/repo/file.gguf", "/elsewhere/model.gguf", "chat@2", "other"])
def test_a_model_from_elsewhere_proves_nothing(source: str) -> None:
    with pytest.raises(DrillError, match="not in the snapshot"):
        stage({"models": [{"name": "chat", "source": source}]}, ["chat@1"], DATA)


def test_a_name_alone_means_its_newest_version() -> None:
    assert stage({"models": [{"name": "x", "source": "chat"}]}, ["chat@1"], DATA).model == "x"


def test_nothing_to_try() -> None:
    with pytest.raises(DrillError, match="holds no model"):
        stage({}, [], DATA)
    with pytest.raises(DrillError, match="by URL"):
        stage({"models": [{"name": "far", "upstream": "http://far"}]}, ["chat@1"], DATA)


def test_a_model_that_is_not_served() -> None:
    assert stage(ONE, ["chat@1"], DATA, "chat").model == "chat"
    with pytest.raises(UnknownModel, match="there is chat"):
        stage(ONE, ["chat@1"], DATA, "other")


def test_the_record() -> None:
    good = Step("find", 0.1234567, ok=True, note="x")
    bad = Step("restore", 2.0, ok=False, note="y" * 9000)
    done = Drill(time=1.0, snapshot="s", host="h", version="0", steps=(good, bad))
    record = json.loads(json.dumps(done.document()))
    assert record["ok"] is False
    assert record["failed_step"] == "restore"
    assert record["seconds"] == {"find": 0.123, "restore": 2.0}
    assert len(record["reason"]) == 2000
    assert Drill(time=1.0, snapshot="s", host="h", version="0", steps=(good,)).ok
    assert not Drill(time=1.0, snapshot=None, host="h", version="0", steps=()).ok
