"""Evaluation sets as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stoker.evaluation import sets
from stoker.evaluation.sets import (
    BadSet,
    Case,
    EvaluationSet,
    Expect,
    JudgeConfig,
    Thresholds,
    load_set,
    parse_set,
    smoke_set,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"


def one(**case):
    return parse_set({"cases": [{"prompt": "Hello?", **case}]}).cases[0]


def refused(document, *words):
    with pytest.raises(BadSet) as caught:
        parse_set(document, "set.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.status == 400
    for word in ("set.yaml", *words):
        assert word in caught.value.message
    return caught.value.message


def test_the_shipped_set():
    shipped = smoke_set()
    assert shipped.name == "smoke"
    assert {case.id for case in shipped.cases} >= {"england", "json-city", "length-sentence"}
    assert sum("facts" in case.tags for case in shipped.cases) == 20
    assert shipped.thresholds.pass_rate == 0.4
    assert not shipped.needs_judge


def test_a_set_survives_being_written_down():
    shipped = smoke_set()
    assert parse_set(shipped.model_dump(mode="json")) == shipped
    assert parse_set(shipped.model_dump()) == shipped
    assert parse_set(json.loads(shipped.model_dump_json(exclude_unset=True))) == shipped


def test_expectations_beside_the_prompt():
    assert one(expect_any=["a"], expect={"max_chars": 5}).expect.contains_any == ("a",)
    assert one(expect_all=["a"]).expect.contains_all == ("a",)
    assert one(expect_not=["a"]).expect.not_contains == ("a",)
    refused({"cases": [{"prompt": "x", "expect_any": ["a"], "expect": {"contains_any": ["b"]}}]}, "twice")


def test_numbers_are_meant_as_they_stand_and_yes_is_not_guessed_at():
    assert one(id=7, expect_any=[7, 1.5], tags=[2024]).expect.contains_any == ("7", "1.5")
    refused({"cases": [{"prompt": "x", "expect_any": [True]}]}, "case 1: expect.contains_any[0]", "quotes")


def test_a_list_is_cases_alone():
    assert [case.id for case in parse_set([{"prompt": "a"}, {"prompt": "b", "id": "x"}]).cases] == ["1", "x"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("text", "mapping"),
        (None, "mapping"),
        ({}, "cases"),
        ({"cases": []}, "cases"),
        ({"cases": {}}, "cases"),
        ({"cases": [{}]}, "either a `prompt` or `messages`"),
        ({"cases": [{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}]}, "either"),
        ({"cases": [{"messages": [{"role": "assistant", "content": "b"}]}]}, "user's"),
        ({"cases": [{"messages": [{"role": "tool", "content": "b"}]}]}, "role"),
        ({"cases": [{"prompt": ""}]}, "prompt"),
        ({"cases": [{"prompt": "a", "expekt": {}}]}, "case 1: expekt: unknown key"),
        ({"cases": [{"prompt": "a", "expect": {"contain": []}}]}, "expect.contain: unknown key"),
        ({"cases": [{"prompt": "a", "expect": {"contains_any": []}}]}, "contains_any"),
        ({"cases": [{"prompt": "a", "expect": {"regex": "("}}]}, "regex"),
        ({"cases": [{"prompt": "a", "expect": {"regex": "(?=a)"}}]}, "lookaround"),
        ({"cases": [{"prompt": "a", "expect": {"regex": "(a{1000}){1000}"}}]}, "too large"),
        ({"cases": [{"prompt": "a", "expect": {"json_schema": {"type": "objekt"}}}]}, "no JSON Schema"),
        ({"cases": [{"prompt": "a", "max_tokens": "5"}]}, "max_tokens"),
        ({"cases": [{"prompt": "a", "max_tokens": 0}]}, "max_tokens"),
        ({"cases": [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}]}, "'x'"),
        ({"cases": [{"prompt": "a", "id": "x\x1b[2J"}]}, "id"),
        ({"cases": [{"prompt": "a"}], "thresholds": {"pass_rate": 2}}, "pass_rate"),
        ({"cases": [{"prompt": "a"}], "thresholds": {"pass_rate": float("nan")}}, "JSON"),
        ({"cases": [{"prompt": "a"}], "thresholds": {"tags": {"typo": 1.0}}}, "'typo'"),
        ({"cases": [{"prompt": "a"}], "judge": {"url": "file:///etc/passwd"}}, "judge.url"),
        ({"cases": [{"prompt": "a"}], "concurrency": 10_000}, "concurrency"),
        ({"cases": [{"prompt": "a"}] * 10_001}, "cases"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(document, words):
    assert len(refused(document, words)) < 2000


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1/x"}, "only references"),
        ({"$ref": "file:///etc/passwd"}, "only references"),
        ({"$ref": "#"}, "only references"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "recursive"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "recursive"),
        ({"items": {"$dynamicRef": "#node"}}, "$dynamicRef"),
        ({"items": {"$id": "http://x/"}}, "$id"),
        ({"enum": list(range(6000))}, "too large"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "no JSON Schema"),
    ],
)
def test_schemas_that_could_lead_astray_are_refused(schema, words):
    refused({"cases": [{"prompt": "a", "expect": {"json_schema": schema}}]}, words)


def test_a_schema_that_grows_where_references_are_followed_is_refused():
    doubling = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = {"$defs": {**doubling, "a40": {"type": "integer"}}, "$ref": "#/$defs/a0"}
    refused({"cases": [{"prompt": "a", "expect": {"json_schema": schema}}]}, "too large")


def test_a_schema_with_shared_parts_is_taken():
    schema = {
        "$defs": {"text": {"type": "string"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/text"}, "b": {"$ref": "#/$defs/text"}},
    }
    assert one(expect={"json_schema": schema}).expect.json_schema == schema


def test_many_complaints_are_counted():
    assert "and 10 more" in refused({"cases": [{"prompt": "a"}], **{f"k{n}": 1 for n in range(20)}})


def test_deep_and_wide_documents_are_refused():
    deep: list = []
    for _ in range(200):
        deep = [deep]
    refused({"cases": [{"prompt": "a", "expect": {"json_schema": {"enum": deep}}}]}, "levels")


def test_only_the_cases_of_a_tag():
    whole = parse_set(
        {
            "cases": [{"prompt": "a", "tags": ["x"]}, {"prompt": "b", "tags": ["y"]}, {"prompt": "c"}],
            "thresholds": {"tags": {"x": 0.5, "y": 1.0}},
        }
    )
    part = whole.only(frozenset({"y"}))
    assert [case.id for case in part.cases] == ["2"]
    assert part.thresholds.tags == {"y": 1.0}
    assert whole.only(frozenset({"z"})) is None


def test_yaml(tmp_path):
    file = tmp_path / "facts.yaml"
    file.write_text(
        "thresholds: {pass_rate: 0.5}\nsystem: Be brief.\n"
        "cases:\n  - prompt: How many days has a week?\n    expect_any: [7, seven]\n    tags: [time]\n"
    )
    read = load_set(file)
    assert (read.name, read.system, read.thresholds.pass_rate) == ("facts", "Be brief.", 0.5)
    assert read.cases[0].expect.contains_any == ("7", "seven")


def test_jsonl_with_and_without_a_head(tmp_path):
    rows = [{"prompt": "a\u2028b", "expect_any": ["x"]}, {"prompt": "c"}]
    head = {"name": "mine", "thresholds": {"errors": 1}}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert [case.prompt for case in load_set(file).cases] == ["a\u2028b", "c"]
    assert load_set(file).name == "rows"
    file.write_text("\ufeff" + "\n".join(map(json.dumps, [head, *rows])), encoding="utf-8")
    assert (load_set(file).name, load_set(file).thresholds.errors) == ("mine", 1)


def test_a_bad_line_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    for text, words in [
        ('{"prompt": "a"}\n\n{"prompt": 3}\n', "line 3: prompt = '3'"),
        ('{"prompt": "a"}\n{"prompt":', "line 2: is not JSON"),
        ("[]", "line 1: is no JSON object"),
        ('{"prompt": "a"}\n{"name": "late"}', "line 2: name: unknown key"),
        ("", "cases"),
    ]:
        file.write_text(text)
        with pytest.raises(BadSet) as caught:
            load_set(file)
        assert words in caught.value.message
        assert str(file) in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cases: [", "not valid YAML"),
        (b"cases:\n  - prompt: a\n    prompt: b\n", "twice"),
        (b"cases: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"cases: &a [*a]\n", "levels"),
        (b"[" * 3000, "not valid YAML"),
        (b"cases: [{prompt: 2024-01-01}, {prompt: .nan}]", "JSON"),
    ],
)
def test_hostile_and_broken_files(tmp_path, content, words):
    file = tmp_path / "set.yaml"
    file.write_bytes(content)
    with pytest.raises(BadSet, match=words):
        load_set(file)


def test_aliases_do_not_make_few_bytes_into_many(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(BadSet, match="more than"):
        load_set(file)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(BadSet, match="No such file"):
        load_set(tmp_path / "none.yaml")
    with pytest.raises(BadSet, match="directory"):
        load_set(tmp_path)
    monkeypatch.setattr(sets, "LARGEST_FILE", 3)
    (tmp_path / "large.yaml").write_text("cases: []")
    with pytest.raises(BadSet, match="larger"):
        load_set(tmp_path / "large.yaml")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["cases", "prompt", "expect", "messages", "id", "tags", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_a_set_or_a_told_error(document):
    try:
        read = parse_set(document)
    except BadSet:
        return
    assert read.cases


def test_the_page_is_true():
    """Its examples are sets, and every key is on it."""
    text = PAGE.read_text(encoding="utf-8")
    (written,) = re.findall(r"```yml\n(.*?)```", text, re.DOTALL)
    assert len(parse_set(yaml.safe_load(written)).cases) == 4
    rows = re.findall(r"^\{.*\}$", text, re.MULTILINE)
    assert parse_set({**json.loads(rows[0]), "cases": [json.loads(row) for row in rows[1:]]}).name == "facts"
    for kind in (EvaluationSet, Case, Expect, Thresholds, JudgeConfig):
        for key in kind.model_fields:
            assert f"`{key}`" in text, key
