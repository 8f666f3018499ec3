"""Configuration in a snapshot: no secret in the open, no path of this host's, and the same settings again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stoker.backup.configured import file_names, place, portable, to_yaml
from stoker.config.settings import ExactSettings

SECRETS = [f"marker-{number}-of-a-secret" for number in range(9)]
DATA = Path("/srv/stoker")
FULL = {
    "data_dir": DATA,
    "host": "0.0.0.0",
    "port": 8000,
    "models": [
        {"name": "local", "source": "/disk/local.gguf", "plan": {"slots": 2}},
        {"name": "far", "upstream": f"https://user:{SECRETS[0]}@far.example/", "upstream_key": SECRETS[1]},
        {"name": "plain", "upstream": "https://plain.example"},
    ],
    "keys": [{"name": "ann", "hash": "sha256:" + "0f" * 32, "expires": "2030-01-01T00:00:00+01:00"}],
    "keys_file": "/etc/stoker/keys.yaml",
    "store": {"redis": f"redis://:{SECRETS[2]}@redis.example"},
    "guard": {"canary": SECRETS[3], "secrets": [SECRETS[4]], "mode": "block"},
    "jobs": {"webhooks": {"secrets": [f"whsec_{SECRETS[5]}"], "attempts": 3}, "files_dir": DATA / "uploads"},
    "log": {"hash_key": SECRETS[6], "file": "/var/log/stoker.log"},
    "tracing": {"headers": {"authorization": SECRETS[7]}, "endpoint": "https://traces.example"},
    "routing": {
        "experts": [
            {"name": "one", "model": "local", "examples_file": "/etc/stoker/one.jsonl", "header": "x-a: b"},
            {"name": "two", "model": "local", "examples": ["write to me@example.org", "see https://a@b/"]},
        ]
    },
    "backup": {"repository": "s3://bucket/stoker", "key": SECRETS[8], "schedule": "0 3 * * *"},
}
SETTINGS = ExactSettings(**FULL)
FILES = file_names([Path("/etc/stoker/one.jsonl")])
SOURCES = {"local": "local@0123456789ab"}


def written(*, secrets: bool, closed: bool = True) -> bytes:
    return to_yaml(portable(SETTINGS, SOURCES, FILES, secrets=secrets, closed=closed), "A note.")


def load(text: bytes, target: Path = Path("/new")) -> ExactSettings:
    return ExactSettings(**yaml.safe_load(place(text, target)))


def test_no_secret_stays_in_the_open():
    text = written(secrets=False).decode()
    for secret in (*SECRETS, "0f0f"):
        assert secret not in text


def test_what_was_left_out_is_named_in_a_comment():
    comments = [line for line in written(secrets=False).decode().splitlines() if line.startswith("#")]
    assert comments[0] == "# A note."
    for name in (
        "models[1].upstream (its password)",
        "models[1].upstream_key",
        "keys",
        "store.redis",
        "guard.canary",
        "guard.secrets[0]",
        "jobs.webhooks.secrets[0]",
        "log.hash_key",
        "tracing.headers.authorization",
        "backup.key",
    ):
        assert name in comments[1]


def test_the_rest_is_a_valid_configuration_of_the_same_settings():
    again = load(written(secrets=False))
    assert again.data_dir == Path("/new")
    assert again.models[0].source == "local@0123456789ab"
    assert again.models[0].plan.slots == 2
    assert again.models[1].upstream == "https://far.example/"
    assert again.models[2].upstream == "https://plain.example"
    assert again.guard.mode == "block"
    assert again.jobs.files_dir == Path("/new/uploads")
    assert again.log.file == Path("/var/log/stoker.log")
    assert again.routing.experts[0].examples_file == Path("/new/configured/one.jsonl")
    assert again.routing.experts[1].examples == SETTINGS.routing.experts[1].examples
    assert again.backup.schedule == "0 3 * * *"
    assert again.keys_file is None
    assert again.model_fields_set <= SETTINGS.model_fields_set | {"anonymous"}


def test_keys_that_are_left_out_open_no_door():
    assert load(written(secrets=False, closed=True)).anonymous is False
    assert load(written(secrets=False, closed=False)).anonymous is None


def test_what_an_operator_opened_stays_open():
    settings = ExactSettings(data_dir=DATA, anonymous=True)
    assert portable(settings, {}, {}, secrets=False, closed=True).tree["anonymous"] is True


def test_with_secrets_all_of_them_are_there():
    found = portable(SETTINGS, SOURCES, FILES, secrets=True, closed=True)
    assert found.left_out == ()
    text = written(secrets=True)
    for secret in SECRETS:
        assert secret in text.decode()
    again = load(text)
    assert again.keys == SETTINGS.keys
    same = {"models", "data_dir", "keys_file", "routing", "jobs"}
    assert again.model_dump(exclude=same) == SETTINGS.model_dump(exclude=same)


def test_relative_places_mean_the_same_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = ExactSettings(data_dir="data", backup={"repository": "copies"}, log={"file": "data/log"})
    again = load(to_yaml(portable(settings, {}, {}, secrets=False, closed=False), ""))
    assert again.backup.repository == str(tmp_path / "copies")
    assert again.log.file == Path("/new/log")


def test_settings_that_are_unset_stay_unset():
    assert portable(ExactSettings(data_dir=DATA), {}, {}, secrets=False, closed=False).tree == {}


def test_files_of_the_same_name_get_names_of_their_own():
    paths = [Path("/a/set.yaml"), Path("/b/set.yaml"), Path("/c/.hidden"), Path("/d/ü ü"), Path("/e/...")]
    names = file_names(paths)
    assert list(names.values()) == [
        "configured/set.yaml",
        "configured/2-set.yaml",
        "configured/hidden",
        "configured/file",
        "configured/2-file",
    ]


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"- a", b"a: [", b"a: &x [1]\nb: *x\n", b"a: !!python/object:os.system {}", b"just text", b"[" * 5000],
)
def test_hostile_configuration_is_refused(text):
    with pytest.raises(ValueError, match="is "):
        place(text, Path("/new"))


def test_an_empty_configuration_only_gets_its_place():
    assert yaml.safe_load(place(b"# nothing\n", Path("/new"))) == {"data_dir": "/new"}
    assert place(b"# nothing\n", Path("/new")).startswith(b"# nothing\n")
