"""The configuration: precedence, and errors that name key, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stoker.config import Settings, load
from stoker.errors import ConfigError


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("STOKER_CONFIG", "STOKER_PORT", "STOKER_DATA_DIR", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def write(tree: object) -> Path:
    path = Path("stoker.yaml")
    path.write_text(yaml.safe_dump(tree))
    return path


def test_flags_beat_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().port == 8080
    write({"port": 1000, "queue": {"max_requests": 1, "max_tokens": 11}})
    assert load().port == 1000
    monkeypatch.setenv("STOKER_PORT", "2000")
    monkeypatch.setenv("STOKER_QUEUE__MAX_REQUESTS", "2")
    settings = load(flags={"queue": {"max_tokens": None}})
    assert (settings.port, settings.queue.max_requests, settings.queue.max_tokens) == (2000, 2, 11)
    settings = load(flags={"port": 3000, "queue": {"max_requests": 3}})
    assert (settings.port, settings.queue.max_requests, settings.queue.max_tokens) == (3000, 3, 11)


def test_opentelemetrys_own_variable_names_the_collector_where_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load().tracing.endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert load().tracing.endpoint == "http://collector:4318"
    write({"tracing": {"endpoint": "http://other:4318"}})
    assert load().tracing.endpoint == "http://other:4318"
    write({"tracing": {"sample": 0.5}})
    monkeypatch.setenv("STOKER_TRACING__ENDPOINT", "http://third:4318")
    assert (load().tracing.endpoint, load().tracing.sample) == ("http://third:4318", 0.5)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"port": 99999}, ["port = 99999", "65535"]),
        ({"prot": 1}, ["prot", "unknown key", "port"]),
        ({"queue": {"max_request": 1}}, ["queue.max_request", "unknown key", "max_requests"]),
        ({"models": [{"name": "a"}]}, ["models[0]", "source", "upstream"]),
        ({"models": [{"name": "a", "source": "x"}] * 2}, ["once"]),
        ({"models": [{"name": "default", "source": "x"}]}, ["reserved"]),
        ({"models": [{"name": "a/b", "source": "x"}]}, ["models[0].name", "'a/b'"]),
        ({"default_model": "x"}, ["default_model", "'x'"]),
        ({"models": [{"name": "a", "source": "x", "plan": {"slots": 0}}]}, ["models[0].plan.slots = 0"]),
        ({"keys": [{"name": "a", "hash": "sha256:" + 64 * "0", "scope": 1}]}, ["keys[0].scope", "unknown", "scopes"]),
        ({"keys": [{"name": "a", "hash": "my-secret"}]}, ["keys[0].hash", "sha256"]),
        ({"routing": {"experts": [{"name": "a"}]}}, ["routing.experts[0].model"]),
        ({"routing": {"experts": [{"name": "a", "model": "b"}]}}, ["a.model", "'b'", "not among models"]),
        (
            {"models": [{"name": "a", "source": "x"}], "routing": {"experts": [{"name": "a", "model": "a"}]}},
            ["another"],
        ),
        ([1], ["key: value"]),
    ],
)
def test_errors_name_the_key_and_the_remedy(tree: object, words: list[str]) -> None:
    path = write(tree)
    with pytest.raises(ConfigError) as caught:
        load(path)
    for word in words:
        assert word in caught.value.message
    assert "stoker" in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "nothing.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(bad)


def test_a_mistyped_variable_is_no_silent_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_PROT", "1")
    with pytest.raises(ConfigError, match="STOKER_PROT"):
        load()


def test_variables_that_kubernetes_makes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("STOKER_PORT_80_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("STOKER_PORT", "tcp://10.0.0.1:80")
    assert load().port == 8080
    write({"port": 1000})
    assert load().port == 1000


def test_secrets_do_not_show() -> None:
    write({"models": [{"name": "a", "upstream": "http://x", "upstream_key": "sk-secret"}]})
    settings = load(flags={"port": 1})
    assert settings.models[0].upstream_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(settings)
    assert "sk-secret" not in json.dumps(settings.model_dump(mode="json"))


def test_settings_are_frozen_and_every_key_is_described() -> None:
    schema = Settings.model_json_schema()
    for definition in schema["$defs"].values():
        for name, value in definition.get("properties", {}).items():
            assert value.get("description") or "$ref" in value, name
