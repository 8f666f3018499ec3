"""Names and versions of stored models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import ModelFileError
from stoker.models.names import Reference, check_name, name_from_file, next_version, parse_reference


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Qwen3-0.6B-Q8_0.gguf", "qwen3-0.6b"),
        ("gemma-3-270m-it-UD-Q4_K_XL.gguf", "gemma-3-270m-it"),
        ("Llama-3.2-1B.i1-IQ2_XXS.gguf", "llama-3.2-1b"),
        ("model-f16.gguf", "model"),
        ("model.bf16.GGUF", "model"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"),
        ("bitnet-TQ1_0.gguf", "bitnet"),
        ("big-Q4_0-00001-of-00003.gguf", "big"),
        ("Grüße an alle!.gguf", "gr-e-an-alle"),
        ("default.gguf", "model"),
        (".gguf", "model"),
        ("", "model"),
        ("Q4_0.gguf", "q4_0"),
    ],
)
def test_names_from_files(filename, name):
    assert name_from_file(filename) == name


@given(st.text(max_size=300))
def test_whatever_the_file_is_called_its_name_is_valid(filename):
    name = name_from_file(filename)
    check_name(name)
    assert parse_reference(name) == Reference(name)
    assert name == name.lower()


@given(st.text(max_size=40))
def test_references_are_valid_or_none_and_survive_printing(text):
    reference = parse_reference(text)
    if reference is None:
        return
    assert str(reference) == text
    for part in (reference.name, reference.version or "x"):
        check_name(part, "version")
        assert "/" not in part
        assert not part.startswith(".")


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True),
)
def test_every_valid_pair_is_read_back(name, version):
    assert parse_reference(f"{name}@{version}") == Reference(name, version)


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "a@b", "é", "a\n", "x" * 129])
def test_bad_names(name):
    with pytest.raises(ModelFileError, match="choose another"):
        check_name(name)
    assert parse_reference(name) in {None, Reference("a", "b")}


@pytest.mark.parametrize(
    ("taken", "version"),
    [
        ((), "1"),
        (("1",), "2"),
        (("1", "3"), "4"),
        (("prod",), "1"),
        (("20260101",), "1"),
        (("1", "2", "v9"), "3"),
        (("٣",), "1"),
    ],
)
def test_next_versions(taken, version):
    assert next_version(frozenset(taken)) == version
