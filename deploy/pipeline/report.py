"""What a run of the pipeline did, kept between its steps in dist/pipeline/state.json, and told as Markdown."""  # noqa: INP001

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

MEGABYTE = 1_000_000


@dataclass(slots=True)
class Result:
    """How a step ended: `ok`, `failed`, `skipped` or `interrupted`; its time, and a word about it."""

    step: str
    outcome: str
    seconds: float = 0.0
    note: str = ""


@dataclass(slots=True)
class State:
    """What later steps need of earlier ones."""

    image: str = ""
    pushed: str = ""
    model: str = ""
    parts: dict[str, int] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What is kept; empty where nothing is, or nothing that can be read."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**kept, "results": [Result(**one) for one in kept["results"]]})
        except (OSError, ValueError, TypeError, KeyError):
            return cls()

    def write(self, path: Path) -> None:
        """Keep it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def add(self, result: Result) -> None:
        """A step's end; takes the place of an earlier run of it."""
        self.results = [*(one for one in self.results if one.step != result.step), result]


def markdown(state: State) -> str:
    """The summary of a run."""
    lines = ["## Pipeline", "", "| Step | | Time | |", "|---|---|---|---|"]
    lines += [f"| {one.step} | {one.outcome} | {_time(one)} | {_cell(one.note)} |" for one in state.results]
    facts = {"Image": state.pushed or state.image, "Model": state.model, "Size": size_words(state.parts)}
    lines += ["", *(f"- {name}: `{value}`" for name, value in facts.items() if value)]
    return "\n".join(lines).rstrip() + "\n"


def size_words(parts: dict[str, int]) -> str:
    """`610 MB: base and settings 280 MB, libraries 330 MB`; nothing where nothing was measured."""
    if not parts:
        return ""
    told = {name: length for name, length in parts.items() if length >= MEGABYTE / 10}
    largest_first = sorted(told.items(), key=lambda part: -part[1])
    return f"{_mb(sum(parts.values()))}: " + ", ".join(f"{name} {_mb(length)}" for name, length in largest_first)


def outputs(state: State) -> str:
    """`name=value` lines for a CI's outputs: the image, its repository and its digest."""
    repository, _, digest = state.pushed.partition("@")
    named = repository.rpartition(":")[0] if ":" in repository.rpartition("/")[2] else repository
    return f"reference={state.pushed}\nrepository={named}\ndigest={digest}\n"


def _mb(length: int) -> str:
    return f"{length / MEGABYTE:.1f} MB" if length < 10 * MEGABYTE else f"{length / MEGABYTE:.0f} MB"


def _time(result: Result) -> str:
    minutes, seconds = divmod(round(result.seconds), 60)
    return "" if result.outcome == "skipped" else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
