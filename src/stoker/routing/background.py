"""Everyday requests of many kinds, in English and Russian, that stand for "not what these experts are for".

They let a configuration without `out_of_scope` examples, or with a single expert, tell what it should leave alone.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from stoker.routing.vectors import Encoder, shipped

Floats = NDArray[np.float32]

DATA = "background.txt"
LEAST_DISTANCE, MOST_DISTANCE = 0.35, 0.55


def background(encoder: Encoder, experts: Floats) -> tuple[tuple[str, ...], Floats]:
    """The shipped requests that no expert's example resembles, and their vectors.

    What counts as resembling is set by the examples: as like as half of them are to their own nearest fellow, within
    bounds.

    Args:
        encoder: what made the vectors.
        experts: the vectors of the experts' examples, one a row; at least one.
    """
    texts, vectors = _shipped() if encoder is shipped() else _encoded(encoder)
    if not len(experts):
        return texts, vectors
    among = experts @ experts.T
    np.fill_diagonal(among, -1)
    usual = float(np.median(among.max(axis=1))) if len(experts) > 1 else MOST_DISTANCE
    limit = min(max(usual, LEAST_DISTANCE), MOST_DISTANCE)
    far = (vectors @ experts.T).max(axis=1) < limit
    return tuple(text for text, kept in zip(texts, far, strict=True) if kept), vectors[far]


@cache
def _shipped() -> tuple[tuple[str, ...], Floats]:
    return _encoded(shipped())


def _encoded(encoder: Encoder) -> tuple[tuple[str, ...], Floats]:
    lines = (files("stoker.routing") / DATA).read_text(encoding="utf-8").splitlines()
    texts = tuple(line for line in lines if line and not line.startswith("#"))
    return texts, encoder.encode_all(texts)
