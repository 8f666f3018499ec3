"""A process that makes one snapshot after the other, each with a new model in it, until somebody kills it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.backup_data import Data
from tests.backup_stores import repository_at

ELEMENTS = 512 << 10
"""Of the model's tensor: 2 MiB."""


def main(place: str, address: str, seed: str) -> None:
    """Work in the directory `place` until killed; `seed` makes the models' contents."""
    data = Data(Path(place))
    repository = repository_at(address)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    for number in range(10_000):
        path = data.file(int(seed) * 10_000 + number, "changing.gguf", ELEMENTS)
        data.create(repository, models=[{"name": "tiny", "source": str(path)}])


if __name__ == "__main__":
    main(*sys.argv[1:])
