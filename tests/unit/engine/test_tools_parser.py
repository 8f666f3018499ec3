"""Tool calls are read out of streamed text, however it is cut."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config import GenerationConfig
from stoker.engine.calls import JsonStream, Read, ToolCallParser, ToolStream, new_id
from stoker.engine.grammar import JOINER, OPENER, held_json, held_tools
from stoker.errors import RequestError
from stoker.types import Chunk, ResponseFormat, ToolSpec, ToolUse, Usage

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
calls = st.tuples(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True),
    st.dictionaries(st.text(max_size=6), json_values, max_size=3),
)
plain_texts = st.text(max_size=30).filter(
    lambda text: OPENER not in text and not any(text.endswith(OPENER[:length]) for length in range(1, len(OPENER)))
)


def read_in_pieces(
    text: str, cuts: list[int], parser: ToolCallParser | None = None
) -> tuple[str, list[tuple[str, str]], set[str]]:
    """Text, (name, arguments) of each call, and ids, from a parser fed with the text cut at the given places."""
    parser = parser or ToolCallParser()
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    reads = [parser.feed(text[start:end]) for start, end in pairwise(edges)]
    return gathered([*reads, parser.finish()])


def gathered(reads: list[Read]) -> tuple[str, list[tuple[str, str]], set[str]]:
    names: dict[int, str] = {}
    arguments: dict[int, str] = defaultdict(str)
    ids: set[str] = set()
    for read in reads:
        for delta in read.calls:
            if delta.name is not None:
                assert delta.index not in names, "a call's name came twice"
                assert delta.id
                assert delta.id not in ids
                names[delta.index] = delta.name
                ids.add(delta.id)
            assert delta.index in names, "arguments came before the call's name"
            arguments[delta.index] += delta.arguments
    assert list(names) == list(range(len(names)))
    return "".join(read.text for read in reads), [(names[i], arguments[i]) for i in names], ids


def written(made: list[tuple[str, dict]]) -> str:
    return JOINER.join(f"{OPENER}{name}({json.dumps(arguments, ensure_ascii=False)})" for name, arguments in made)


@given(plain_texts, st.lists(calls, max_size=4, unique_by=repr), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_gives_the_same_text_and_calls(before: str, made: list, cuts: list[int]) -> None:
    text, read, ids = read_in_pieces(before + written(made), cuts)
    assert text == before
    assert [(name, json.loads(arguments)) for name, arguments in read] == made
    assert len(ids) == len(made)


@given(st.text(alphabet='<tool_cal>(){}[]"\\ anx\n', max_size=60), st.lists(st.integers(0, 100), max_size=8))
def test_broken_text_is_read_alike_however_it_is_cut(text: str, cuts: list[int]) -> None:
    whole = read_in_pieces(text, [])[:2]
    assert read_in_pieces(text, cuts)[:2] == whole
    assert read_in_pieces(text, list(range(len(text))))[:2] == whole


@given(plain_texts.filter(bool))
def test_text_without_a_call_comes_through_unchanged(text: str) -> None:
    parser = ToolCallParser()
    assert "".join(parser.feed(character).text for character in text) + parser.finish().text == text
    assert not parser.called


def test_arguments_stream_piece_by_piece() -> None:
    parser = ToolCallParser(make_id=lambda: "call_1")
    pieces = [parser.feed(piece).calls for piece in (OPENER, "f(", '{"a": ', '"long', ' text"', "}", ")")]
    assert [len(piece) for piece in pieces] == [0, 0, 1, 1, 1, 1, 0]
    assert pieces[2][0].name == "f"
    assert pieces[2][0].arguments == '{"a": '
    assert pieces[4][0].arguments == ' text"'


def test_calls_may_also_stand_on_lines_of_their_own() -> None:
    """Models that were trained on calls write them so, where no grammar holds them."""
    text = f"{OPENER}f({{}})\n{OPENER}g({{}})\n"
    for cuts in ([], list(range(60))):
        assert read_in_pieces(text, cuts)[:2] == ("", [("f", "{}"), ("g", "{}")])


def test_a_half_opener_at_the_end_is_text() -> None:
    parser = ToolCallParser()
    assert parser.feed("a <tool_").text == "a "
    assert parser.finish().text == "<tool_"


def test_a_call_word_for_word_again_settles_the_answer() -> None:
    text = written([("f", {"a": 1}), ("f", {"a": 2}), ("f", {"a": 1}), ("g", {})])
    for cuts in ([], list(range(200))):
        parser = ToolCallParser()
        _, read, _ = read_in_pieces(text, cuts, parser)
        assert read == [("f", '{"a": 1}'), ("f", '{"a": 2}')]
        assert parser.settled


def test_a_call_that_begins_like_an_earlier_one_is_kept() -> None:
    made = [("f", {"a": "x"}), ("f", {"a": "x", "b": 1})]
    assert read_in_pieces(written(made), list(range(100)))[1] == [(name, json.dumps(args)) for name, args in made]


def test_a_call_that_must_come_and_does_not_is_an_error_before_anything_is_said() -> None:
    parser = ToolCallParser(must_call=True)
    assert parser.feed("<tool") == Read()
    with pytest.raises(RequestError, match="could not hold"):
        parser.feed(" Hello")
    assert ToolCallParser(must_call=True).feed(f'{OPENER}f({{"a": 1}})').calls


def test_ids_are_unique_and_in_openais_form() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(one.startswith("call_") and len(one) == 29 for one in ids)


class TestStream:
    use = ToolUse((ToolSpec("f", "", {}),), "auto")

    def chunks(self, *pieces: Chunk, use: ToolUse | None = None) -> list[Chunk]:
        stream = ToolStream(use)
        return [seen for piece in pieces for seen in stream.feed(piece)]

    def test_a_call_finishes_with_tool_calls(self) -> None:
        seen = self.chunks(Chunk(OPENER), Chunk("f({})"), Chunk(finish_reason="stop"), Chunk(usage=Usage(3, 4)))
        assert seen[0].tool_calls[0].arguments == "{}"
        assert seen[-2].finish_reason == "tool_calls"
        assert seen[-1].usage == Usage(3, 4)
        assert all(chunk.text == "" for chunk in seen)

    def test_text_finishes_with_stop(self) -> None:
        seen = self.chunks(Chunk("Hi <"), Chunk(finish_reason="stop"))
        assert [chunk.text for chunk in seen] == ["Hi ", "<"]
        assert seen[-1].finish_reason == "stop"

    def test_a_call_cut_off_stays_length(self) -> None:
        seen = self.chunks(Chunk(f'{OPENER}f({{"a": "lon'), Chunk(finish_reason="length"))
        assert seen[0].tool_calls[0].arguments == '{"a": "lon'
        assert seen[-1].finish_reason == "length"

    def test_a_repetition_cut_off_is_a_finished_answer(self) -> None:
        seen = self.chunks(
            Chunk(f"{OPENER}f({{}}){JOINER}{OPENER}f({{}}){JOINER}{OPENER}f("),
            Chunk("{}"),
            Chunk(finish_reason="length"),
        )
        assert sum(len(chunk.tool_calls) for chunk in seen) == 1
        assert seen[-1].finish_reason == "tool_calls"

    def test_required_holds_the_engine_to_its_grammar(self) -> None:
        with pytest.raises(RequestError):
            self.chunks(Chunk("Hello"), use=ToolUse(self.use.tools, "required"))

    def test_other_parts_of_a_chunk_come_through(self) -> None:
        numbers = count()
        logprobs = ({"token": str(next(numbers))},)
        (seen,) = self.chunks(Chunk("a", logprobs=logprobs, reasoning="r"))
        assert seen == Chunk("a", logprobs=logprobs, reasoning="r")


def test_json_that_does_not_begin_as_it_must_is_an_error() -> None:
    stream = JsonStream(held_json(ResponseFormat(None), GenerationConfig()))
    assert stream.feed(Chunk(usage=Usage(1, 1))) == (Chunk(usage=Usage(1, 1)),)
    assert stream.feed(Chunk('{"a')) == (Chunk('{"a'),)
    assert stream.feed(Chunk(" Hello")) == (Chunk(" Hello"),)
    with pytest.raises(RequestError, match="could not hold"):
        JsonStream(held_json(ResponseFormat(None), GenerationConfig())).feed(Chunk("Hello"))


def test_json_that_ends_without_its_shape_is_an_error() -> None:
    held = held_json(ResponseFormat({"type": "object", "properties": {"a": {"type": "integer"}}}), GenerationConfig())
    end = Chunk(finish_reason="stop")
    for text in ("{x} is a constant", '{"a": "b"}', '{"b": 1}'):
        stream = JsonStream(held)
        stream.feed(Chunk(text))
        with pytest.raises(RequestError, match="could not hold"):
            stream.feed(end)
    stream = JsonStream(held)
    stream.feed(Chunk('{"a": 1}'))
    assert stream.feed(end) == (end,)
    cut = JsonStream(held)
    cut.feed(Chunk('{"a": '))
    assert cut.feed(Chunk(finish_reason="length"))


def test_a_call_that_its_schema_does_not_accept_is_an_error() -> None:
    tool = ToolSpec("f", "", {"type": "object", "properties": {"d": {"type": "string", "minLength": 20}}})
    use = ToolUse((tool,))
    stream = ToolStream(use, held_tools(use, GenerationConfig()).shapes)
    stream.feed(Chunk('<tool_call>f({"d": "short"})'))
    with pytest.raises(RequestError, match="hold a call of 'f'"):
        stream.feed(Chunk(finish_reason="stop"))


@pytest.mark.parametrize(
    ("text", "finish"), [("<", "length"), ("<tool_call>get_wea", "length"), ('<tool_call>f({"a', "stop")]
)
def test_a_call_that_had_to_come_and_was_cut_tells_no_markup(text: str, finish: Any) -> None:
    tool = ToolSpec("f", "", {"type": "object", "properties": {"a": {"type": "string"}}})
    stream = ToolStream(ToolUse((tool,), "required"))
    seen = [*stream.feed(Chunk(text)), *stream.feed(Chunk(finish_reason=finish))]
    assert "".join(chunk.text for chunk in seen) == ""
    assert seen[-1].finish_reason == "length"
