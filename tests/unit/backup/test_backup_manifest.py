"""Manifests prove themselves, and name nothing that could harm."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.backup_data import a_manifest

from stoker.backup.manifest import (
    FORMAT,
    DamagedSnapshot,
    Entry,
    Manifest,
    decode,
    decode_document,
    encode,
    encode_document,
    id_time,
    is_id,
    new_id,
)

DIGEST = "ab" * 32
OTHER = "cd" * 32
NAME = new_id(1.0e9)


def entry(path: str, kind: str, **changes) -> Entry:
    whole = {"size": 3, "sha256": DIGEST, "stored": DIGEST, "sealed": kind == "secrets", **changes}
    return Entry(path, kind, **whole)


def manifest(*entries: Entry) -> Manifest:
    return replace(a_manifest(), id=NAME, entries=entries)


GOOD = manifest(
    entry(f"models/blobs/{DIGEST}", "model"),
    entry("models/refs/tiny/1.json", "registry"),
    entry("stoker.yaml", "configuration"),
    entry("keys.yaml", "configuration"),
    entry("configured/set.jsonl", "configuration"),
    entry("secrets/stoker.yaml", "secrets", stored=OTHER),
    entry("rollouts/pins.json", "rollouts"),
    entry("jobs/jobs.db", "jobs"),
)


def test_what_is_written_is_read():
    whole = replace(GOOD, tags=("before-upgrade",), locked_until=2.5e9, seconds=1.5, sent_bytes=7)
    assert decode(whole.id, encode(whole)) == whole
    assert whole.objects == {DIGEST, OTHER}


@given(st.text(st.characters(codec="utf-8", categories=["L", "N"])), st.floats(0, 1e11), st.integers(0, 1 << 59))
def test_any_manifest_is_read_as_written(host, created, size):
    changed = entry("stoker.yaml", "configuration", size=size)
    whole = replace(a_manifest(), host=host, created=created, entries=(changed,))
    assert decode(whole.id, encode(whole)) == whole
    assert whole.size == size


@given(st.data())
def test_one_changed_byte_is_always_found(data):
    document = bytearray(encode(GOOD))
    place = data.draw(st.integers(0, len(document) - 1))
    document[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedSnapshot, match=r"manifest .*; use another snapshot"):
        decode(GOOD.id, bytes(document))


@given(st.binary() | st.text().map(str.encode))
def test_anything_else_is_refused(data):
    with pytest.raises(DamagedSnapshot):
        decode(GOOD.id, data)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_one_cut_short_is_refused(cut):
    with pytest.raises(DamagedSnapshot, match="damaged"):
        decode(GOOD.id, encode(GOOD)[:cut])


@pytest.mark.parametrize(
    "document", [b"[" * 100_000, b"{}", b"null", b'{"sha256": NaN}', b'{"sha256": 1, "a": Infinity}']
)
def test_hostile_json_is_refused(document):
    with pytest.raises(DamagedSnapshot):
        decode(GOOD.id, document)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc/passwd", "configuration"),
        ("../stoker.yaml", "configuration"),
        ("configured/../../x", "configuration"),
        ("configured/.hidden", "configuration"),
        ("configured/a/b", "configuration"),
        ("configured/a\nb", "configuration"),
        ("configured/a\n", "configuration"),
        ("stoker.yaml/", "configuration"),
        ("", "configuration"),
        ("stoker.yaml", "registry"),
        ("models/refs/tiny/../../../x.json", "registry"),
        ("models/refs/tiny/1.json\x00", "registry"),
        ("models/blobs/x", "model"),
        (f"models/blobs/{OTHER}", "model"),
        ("rollouts/../pins.json", "rollouts"),
        ("jobs/other.db", "jobs"),
        ("secrets/id_rsa", "secrets"),
        ("stoker.yaml", "firmware"),
        ("stoker.yaml", ""),
        (7, "configuration"),
    ],
)
def test_paths_where_nothing_belongs_are_refused(path, kind):
    with pytest.raises(DamagedSnapshot):
        decode(GOOD.id, encode(manifest(entry(path, kind))))


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 1 << 62},
        {"size": True},
        {"size": "3"},
        {"sha256": "AB" * 32},
        {"sha256": DIGEST + "\n", "stored": DIGEST + "\n"},
        {"stored": "../" + DIGEST},
        {"stored": OTHER},
        {"sealed": True},
    ],
)
def test_entries_that_contradict_themselves_are_refused(change):
    with pytest.raises(DamagedSnapshot):
        decode(GOOD.id, encode(manifest(entry("stoker.yaml", "configuration", **change))))


def test_secrets_in_the_open_are_refused():
    open_ = manifest(entry("secrets/keys.yaml", "secrets", sealed=False))
    with pytest.raises(DamagedSnapshot, match="contradicts"):
        decode(open_.id, encode(open_))


def test_the_same_path_twice_is_refused():
    twice = manifest(entry("stoker.yaml", "configuration"), entry("stoker.yaml", "configuration", size=4))
    with pytest.raises(DamagedSnapshot, match="twice"):
        decode(twice.id, encode(twice))


def test_another_snapshots_manifest_is_refused():
    with pytest.raises(DamagedSnapshot, match="is the manifest of"):
        decode(new_id(5.0), encode(GOOD))


def test_a_newer_form_is_told_as_such():
    document = encode_document({**asdict(GOOD), "format": FORMAT + 1})
    with pytest.raises(DamagedSnapshot, match="format 2, this Stoker reads 1"):
        decode(GOOD.id, document)


@pytest.mark.parametrize("field", ["host", "tags", "entries", "created", "locked_until", "seconds", "sent_bytes"])
@pytest.mark.parametrize("value", [{"a": 1}, [None], "\x1b[2J", -1, 1e300])
def test_fields_of_a_wrong_kind_are_refused(field, value):
    with pytest.raises(DamagedSnapshot):
        decode(GOOD.id, encode_document({"format": FORMAT, **asdict(GOOD), field: value}))


def test_names_tell_their_time():
    name = new_id(1_700_000_000.9)
    assert is_id(name)
    assert id_time(name) == 1_700_000_000
    assert id_time("20261345T000000Z-00000000") == 0
    assert not is_id(name + "\n")
    assert not is_id("../" + name)


def test_other_documents_prove_themselves_too():
    assert decode_document(encode_document({"ok": True, "sha256": "ignored"})) == {"ok": True}
    with pytest.raises(ValueError, match="damaged"):
        decode_document(b'{"ok": true, "sha256": "0"}')
