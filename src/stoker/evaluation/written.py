"""Evaluation sets as they are written: cases, what is expected of each answer, and what the whole must reach.

Types are not converted into one another, unknown keys are refused and everything is bounded: a set may come from
anybody who may start a rollout.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from stoker.evaluation.shapes import check_pattern, check_schema

MOST_CASES: Final = 10_000
MOST_TAGS: Final = 20
_SHORT: Final = {"expect_any": "contains_any", "expect_all": "contains_all", "expect_not": "not_contains"}
"""Expectations that may stand beside the prompt, as in the rows of small data sets."""


def _written(value: Any) -> Any:
    """A number where words are expected is meant as it stands there; YAML's `yes` and `no` are not guessed at."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads this as {str(value).lower()}; put it in quotes")  # noqa: TRY004 - pydantic's way
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
Name = Annotated[str, BeforeValidator(_written), StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
Phrase = Annotated[
    str, BeforeValidator(_written), StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)
]
Phrases = Annotated[tuple[Phrase, ...], Field(strict=False, min_length=1, max_length=100, fail_fast=True)]
Rate = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Tokens = Annotated[int, Field(ge=1, le=32_768)]


class Written(BaseModel):
    """Base of what stands in a set."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Judged(Written):
    """What another model is asked about the answer."""

    criteria: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
    """What makes an answer good, in words."""
    minimum: Rate = 0.7
    """Lowest score, 0 to 1, with which the answer passes."""


class Expect(Written):
    """What an answer must be; all of it. Words compare without regard to case, width and kind of space."""

    contains_any: Phrases | None = None
    """One of these occurs, as whole words."""
    contains_all: Phrases | None = None
    """All of these occur."""
    not_contains: Phrases | None = None
    """None of these occurs."""
    regex: Annotated[Phrase, AfterValidator(check_pattern)] | None = None
    """A pattern occurs in the first 10,000 characters. Rust's syntax: without lookaround and backreferences, so that it
    takes linear time."""
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] | None = None
    """The answer is JSON of this schema. It is sent along as `response_format`, unless the case says otherwise."""
    exact: Annotated[str, BeforeValidator(_written), StringConstraints(max_length=200_000)] | None = None
    """The answer is this, apart from white space around it."""
    max_chars: Annotated[int, Field(ge=0)] | None = None
    """Longest answer in characters."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Longest answer in tokens, as the server counts them."""
    refusal: bool | None = None
    """Whether the answer is a refusal, by the phrases in `refusals.txt`."""
    judge: Judged | None = None
    """What another model must find."""


class SetMessage(Written):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Case(Written):
    """A question and what is expected of its answer; without expectations any answer will do."""

    id: Name = ""
    """Default: the case's number, from 1."""
    prompt: Text | None = None
    messages: Annotated[tuple[SetMessage, ...], Field(strict=False, min_length=1, max_length=100)] | None = None
    """A conversation instead of a prompt."""
    system: Text | None = None
    """Instructions before it, instead of the set's."""
    max_tokens: Tokens | None = None
    """Longest answer; default: the set's."""
    tags: Annotated[tuple[Name, ...], Field(strict=False, max_length=MOST_TAGS)] = ()
    constrain: bool = True
    """Whether the schema of `expect.json_schema` holds the answer while it is made, or is only looked at afterwards."""
    expect: Expect = Expect()

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, given: Any) -> Any:
        """Take expectations beside the prompt to the others."""
        if not isinstance(given, dict) or not _SHORT.keys() & given.keys():
            return given
        beside = {_SHORT[key]: value for key, value in given.items() if key in _SHORT}
        expect = given.get("expect", {})
        if not isinstance(expect, dict):
            return given
        twice = beside.keys() & expect.keys()
        if twice:
            raise ValueError(f"{twice.pop()} is there twice: beside the prompt and under `expect`")
        rest = {key: value for key, value in given.items() if key not in _SHORT}
        return {**rest, "expect": {**expect, **beside}}

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a case has either a `prompt` or `messages`")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last of `messages` must be the user's")
        return self


class Thresholds(Written):
    """What a run must reach. Without `pass_rate`, `tags` and `pass_rate_drop` every case must pass."""

    pass_rate: Rate | None = None
    """Lowest share of cases that pass."""
    tags: Annotated[dict[Name, Rate], Field(max_length=1000)] = Field(default_factory=dict)
    """The same for the cases of a tag."""
    errors: Annotated[int, Field(ge=0)] = 0
    """Most requests that may fail."""
    ttft_p95: Seconds | None = None
    """Longest time to the first token in seconds, 95th percentile."""
    tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    """Lowest speed of an answer in tokens a second, median."""
    pass_rate_drop: Rate | None = None
    """Most by which the share of passed cases may be below the other version's."""
    ttft_p95_ratio: Annotated[float, Field(gt=0)] | None = None
    """Most times the other version's time to the first token."""
    tokens_per_s_ratio: Annotated[float, Field(gt=0)] | None = None
    """Lowest share of the other version's speed."""


class JudgeConfig(Written):
    """The model that is asked about answers, if cases say so; its key comes from the environment."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s\x00-\x1f@]{1,2000}$")] | None = None
    """An OpenAI-compatible server."""
    model: Name | None = None


class EvaluationSet(Written):
    """An evaluation set."""

    name: Name
    description: Annotated[str, StringConstraints(max_length=10_000)] = ""
    system: Text | None = None
    """Instructions before every prompt."""
    max_tokens: Tokens = 64
    """Longest answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of the order of the cases, and of answers at a temperature above 0."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """Cases that are asked at once."""
    timeout: Seconds = 60.0
    """Longest time for one answer, in seconds."""
    thresholds: Thresholds = Thresholds()
    judge: JudgeConfig | None = None
    cases: Annotated[tuple[Case, ...], Field(strict=False, min_length=1, max_length=MOST_CASES, fail_fast=True)]

    @property
    def needs_judge(self) -> bool:
        """Whether a case must be seen by another model."""
        return any(case.expect.judge is not None for case in self.cases)

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag, in order of appearance."""
        return tuple(dict.fromkeys(tag for case in self.cases for tag in case.tags))

    @model_validator(mode="before")
    @classmethod
    def _number(cls, given: Any) -> Any:
        """Cases without a name get their number."""
        cases = given.get("cases") if isinstance(given, dict) else None
        if not isinstance(cases, list):
            return given
        numbered = [
            {"id": str(number), **case} if isinstance(case, dict) else case for number, case in enumerate(cases, 1)
        ]
        return {**given, "cases": numbered}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: set[str] = set()
        for case in self.cases:
            if case.id in seen:
                raise ValueError(f"two cases are called {case.id!r}; every `id` must be there once")
            seen.add(case.id)
        unknown = self.thresholds.tags.keys() - set(self.tags)
        if unknown:
            raise ValueError(f"thresholds.tags: no case has the tag {min(unknown)!r}")
        return self

    def only(self, tags: frozenset[str]) -> EvaluationSet | None:
        """The set with the cases of some tags alone, and the thresholds about those; None when no case has one."""
        cases = tuple(case for case in self.cases if tags & set(case.tags))
        if not cases:
            return None
        there = {tag for case in cases for tag in case.tags}
        limits = {tag: rate for tag, rate in self.thresholds.tags.items() if tag in there}
        return self.model_copy(
            update={"cases": cases, "thresholds": self.thresholds.model_copy(update={"tags": limits})}
        )
