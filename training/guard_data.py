# ruff: noqa: INP001  # scripts that stand beside each other, not a package
"""Reads the guard's training rows, puts near-duplicates into one group, and makes indirect attacks out of parts."""

from __future__ import annotations

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stoker.admission.guard.normalise import normalise

OWN = "own"
"""The source of rows that this project wrote; they are learnt from and never counted in a result."""
_SHINGLE = 4
_SHARED = 0.45


@dataclass(frozen=True, slots=True)
class Row:
    """One text: whether it is an attack, its language, where it comes from, and for our own rows what kind it is."""

    text: str
    attack: bool
    lang: str
    source: str
    kind: str = ""


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file.

    Raises:
        ValueError: a line is not JSON or lacks a field; the message has its number.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # texts hold other line breaks
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(Row(row["text"], bool(row["label"]), row["lang"], row["source"], row.get("kind", "")))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def groups(rows: Sequence[Row]) -> list[int]:
    """The group of each row: rows that share 45 % of the shorter one's four-word shingles belong together."""
    parent = list(range(len(rows)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    shingles = [_shingles(row.text) for row in rows]
    holders: dict[int, list[int]] = defaultdict(list)
    for number, several in enumerate(shingles):
        shared: dict[int, int] = defaultdict(int)
        for shingle in several:
            for other in holders[shingle]:
                shared[other] += 1
            holders[shingle].append(number)
        for other, count in shared.items():
            if count >= _SHARED * min(len(several), len(shingles[other])):
                parent[root(number)] = root(other)
    return [root(number) for number in range(len(rows))]


def fold_of(group: int, rows: Sequence[Row], folds: int) -> int:
    """The fold of a group, by a checksum of its first row's text, so that it does not change with other rows."""
    return zlib.crc32(normalise(rows[group].text).encode("utf-8", "surrogatepass")) % folds


def _shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", normalise(text))
    if len(words) < _SHINGLE or max(map(len, words)) > 30:  # noqa: PLR2004  # scripts that do not part words
        letters = "".join(words)
        width = 6
        return {hash_of(letters[start : start + width]) for start in range(max(len(letters) - width + 1, 1))}
    return {hash_of(" ".join(words[start : start + _SHINGLE])) for start in range(len(words) - _SHINGLE + 1)}


def hash_of(text: str) -> int:
    """A checksum that is the same in every run."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def composed(rows: Iterable[Row]) -> list[Row]:
    """Indirect attacks: our own injected sentences (kind `inject`) in our own and others' harmless texts.

    Which text carries which sentence, and where in it, follows from checksums, so that it is the same in every run.
    """
    carriers = [row for row in rows if not row.attack and 150 < len(row.text) < 2500 and row.kind != "hard"]  # noqa: PLR2004
    made = []
    for row in rows:
        if row.kind != "inject":
            continue
        same = [carrier for carrier in carriers if carrier.lang == row.lang] or carriers
        for turn in range(2):
            seed = hash_of(f"{turn} {row.text}")
            carrier = same[seed % len(same)].text
            breaks = [match.end() for match in re.finditer(r"[.!?]\s|\n", carrier)]
            places = [breaks[0] if breaks else 0, breaks[len(breaks) // 2] if breaks else 0, len(carrier)]
            place = places[seed // 7 % 3]
            text = f"{carrier[:place]}\n{row.text}\n{carrier[place:]}"
            made.append(Row(text, True, row.lang, OWN, "composed"))
    return made
