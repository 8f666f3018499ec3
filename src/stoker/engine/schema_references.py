"""Follow the local references of a JSON Schema; nothing is ever fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from stoker.errors import RequestError

_DEFINITION: Final = re.compile(r"#/(?:\$defs|definitions)/[^/]+")
_INDEX_DIGITS: Final = 5
MAX_STEPS: Final = 100_000
"""References followed in search of cycles; those of real schemas take some hundreds."""


class References:
    """What `$ref`s point at within one schema, and which of them can lie inside themselves."""

    def __init__(self, root: Mapping[str, Any], param: str) -> None:
        self._root = root
        self._param = param
        self._steps = 0
        self._recursive: dict[str, bool] = {}
        self._pointers: dict[str, Sequence[str]] = {}

    def target(self, pointer: Any, where: str) -> Any:
        """What a local JSON pointer (RFC 6901) points at.

        Raises:
            RequestError: it is not local, or points at nothing.
        """
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            shown = str(pointer)[:80]
            raise self._refuse(where, f"`$ref` {shown!r} is not fetched; use one within the schema (#/$defs/...)")
        found: Any = self._root
        for part in pointer.split("/")[1:]:
            step = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and step in found:
                found = found[step]
            elif isinstance(found, list) and _is_index(step) and int(step) < len(found):
                found = found[int(step)]
            else:
                raise self._refuse(where, f"`$ref` {pointer[:80]!r} points at nothing in the schema")
        return found

    def is_recursive(self, pointer: Any, where: str) -> bool:
        """Whether what a reference points at can lie inside itself.

        A pointer into the middle of something is taken for recursive, which costs it a level and nothing else; so every
        cycle of references holds at least one that is called recursive.
        """
        self.target(pointer, where)  # refuses what is no local pointer
        if pointer not in self._recursive:
            self._recursive[pointer] = self._reaches_itself(pointer, where)
        return self._recursive[pointer]

    def _reaches_itself(self, pointer: str, where: str) -> bool:
        seen: set[str] = set()
        waiting = [pointer]
        while waiting and pointer not in seen:
            following = waiting.pop()
            if not isinstance(following, str) or _DEFINITION.fullmatch(following) is None:
                return True
            news = [other for other in self._made_by(following, where) if other not in seen]
            self._steps += 1 + len(news)
            if self._steps > MAX_STEPS:
                raise self._refuse(where, "too many `$ref`s between definitions to follow; simplify the schema")
            seen.update(news)
            waiting += news
        return pointer in seen

    def _made_by(self, definition: str, where: str) -> Sequence[str]:
        """The references that a definition makes; each definition is walked once."""
        if definition not in self._pointers:
            found = (value.get("$ref") for value in walk(self.target(definition, where)) if isinstance(value, Mapping))
            self._pointers[definition] = [pointer for pointer in found if isinstance(pointer, str)]
        return self._pointers[definition]

    def _refuse(self, where: str, problem: str) -> RequestError:
        return RequestError(f"{where}: {problem}", param=self._param)


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdecimal() and len(step) <= _INDEX_DIGITS


def walk(value: Any) -> Iterator[Any]:
    """Every JSON value inside a value, itself first."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        yield found
        if isinstance(found, Mapping):
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
