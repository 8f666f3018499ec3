"""Keys: who is let in, what that one may do, and how the keys file changes under a running server."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stoker.admission.auth import Caller, Forbidden, KeyRing, Unauthorized
from stoker.admission.keys import changing, hash_of, new_key, read_keys
from stoker.config import KeyConfig, Settings
from stoker.errors import ConfigError

SECRET = "sk-stoker-" + "a" * 43


def key(name: str = "one", secret: str = SECRET, **more: Any) -> dict[str, Any]:
    return {"name": name, "hash": hash_of(secret), **more}


def ring(tmp_path: Path, *keys: dict[str, Any], **more: Any) -> KeyRing:
    return KeyRing(Settings(keys=keys, data_dir=tmp_path, **more))  # type: ignore[arg-type]


def ask(keys: KeyRing, *, local: bool = False, **headers: str) -> Caller:
    return keys.caller({name.replace("_", "-"): value for name, value in headers.items()}, "10.0.0.1", local=local)


def test_without_keys_everybody_may_ask_and_only_this_machine_may_administer(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    assert not keys.required
    assert ask(keys, authorization="Bearer none").key_name is None
    ask(keys).require("inference")
    ask(keys, local=True).require("admin")
    with pytest.raises(Forbidden, match="admin"):
        ask(keys).require("admin")


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {SECRET}"}, {"authorization": f"bearer  {SECRET} "}, {"x_api_key": SECRET}],
)
def test_a_key_is_shown_in_either_header(tmp_path: Path, headers: dict[str, str]) -> None:
    caller = ask(ring(tmp_path, key()), **headers)
    assert caller.key_name == "one"
    assert caller.principal.tenant == "key:one"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {SECRET}x"},
        {"authorization": f"Basic {SECRET}"},
        {"authorization": SECRET[:-1]},
        {"x_api_key": ""},
        {"x_api_key": hash_of(SECRET)},
        {"authorization": "Bearer \u00e9"},
    ],
)
def test_everything_else_is_refused_without_repeating_it(tmp_path: Path, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized) as caught:
        ask(ring(tmp_path, key()), local=True, **headers)
    assert SECRET[:-1] not in caught.value.message
    assert caught.value.status == 401


def test_scopes_and_models(tmp_path: Path) -> None:
    caller = ask(ring(tmp_path, key(scopes=["admin"], models=["small"])), x_api_key=SECRET)
    caller.require("admin")
    with pytest.raises(Forbidden, match="inference"):
        caller.require("inference")
    assert caller.may_ask("small")
    assert not caller.may_ask("large")


def test_a_key_expires(tmp_path: Path) -> None:
    past, later = datetime.now(UTC) - timedelta(seconds=1), datetime.now(UTC) + timedelta(hours=1)
    assert ask(ring(tmp_path, key(expires=later)), x_api_key=SECRET).key_name == "one"
    with pytest.raises(Unauthorized, match="expired"):
        ask(ring(tmp_path, key(expires=past)), x_api_key=SECRET)


def test_anonymous_callers_beside_keys(tmp_path: Path) -> None:
    keys = ring(tmp_path, key(), anonymous=True)
    assert not keys.required
    assert ask(keys).key_name is None
    with pytest.raises(Forbidden):
        ask(keys, local=True).require("admin")
    with pytest.raises(Unauthorized):
        ask(keys, x_api_key="wrong")


def test_the_keys_file_changes_under_a_running_server(tmp_path: Path) -> None:
    keys, file = ring(tmp_path), tmp_path / "keys.yaml"
    assert not keys.refresh()
    with changing(file) as held:
        held.append(KeyConfig(**key()))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keys.refresh()
    assert ask(keys, x_api_key=SECRET).key_name == "one"
    with changing(file) as held:
        held.clear()
    assert keys.refresh()
    with pytest.raises(Unauthorized):
        ask(keys, x_api_key=SECRET)
    with pytest.raises(Unauthorized):
        ask(keys)  # the last key was revoked: that opens no door
    file.unlink()
    keys.refresh()
    with pytest.raises(Unauthorized):
        ask(keys)


def test_a_file_that_became_wrong_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    with changing(file) as held:
        held.append(KeyConfig(**key()))
    keys = ring(tmp_path)
    file.write_text("keys: [{name: x}]")
    assert not keys.refresh()
    assert ask(keys, x_api_key=SECRET).key_name == "one"


def test_an_emptied_file_at_start_still_wants_keys(tmp_path: Path) -> None:
    with changing(tmp_path / "keys.yaml"):
        pass
    assert ring(tmp_path).required


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: [{name: x}]", "keys[0].hash"),
        ("keys: [{name: x, hash: secret}]", "keys[0].hash"),
        ("key: []", "key: unknown key; known here: keys"),
        ("[1]", "key: value"),
    ],
)
def test_mistakes_in_the_file_are_named_and_secrets_are_not(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(file)
    assert words in caught.value.message
    assert "secret" not in caught.value.message.replace("client_secret", "")


def test_doubles_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    with pytest.raises(ConfigError, match="twice"), changing(file) as held:
        held += [KeyConfig(**key()), KeyConfig(**key(secret="other"))]
    assert not file.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".keys.yaml.") and "lock" not in path.name]


def test_fresh_keys_are_long_and_different() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(fresh) > 50 and fresh.startswith("sk-stoker-") for fresh in keys)
