"""How stored models are named: `name@version`, and the name that a file's own name suggests; strangers' text. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stoker.errors import ModelFileError

MAX_LENGTH: Final = 128
RESERVED: Final = frozenset({"default", "auto"})
"""Names that requests use for `the configured default` and `whichever fits`."""

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_LENGTH - 1}}}")
# Q4_K_M, IQ2_XXS, TQ1_0, MXFP4, BF16, F16..., also behind the markers of their makers (UD-, i1-).
_QUANTISATION: Final = re.compile(
    r"(?:[-._](?:ud|i1))?[-._](?:i?q[1-9](?:_[a-z0-9]+)*|tq[12]_[0-9]+|(?:mx|nv)fp4(?:_[a-z]+)?|bf16|fp?16|fp?32)$"
)
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Reference:
    """A stored model as a user names it; without a version the newest one is meant."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse_reference(text: str) -> Reference | None:
    """`name` or `name@version`; None when the text is neither."""
    name, at, version = text.partition("@")
    if not _NAME.fullmatch(name) or (at and not _NAME.fullmatch(version)):
        return None
    return Reference(name, version if at else None)


def check_name(name: str, what: str = "name") -> None:
    """Raise ModelFileError when a name or version cannot be used."""
    if not _NAME.fullmatch(name):
        raise ModelFileError(
            f"{name!r} cannot be a model's {what}: 1 to {MAX_LENGTH} letters, digits, '.', '_' and '-', "
            f"the first a letter or digit; choose another with --{what}"
        )
    if what == "name" and name in RESERVED:
        raise ModelFileError(f"the name {name!r} is reserved for requests; choose another with --name")


def name_from_file(filename: str) -> str:
    """The name that a file's name suggests: lower case, without extension and quantisation; always a valid name."""
    stem = filename.lower().removesuffix(".gguf")
    stem = _QUANTISATION.sub("", _SHARD.sub("", stem))
    cleaned = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("._-")[:MAX_LENGTH].rstrip("._-")
    return cleaned if cleaned and cleaned not in RESERVED else "model"


def next_version(taken: frozenset[str]) -> str:
    """The lowest whole number above every version that is one: "1" for the first."""
    # Longer digits are dates or hashes that a user chose, not our count.
    numbers = [int(version) for version in taken if version.isdecimal() and version.isascii() and len(version) <= 6]  # noqa: PLR2004
    candidate = max(numbers, default=0) + 1
    while str(candidate) in taken:
        candidate += 1
    return str(candidate)


def printable(text: str, longest: int = 200) -> str:
    """Text from elsewhere, fit for a terminal or a comment: no control sequences, no line ends, no endless lines."""
    return "".join(character if character.isprintable() else "?" for character in text[:longest])
