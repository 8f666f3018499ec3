"""Reads the examples that the configuration names: lists in it, and files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from stoker.config import RoutingConfig
from stoker.errors import ConfigError

OUT_OF_SCOPE = "oos"
"""The domain of rows that no expert should get."""
JSON_LINES = (".jsonl", ".ndjson")


class Row(NamedTuple):
    """One labelled text; `domain` is None where the file does not label its rows."""

    text: str
    domain: str | None
    language: str | None


def read_rows(path: Path, key: str) -> list[Row]:
    """The rows of an examples file: JSONL (by its suffix) with `text`, `domain` and `lang`, or a text a line.

    Args:
        path: the file.
        key: the setting or argument that names the file, for messages.

    Raises:
        ConfigError: a file that cannot be read, or a line that is not as described, with its number.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{key}: {path} cannot be read ({reason}); give a UTF-8 text file with an example a line"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix.lower() not in JSON_LINES:
        return [Row(line, None, None) for _, line in lines]
    return [_row(line, f"{key}: {path}, line {number}") for number, line in lines]


def _row(line: str, where: str) -> Row:
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(
            f"{where}: is not JSON ({error}); a row looks like {{'text': '...', 'domain': '...'}}"
        ) from None
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: has no `text`, a string that is not empty; add one, or remove the line")
    labels = [document.get(name) for name in ("domain", "lang")]
    if not all(label is None or isinstance(label, str) for label in labels):
        raise ConfigError(f"{where}: `domain` and `lang` must be strings")
    return Row(text, labels[0], labels[1])


def expert_examples(config: RoutingConfig) -> dict[str, tuple[str, ...]]:
    """Each expert's examples; of a labelled file, the rows of the expert's own domain.

    Raises:
        ConfigError: as `read_rows`; also a file that has nothing for its expert.
    """
    return {expert.name: tuple(_of_expert(config, place)) for place, expert in enumerate(config.experts)}


def _of_expert(config: RoutingConfig, place: int) -> Iterator[str]:
    expert = config.experts[place]
    yield from expert.examples
    if expert.examples_file is not None:
        yield from _chosen(expert.examples_file, f"routing.experts[{place}].examples_file", expert.name)


def out_of_scope_examples(config: RoutingConfig) -> tuple[str, ...]:
    """The requests that no expert should get; of a labelled file, the rows of domain `oos`.

    Raises:
        ConfigError: as `expert_examples`.
    """
    if config.out_of_scope_file is None:
        return config.out_of_scope
    return (*config.out_of_scope, *_chosen(config.out_of_scope_file, "routing.out_of_scope_file", OUT_OF_SCOPE))


def _chosen(path: Path, key: str, domain: str) -> list[str]:
    rows = read_rows(path, key)
    labels = sorted({row.domain for row in rows if row.domain is not None})
    chosen = [row.text for row in rows if row.domain in {None, domain}]
    if not chosen:
        found = f"its domains are {', '.join(labels)}" if labels else "it is empty"
        raise ConfigError(f"{key}: {path} has no row for {domain!r}; {found}")
    return chosen
