"""What may not leave does not leave, and everything else leaves unchanged."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.admission.guard.matching import RUN
from stoker.admission.guard.output import HELD_WORDS, HOLD, OutputFilter, letters, words

SECRET = "sk-Live-4711-abab"
PROMPT = (
    "You are the assistant of a bakery. Never tell anyone that the flour comes from a mill in the north, "
    "and always offer the rye bread first. Prices are fixed until the end of June."
)


def chunks(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def through(answer: OutputFilter, pieces: list[str]) -> str:
    return "".join(map(answer.feed, pieces)) + answer.finish()


cuts = st.lists(st.integers(0, 10_000), max_size=30)
plain = st.text(max_size=120)


@given(before=plain, after=plain, cuts=cuts)
def test_a_secret_never_leaves_however_the_answer_is_cut(before, after, cuts):
    answer = OutputFilter([SECRET], None)
    out = through(answer, chunks(before + SECRET + after, cuts))
    assert answer.tripped == "secret"
    assert letters(SECRET) not in letters(out)
    assert before.startswith(out)


@given(text=st.text(alphabet="abk-17 s\u200b\n", max_size=200), cuts=cuts)
def test_an_answer_without_a_secret_leaves_unchanged(text, cuts):
    answer = OutputFilter([SECRET, "abba", "kkk1"], None)
    out = through(answer, chunks(text, cuts))
    if any(letters(secret) in letters(text) for secret in (SECRET, "abba", "kkk1")):
        assert answer.tripped == "secret"
        assert text.startswith(out)
    else:
        assert answer.tripped is None
        assert out == text


@given(text=plain, cuts=cuts)
def test_held_back_text_is_bounded_and_ordered(text, cuts):
    answer = OutputFilter([SECRET], PROMPT)
    out = fed = ""
    for piece in chunks(text, cuts):
        fed += piece
        out += answer.feed(piece)
        assert fed.startswith(out)
        assert len(fed) - len(out) <= HOLD


def test_plain_text_holds_back_less_than_the_secret_is_long():
    answer = OutputFilter([SECRET], None)
    held = out = 0
    for fed, letter in enumerate("sk-live-4711-abaxsk-live-4711-abaxyz", 1):
        out += len(answer.feed(letter))
        held = max(held, fed - out)
    assert held == len(SECRET) - 1


@pytest.mark.parametrize(
    "disguised",
    [
        SECRET.upper(),
        " ".join(SECRET),
        "\u200b".join(SECRET),
        "s k - L i v e\n4 7 1 1\na-b-a-b",
        SECRET.replace("L", "\uff2c"),
        "sk_live_4711_abab",
        "ska" + SECRET,
        "sk-Live-4711-ab" + SECRET,
    ],
)
def test_disguises_of_a_secret_do_not_help(disguised):
    answer = OutputFilter([SECRET], None)
    out = "".join(answer.feed(letter) for letter in f"Well: {disguised} there") + answer.finish()
    assert answer.tripped == "secret"
    assert "4711" not in letters(out)[-8:] or letters(SECRET) not in letters(out)


def test_after_it_tripped_nothing_goes_out():
    answer = OutputFilter([SECRET], None)
    assert answer.feed(f"key {SECRET} and") == "key "
    assert answer.feed(" more") == ""
    assert answer.finish() == ""


def test_a_canary_is_named():
    answer = OutputFilter([SECRET], None, canary="CANARY-99")
    assert answer.feed("see canary-99") == "see "
    assert answer.tripped == "canary"


def test_an_unfinished_secret_is_let_out_at_the_end():
    answer = OutputFilter([SECRET], None)
    assert answer.feed("my sk-Live-47") == "my "
    assert answer.finish() == "sk-Live-47"
    assert answer.tripped is None


def test_what_has_no_letters_protects_nothing():
    answer = OutputFilter(["", "!!!"], "")
    assert answer.feed("hello !!!") == "hello !!!"


@given(
    start=st.integers(0, 20),
    count=st.integers(RUN, 30),
    before=st.text(alphabet="xyz ,.", max_size=40),
    upper=st.booleans(),
    cuts=cuts,
)
def test_a_run_of_the_system_prompt_never_leaves(start, count, before, upper, cuts):
    run = " ".join(PROMPT.split()[start : start + count])
    if len(run.split()) < RUN:
        return
    leak = run.upper() if upper else run
    answer = OutputFilter([], PROMPT)
    out = through(answer, chunks(f"{before} {leak} bye", cuts))
    assert answer.tripped == "system prompt"
    assert len(words(out)) - len(words(before)) <= HELD_WORDS


def test_a_shorter_run_of_the_system_prompt_is_let_out():
    run = " ".join(PROMPT.split()[3 : 3 + RUN - 1])
    text = f"I think {run} was said, {run}!"
    answer = OutputFilter([], PROMPT)
    assert "".join(answer.feed(letter) for letter in text) + answer.finish() == text
    assert answer.tripped is None


def test_a_short_system_prompt_is_protected_as_a_whole():
    prompt = "Never mention the blue elephant."
    assert through(OutputFilter([], prompt), ["I never mention the blue sky."]) == "I never mention the blue sky."
    answer = OutputFilter([], prompt)
    through(answer, ["ok: never MENTION", " the blue ele", "phant"])
    assert answer.tripped == "system prompt"
    tiny = OutputFilter([], "Be very nice.")
    assert through(tiny, ["Be very nice."]) == "Be very nice."


@settings(max_examples=300)
@given(
    prompt=st.lists(st.sampled_from(["a", "b", "ab", "ba", "c"]), min_size=RUN, max_size=40),
    answer_words=st.lists(st.sampled_from(["a", "b", "ab", "ba", "c", "d"]), max_size=60),
    cuts=cuts,
)
def test_runs_are_found_among_repetitions(prompt, answer_words, cuts):
    text = " ".join(answer_words)
    answer = OutputFilter([], " ".join(prompt))
    out = through(answer, chunks(text, cuts))
    windows = {tuple(prompt[start : start + RUN]) for start in range(len(prompt) - RUN + 1)}
    given_out = words(out)
    assert not any(given_out[start : start + RUN] in windows for start in range(len(given_out)))
    if answer.tripped is None:
        assert out == text
